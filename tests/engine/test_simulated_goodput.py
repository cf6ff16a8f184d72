"""Under more load than can be computed, what can be in time is: in virtual time, counted in requests."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulated_goodput import BATCH_TOKENS, BGE_M3, LENGTHS, MINILM, MIXED, Overload, make_gate
from benchmarks.simulator import Arrival, Costs, simulate
from rtp_llm.engine.scheduler import Scheduler
from tests.engine.arrivals import arrivals as any_arrivals

QUERIES, PASSAGES = (LENGTHS[name] for name in ("queries", "passages"))


@pytest.mark.parametrize("load", [1.5, 4.0])
@pytest.mark.parametrize("patience", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("lengths", [QUERIES, PASSAGES])
def test_too_much_load_leaves_most_of_the_capacity(lengths: tuple[int, int], patience: float, load: float) -> None:
    goodput = Overload(MINILM, lengths, load, (patience,)).run()
    assert goodput.share >= 0.9 and goodput.late <= 0.02 * goodput.in_time


@pytest.mark.parametrize("load", [1.5, 4.0])
@pytest.mark.parametrize(("patience", "least"), [(1.0, 0.8), (5.0, 0.9)])
def test_a_model_whose_whole_step_takes_longer_than_the_deadline(patience: float, least: float, load: float) -> None:
    assert Overload(BGE_M3, PASSAGES, load, (patience,)).run().share >= least


@pytest.mark.parametrize("load", [1.5, 4.0])
@pytest.mark.parametrize(("costs", "patience"), [(MINILM, 1.0), (BGE_M3, 10.0)])
def test_requests_of_several_inputs_are_finished_or_not_begun(costs: Costs, patience: float, load: float) -> None:
    assert Overload(costs, PASSAGES, load, (patience,), num_texts=8).run().share >= 0.9


def test_impatient_requests_beside_patient_ones() -> None:
    assert Overload(MINILM, PASSAGES, 2.0, MIXED).run().share >= 0.9


@pytest.mark.parametrize("costs", [MINILM, BGE_M3])
def test_a_light_load_is_neither_refused_nor_shed(costs: Costs) -> None:
    goodput = Overload(costs, QUERIES, 0.5, (1.0,)).run()
    assert goodput.refused == goodput.shed == goodput.late == 0


@pytest.mark.parametrize(("wrong", "least"), [(100.0, 0.6), (0.01, 0.4)])
def test_a_forecast_that_is_wrong_mends_itself(wrong: float, least: float) -> None:
    """What was observed before the load came was a hundred times too slow, or too quick: `least` counts meanwhile."""
    case = Overload(MINILM, PASSAGES, 2.0, (0.3,))
    gate = make_gate()
    for size in (1 << bits for bits in range(11)):
        for _ in range(30):
            gate.observe(size, wrong * (MINILM.fixed + MINILM.per_token * size), 1)
    rate = case.load * case.capacity
    first, second = (len(case.simulate(rate, seconds, gate).in_time) for seconds in (10.0, 10.0))
    assert first >= least * case.capacity * 10 and second >= 0.85 * case.capacity * 10


@settings(max_examples=60)
@given(
    arrivals=any_arrivals(st.one_of(st.floats(0.01, 3), st.just(float("inf")))),
    cores=st.integers(1, 4),
    noise=st.sampled_from([0.0, 0.5]),
)
def test_every_request_has_one_end_and_no_core_idles(arrivals: list[Arrival], cores: int, noise: float) -> None:
    """`simulate` itself raises where a core is free and something waits; who has no deadline is answered."""
    result = simulate(Scheduler(BATCH_TOKENS, cores), arrivals, MINILM, make_gate(cores), noise)
    assert len(result.answers) + result.refused + result.shed == len(arrivals)
    patient = [arrival for arrival in arrivals if arrival.patience == float("inf")]
    assert len(result.answers) >= len(patient)
    everything = simulate(Scheduler(BATCH_TOKENS, cores), [replace(one, patience=1e6) for one in arrivals], MINILM)
    assert len(everything.in_time) == len(arrivals)


def test_the_capacity_is_what_a_patient_load_gets() -> None:
    case = Overload(MINILM, PASSAGES, 2.0, (1e6,), noise=0.0)
    result = case.simulate(2 * case.capacity, 5.0)
    assert len(result.in_time) / result.finished_at == pytest.approx(case.capacity, rel=0.05)
