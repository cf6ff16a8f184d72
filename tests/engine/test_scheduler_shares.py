"""Who goes first, and who has how much: lanes, and models that share a device."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtp_llm.core import Item
from rtp_llm.engine.lane import Lane
from rtp_llm.engine.scheduler import Grant, Scheduler
from tests.engine.jobs import lengths, make_job


def test_interactive_work_overtakes_bulk_work() -> None:
    scheduler = Scheduler(100, 1)
    scheduler.add(Lane.BULK, make_job(*[50] * 8, lane=Lane.BULK)[1])
    assert lengths(scheduler.next_batch()) == [50, 50]
    scheduler.add(Lane.INTERACTIVE, make_job(7)[1])
    scheduler.free_cores = 1
    grant = scheduler.next_batch()
    assert lengths(grant) == [7] and grant is not None and grant.lane is Lane.INTERACTIVE


@pytest.mark.parametrize(("budget", "size"), [(64, 8), (64, 100), (1024, 30)])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_bulk_work_keeps_its_share(budget: int, size: int, share: float) -> None:
    scheduler = Scheduler(budget, 1, bulk_share=share)
    scheduler.add(Lane.BULK, make_job(*[size] * 3000, lane=Lane.BULK)[1])
    tokens = dict.fromkeys(Lane, 0)
    while tokens[Lane.BULK] < 100 * max(size, budget // 4):
        scheduler.add(Lane.INTERACTIVE, make_job(*[8] * (budget // 8))[1])
        grant = scheduler.next_batch()
        assert grant is not None
        tokens[grant.lane] += grant.num_tokens
        scheduler.release(grant)
    assert tokens[Lane.BULK] / sum(tokens.values()) == pytest.approx(share, rel=0.1)


@pytest.mark.parametrize(("sizes", "expected"), [((26,), 100), ((13, 13), 100), ((25,), 25), ((), 100)])
def test_work_that_takes_longer_than_a_short_step_does_not_shorten_them(sizes: tuple[int, ...], expected: int) -> None:
    scheduler = Scheduler(100, 1)
    scheduler.add(Lane.BULK, make_job(*[5] * 2000, lane=Lane.BULK)[1])
    scheduler.add(Lane.INTERACTIVE, make_job(*sizes)[1])
    sizes_of_steps = []
    for _ in range(3):
        grant = scheduler.next_batch()
        assert grant is not None
        scheduler.release(grant)
        sizes_of_steps.append(grant.num_tokens)
    assert sizes_of_steps[-1] == expected


def test_bulk_steps_are_short_while_interactive_work_keeps_coming() -> None:
    scheduler = Scheduler(100, 1)
    scheduler.add(Lane.BULK, make_job(*[5] * 2000, lane=Lane.BULK)[1])
    sizes: list[int] = []
    for _ in range(180):
        if len(sizes) == 1:
            scheduler.add(Lane.INTERACTIVE, make_job(3)[1])
        grant = scheduler.next_batch()
        assert grant is not None
        scheduler.release(grant)
        sizes.append(grant.num_tokens)
    assert sizes[:4] == [100, 3, 25, 25] and sizes.count(25) == 128 and sizes[130] == 100


@settings(max_examples=100)
@given(
    jobs=st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(Lane), st.lists(st.integers(1, 90), min_size=1, max_size=6)),
        min_size=1,
        max_size=16,
    ),
    budgets=st.lists(st.integers(8, 128), min_size=3, max_size=3),
    cores=st.integers(1, 3),
    random=st.randoms(use_true_random=False),
)
def test_models_share_the_device_and_never_a_batch(
    jobs: list[tuple[int, Lane, list[int]]], budgets: list[int], cores: int, random: Random
) -> None:
    """Each batch is one model's, within its own budget, led by what has waited longest for it; no core idles."""
    scheduler = Scheduler(budgets[0], cores)
    assert [scheduler.add_model(budget) for budget in budgets[1:]] == [1, 2]
    pending = []
    for model, lane, sizes in jobs:
        job, items = make_job(*sizes, lane=lane)
        job.model = model
        pending.append((job, items))
    expected = [item for _, items in pending for item in items]
    seen, running, arrived = list[Item](), list[Grant](), list[Item]()
    while len(seen) < len(expected):
        if pending and (random.random() < 0.5 or not running):
            job, items = pending.pop(0)
            scheduler.add(job.lane, items, job.model)
            arrived += items
        waiting = [item for item in arrived if item.queued]
        grant = scheduler.next_batch()
        if grant is None:
            assert not waiting or scheduler.free_cores == 0
            if running:
                scheduler.release(running.pop(0))
            continue
        assert {(item.owner.model, item.owner.lane) for item in grant.items} == {(grant.model, grant.lane)}
        assert grant.num_tokens <= budgets[grant.model] or len(grant.items) == 1
        there = (item for item in waiting if (item.owner.model, item.owner.lane) == (grant.model, grant.lane))
        assert grant.items[0] is next(there)
        seen += grant.items
        running.append(grant)
    assert sorted(map(id, seen)) == sorted(map(id, expected)) and scheduler.queued_tokens == 0


@pytest.mark.parametrize("costs", [(1.0, 1.0), (4.0, 2.0), (0.5, 0.25)])
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_bulk_work_keeps_its_share_over_all_models(share: float, costs: tuple[float, float]) -> None:
    """The bulk work of two models waits beside the interactive work of a third, whose tokens cost something else."""
    scheduler = Scheduler(64, 1, bulk_share=share)
    models = [scheduler.add_model(64, costs[0]), scheduler.add_model(1024, costs[1])]
    for model in models * 100:
        job, items = make_job(*[16] * 60, lane=Lane.BULK)
        job.model = model
        scheduler.add(Lane.BULK, items, model)
    work, tokens = dict.fromkeys(Lane, 0.0), dict.fromkeys([0, *models], 0)
    while min(tokens[model] for model in models) < 8000:
        scheduler.add(Lane.INTERACTIVE, make_job(*[8] * 8)[1])
        grant = scheduler.next_batch()
        assert grant is not None
        work[grant.lane] += grant.num_tokens * (1.0, *costs)[grant.model]
        tokens[grant.model] += grant.num_tokens
        scheduler.release(grant)
    assert work[Lane.BULK] / sum(work.values()) == pytest.approx(share, rel=0.1)


def add_to(scheduler: Scheduler, model: int, *sizes: int) -> None:
    job, items = make_job(*sizes)
    job.model = model
    scheduler.add(Lane.INTERACTIVE, items, model)


@pytest.mark.parametrize("cost", [0.25, 1.0, 6.0])
def test_models_that_always_have_work_have_as_much_of_the_device(cost: float) -> None:
    scheduler = Scheduler(64, 1)
    scheduler.add_model(256, cost)
    for model in (0, 1):
        add_to(scheduler, model, *[16] * 4000)
    work = [0.0, 0.0]
    while scheduler.models[0].lanes[Lane.INTERACTIVE].items and scheduler.models[1].lanes[Lane.INTERACTIVE].items:
        grant = scheduler.next_batch()
        assert grant is not None
        work[grant.model] += grant.num_tokens * (1.0, cost)[grant.model]
        scheduler.release(grant)
        assert abs(work[0] - work[1]) <= 64 + 256 * cost


def test_an_idle_model_saves_nothing_up() -> None:
    scheduler = Scheduler(64, 1)
    scheduler.add_model(64)
    turns = []
    add_to(scheduler, 1, *[16] * 400)
    for turn in range(60):
        if turn == 50:
            add_to(scheduler, 0, *[16] * 400)
        grant = scheduler.next_batch()
        assert grant is not None
        turns.append(grant.model)
        scheduler.release(grant)
    assert turns == [1] * 50 + [0, 1] * 5
