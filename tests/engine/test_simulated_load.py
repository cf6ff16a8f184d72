"""The scheduler in virtual time: fairness between lanes, nobody starves, no core idles while work waits."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulator import Arrival, Costs, GpuCosts, bulk, queries, simulate
from rtp_llm.engine.lane import Lane
from rtp_llm.engine.scheduler import Scheduler
from tests.engine.arrivals import arrivals as any_arrivals

BUDGET = 1024
COSTS = Costs()
# What the longest step of this budget takes on one core.
ONE_BATCH = COSTS.fixed + COSTS.per_token * BUDGET + COSTS.per_square * 250 * BUDGET


@pytest.mark.parametrize("cores", [1, 2, 8])
@pytest.mark.parametrize("rate", [1.0, 20.0])
def test_a_bulk_job_delays_single_queries_by_a_batch_at_most(cores: int, rate: float) -> None:
    alone = simulate(Scheduler(BUDGET, cores), queries(rate, 100.0), COSTS).percentile(Lane.INTERACTIVE, 0.99)
    beside = simulate(Scheduler(BUDGET, cores), [*bulk(6000 * cores), *queries(rate, 100.0)], COSTS)
    assert beside.percentile(Lane.INTERACTIVE, 0.99) <= 2 * alone + ONE_BATCH
    assert len(beside.latencies(Lane.BULK)) == -(-6000 * cores // 256)


def test_steady_queries_wait_for_a_quarter_of_a_batch() -> None:
    result = simulate(Scheduler(BUDGET, 2), [*bulk(10_000), *queries(20.0, 60.0)], COSTS)
    assert result.percentile(Lane.INTERACTIVE, 0.99) <= 0.3 * ONE_BATCH


def test_bulk_work_is_done_under_a_flood_of_queries() -> None:
    flood = [Arrival(i / 1000, [10] * 4) for i in range(20_000)]  # twice what one core can do
    result = simulate(Scheduler(BUDGET, 1, bulk_share=0.2), [*flood, Arrival(0.0, [100] * 50, Lane.BULK)], COSTS)
    (seconds,) = result.latencies(Lane.BULK)
    assert seconds <= 1.3 * (50 * 100 * COSTS.per_token) / 0.2


def test_short_bulk_steps_cost_little_throughput() -> None:
    whole, short = (
        simulate(Scheduler(BUDGET, 2), [*bulk(5000), *queries(rate, 60.0)], COSTS) for rate in (0.001, 20.0)
    )
    assert short.num_tokens / short.busy >= 0.95 * whole.num_tokens / whole.busy


@pytest.mark.parametrize("cores", [1, 2, 8])
def test_a_flood_for_one_model_hardly_delays_another(cores: int) -> None:
    """Tokens of the one cost six times as much, and of it twice as much is asked as all cores can do."""
    rate = 2 * cores / (6 * COSTS.per_token * 100)
    flood = [Arrival(i / rate, [100], model=1) for i in range(round(20 * rate))]
    alone = simulate(Scheduler(BUDGET, cores), queries(20.0, 20.0), COSTS).percentile(Lane.INTERACTIVE, 0.99)
    scheduler = Scheduler(BUDGET, cores)
    scheduler.add_model(BUDGET, 6.0)
    result = simulate(scheduler, [*flood, *queries(20.0, 20.0)], COSTS)
    assert result.percentile(Lane.INTERACTIVE, 0.99, model=0) <= alone + (6 + 1) * ONE_BATCH  # a batch of each
    assert result.percentile(Lane.INTERACTIVE, 0.5, model=1) > 5.0


@settings(max_examples=60)
@given(
    arrivals=any_arrivals(),
    cores=st.integers(1, 4),
    budget=st.sampled_from([64, 1024]),
)
def test_every_request_is_answered_and_no_core_idles(arrivals: list[Arrival], cores: int, budget: int) -> None:
    """`simulate` itself raises where a core is free and something waits."""
    result = simulate(Scheduler(budget, cores), arrivals, COSTS)
    assert len(result.answers) == len(arrivals)
    assert result.num_tokens == sum(sum(arrival.lengths) for arrival in arrivals)


GPU_BUDGET = 16_896
GPU = GpuCosts()
GPU_BATCH = GPU.fixed + GPU.per_token * GPU_BUDGET + GPU.per_square * 250 * GPU_BUDGET


@pytest.mark.parametrize("gpus", [1, 2])
def test_on_a_gpu_a_bulk_job_delays_queries_by_the_batches_in_flight(gpus: int) -> None:
    scheduler = Scheduler(GPU_BUDGET, 2 * gpus, num_devices=gpus)
    result = simulate(scheduler, [*bulk(20_000 * gpus), *queries(500.0, 0.8)], GPU)
    assert result.percentile(Lane.INTERACTIVE, 0.99) <= 3 * GPU_BATCH
    assert len(result.latencies(Lane.BULK)) == -(-20_000 * gpus // 256)


@pytest.mark.parametrize("gpus", [1, 2])
def test_two_in_flight_hide_the_launches(gpus: int) -> None:
    """What is computed meanwhile is worth more than 95 % of the device; with one in flight it would be 92."""
    result = simulate(Scheduler(GPU_BUDGET, 2 * gpus, num_devices=gpus), bulk(20_000 * gpus), GPU)
    assert result.busy >= 0.95 * gpus * result.finished_at


def test_a_lone_query_leaves_the_other_slot_free() -> None:
    scheduler = Scheduler(GPU_BUDGET, 2, num_devices=1)
    result = simulate(scheduler, [Arrival(0.0, [10]), Arrival(1e-4, [10])], GPU)
    assert max(result.latencies(Lane.INTERACTIVE)) <= GPU.launch + 2 * (GPU.fixed + 20 * GPU.per_token)


@settings(max_examples=40)
@given(
    arrivals=st.lists(
        st.builds(
            Arrival,
            time=st.floats(0, 0.01),
            lengths=st.lists(st.integers(1, 512), min_size=1, max_size=20),
            lane=st.sampled_from(Lane),
        ),
        max_size=40,
    ),
    gpus=st.integers(1, 3),
    budget=st.sampled_from([64, 4096]),
)
def test_every_request_is_answered_by_gpus(arrivals: list[Arrival], gpus: int, budget: int) -> None:
    result = simulate(Scheduler(budget, 2 * gpus, num_devices=gpus), arrivals, GPU)
    assert len(result.answers) == len(arrivals)
    assert result.num_tokens == sum(sum(arrival.lengths) for arrival in arrivals)
