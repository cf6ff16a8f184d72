"""The scheduler is pure logic: what it hands out for what it was given."""

import math
from random import Random
from weakref import ReferenceType, ref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtp_llm.core import Int32Array, Item, TaskType
from rtp_llm.engine.job import Job
from rtp_llm.engine.lane import Lane
from rtp_llm.engine.lane_queue import key_of
from rtp_llm.engine.scheduler import Grant, Scheduler
from tests.engine.jobs import lengths, make_job


def test_nothing_waits() -> None:
    assert Scheduler(64, 2).next_batch() is None


@pytest.mark.parametrize("sizes", [(10, 20), (64,), (5, 5, 5)])
def test_an_item_alone_or_few_tokens_get_all_cores(sizes: tuple[int, ...]) -> None:
    scheduler = Scheduler(64, 4)
    scheduler.add(Lane.INTERACTIVE, make_job(*sizes)[1])
    grant = scheduler.next_batch()
    assert grant is not None and grant.num_cores == 4 and grant.num_tokens == sum(sizes)
    scheduler.add(Lane.INTERACTIVE, make_job(7)[1])
    assert scheduler.next_batch() is None
    scheduler.release(grant)
    assert lengths(scheduler.next_batch()) == [7]


@pytest.mark.parametrize(("sizes", "cores"), [((70, 70), [2, 2]), ((70, 70, 70, 70), [1, 1, 1, 1]), ((33, 9), [4])])
def test_waiting_items_are_shared_out_between_free_cores(sizes: tuple[int, ...], cores: list[int]) -> None:
    scheduler = Scheduler(1024, 4)
    scheduler.add(Lane.INTERACTIVE, make_job(*sizes)[1])
    grants = [scheduler.next_batch() for _ in cores]
    assert [grant and grant.num_cores for grant in grants] == cores and scheduler.next_batch() is None


def test_more_work_gets_a_core_a_batch() -> None:
    scheduler = Scheduler(100, 2)
    scheduler.add(Lane.INTERACTIVE, make_job(*[10] * 50)[1])
    grants = [scheduler.next_batch() for _ in range(3)]
    assert [grant and (grant.num_cores, grant.num_tokens) for grant in grants] == [(1, 100), (1, 100), None]


def test_the_last_batches_end_together() -> None:
    scheduler = Scheduler(1000, 2)
    scheduler.add(Lane.INTERACTIVE, make_job(*[10] * 60)[1])
    sizes = []
    while (grant := scheduler.next_batch()) is not None:
        sizes.append(grant.num_tokens)
        scheduler.free_cores = 1
    assert sizes == [300, 150, 70, 80]


def test_similar_lengths_together_oldest_first() -> None:
    scheduler = Scheduler(24, 1)
    scheduler.add(Lane.INTERACTIVE, make_job(8, 3, 9, 2, 7)[1])
    assert lengths(scheduler.next_batch()) == [8, 9, 7]


def test_an_item_over_the_budget_runs_alone() -> None:
    scheduler = Scheduler(16, 1)
    scheduler.add(Lane.INTERACTIVE, make_job(40, 3)[1])
    grant = scheduler.next_batch()
    assert lengths(grant) == [40]
    assert grant is not None
    scheduler.release(grant)
    assert lengths(scheduler.next_batch()) == [3]


@pytest.mark.parametrize("left", [0, 1])
def test_a_client_that_leaves_frees_its_rows(left: int) -> None:
    scheduler = Scheduler(16, 1)
    jobs = [make_job(4, 4), make_job(5, 5)]
    for _, items in jobs:
        scheduler.add(Lane.INTERACTIVE, items)
    gone = jobs[left][0]
    gone.cancelled = True
    scheduler.drop(gone)
    assert scheduler.queued_tokens == (10 if left == 0 else 8)
    grant = scheduler.next_batch()
    assert grant is not None and all(item.owner is not gone for item in grant.items)
    scheduler.release(grant)
    assert scheduler.next_batch() is None and scheduler.queued_tokens == 0


@settings(max_examples=150)
@given(
    jobs=st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=12), min_size=1, max_size=10),
    budget=st.integers(8, 128),
    cores=st.integers(1, 4),
    random=st.randoms(use_true_random=False),
)
def test_every_item_once_within_budget_and_no_idle_core(
    jobs: list[list[int]], budget: int, cores: int, random: Random
) -> None:
    scheduler = Scheduler(budget, cores)
    seen: list[Item] = []
    running: list[Grant] = []
    pending = [make_job(*sizes)[1] for sizes in jobs]
    expected = [item for items in pending for item in items]
    while len(seen) < len(expected):
        if pending and (random.random() < 0.5 or not running):
            scheduler.add(Lane.INTERACTIVE, pending.pop(0))
        waiting = [item for item in expected if item.queued]
        grant = scheduler.next_batch()
        if grant is None:
            assert not waiting or scheduler.free_cores == 0
            if running:
                scheduler.release(running.pop(0))
            continue
        assert grant.num_tokens == sum(item.num_tokens for item in grant.items)
        assert grant.num_tokens <= budget or len(grant.items) == 1
        assert grant.items[0] is waiting[0]  # the oldest goes first, so nothing starves
        seen += grant.items
        running.append(grant)
    assert sorted(map(id, seen)) == sorted(map(id, expected)) and scheduler.queued_tokens == 0


def test_a_prefix_counts_once_a_batch() -> None:
    scheduler = Scheduler(40, 1)
    job, items = make_job(30, 25, 25, 25)
    for item in items[1:]:
        item.prefix = items[1].input_ids[:20].tobytes()
    scheduler.add(Lane.INTERACTIVE, items[1:])
    assert scheduler.queued_tokens == 15
    grant = scheduler.next_batch()
    assert lengths(grant) == [25, 25, 25] and grant is not None and grant.num_tokens == 35
    assert (scheduler.queued_tokens, job.queued_tokens) == (0, 0)


def test_identical_items_are_computed_once() -> None:
    scheduler = Scheduler(64, 1)
    (first, second), (_, other) = (make_job(9, 9) for _ in range(2))
    _, twins = make_job(9, 9)
    for item in twins:
        item.input_ids = second[0].input_ids
    for items in (second, other, twins):
        scheduler.add(Lane.INTERACTIVE, items)
    assert (scheduler.queued_items, scheduler.queued_tokens) == (6, 54)
    grant = scheduler.next_batch()
    assert grant is not None and grant.num_tokens == 36 and first.queued_items == scheduler.queued_items == 0
    assert [len(group) for group in grant.groups] == [3, 1, 1, 1] and grant.groups[0] == [second[0], *twins]


@pytest.mark.parametrize(
    ("field", "value"),
    [("token_type_ids", np.ones(9, np.int32)), ("prompt_length", 3), ("tasks", (TaskType.TOKENS,))],
)
def test_what_rows_depend_on_makes_items_differ(field: str, value: object) -> None:
    scheduler = Scheduler(64, 1)
    items = [*make_job(9)[1], *make_job(9)[1]]
    items[1].input_ids = items[0].input_ids
    setattr(items[1], field, value)
    scheduler.add(Lane.INTERACTIVE, items)
    grant = scheduler.next_batch()
    assert grant is not None and len(grant.groups) == 2


@pytest.mark.parametrize("gone", [(0,), (1,), (0, 1)])
def test_a_client_that_leaves_keeps_nobody_else_from_its_rows(gone: tuple[int, ...]) -> None:
    scheduler = Scheduler(64, 1)
    jobs = [make_job(9), make_job(9)]
    jobs[1][1][0].input_ids = jobs[0][1][0].input_ids
    scheduler.add(Lane.INTERACTIVE, [jobs[0][1][0], jobs[1][1][0]])
    for place in gone:
        jobs[place][0].cancelled = True
        scheduler.drop(jobs[place][0])
    # Whoever comes after a deserted place needs one of his own.
    late = make_job(9)
    late[1][0].input_ids = jobs[0][1][0].input_ids
    if len(gone) == 2:
        assert scheduler.next_batch() is None
    scheduler.add(Lane.INTERACTIVE, late[1])
    grant = scheduler.next_batch()
    assert grant is not None and scheduler.queued_items == 0
    assert grant.groups == [[jobs[i][1][0] for i in (0, 1) if i not in gone] + late[1]]


def test_what_comes_too_late_is_passed_over() -> None:
    scheduler = Scheduler(64, 1)
    (late, late_items), (early, early_items) = make_job(5, 6, deadline=10.0), make_job(7, deadline=20.0)
    scheduler.add(Lane.INTERACTIVE, late_items)
    scheduler.add(Lane.INTERACTIVE, early_items)
    assert lengths(scheduler.next_batch(now=10.0)) == [7]
    assert scheduler.take_expired() == [late] and scheduler.take_expired() == []
    assert scheduler.queued_tokens == late.queued_tokens == early.queued_tokens == 0


@settings(max_examples=100)
@given(
    jobs=st.lists(
        st.tuples(
            st.sampled_from(Lane), st.lists(st.integers(1, 40), min_size=1, max_size=8), st.sampled_from([5, math.inf])
        ),
        min_size=1,
        max_size=14,
    ),
    kinds=st.integers(1, 40),
    random=st.randoms(use_true_random=False),
)
def test_nothing_is_lost(jobs: list[tuple[Lane, list[int], float]], kinds: int, random: Random) -> None:
    """Lanes, identical items, clients that leave and deadlines together: each job is served, left, or found late."""
    scheduler, served, now = Scheduler(64, 2), set[int](), 0
    made = [make_job(*sizes, lane=lane, deadline=deadline) for lane, sizes, deadline in jobs]
    for _, items in made:
        for item in items:
            item.input_ids = np.full(len(item.input_ids), random.randrange(kinds), np.int32)
    pending, late = list(made), list[Job]()
    while pending or scheduler.queued_items:
        now += 1
        if pending and random.random() < 0.5:
            job, items = pending.pop()
            scheduler.add(job.lane, items)
        if random.random() < 0.2:
            gone = random.choice(made)[0]
            gone.cancelled = True
            scheduler.drop(gone)
        grant = scheduler.next_batch(now)
        for job in scheduler.take_expired():
            job.error = TimeoutError()
            late.append(job)
        if grant is not None:
            assert all(len({key_of(item) for item in group}) == 1 for group in grant.groups)
            served.update(id(item) for group in grant.groups for item in group)
            scheduler.release(grant)
    for job, items in made:
        assert job.cancelled or job in late or all(id(item) in served for item in items)
        assert job.queued_items == job.queued_tokens == 0
    assert scheduler.queued_tokens == 0 and scheduler.next_batch(now) is None


@pytest.mark.parametrize("given_up", [False, True])
def test_a_queue_that_never_runs_dry_keeps_nothing_of_what_it_gave_out(given_up: bool) -> None:
    """Lengths of over half a step: no second place fits, so that none is ever looked for by length."""
    scheduler = Scheduler(64, 1)
    kept: list[ReferenceType[Int32Array]] = []
    for turn in range(100):
        job, items = make_job(40 + turn % 20)
        kept.append(ref(items[0].input_ids))
        scheduler.add(Lane.INTERACTIVE, items)
        if given_up and turn % 2:
            job.cancelled = True
            scheduler.drop(job)
        elif turn > 3 and (grant := scheduler.next_batch()) is not None:
            scheduler.release(grant)
    del job, items, grant
    assert 0 < sum(ids() is not None for ids in kept) <= 8


@pytest.mark.parametrize("twins", [False, True])
def test_what_is_given_up_is_let_go_at_once_however_long_its_turn_would_take_to_come(twins: bool) -> None:
    scheduler = Scheduler(64, 1)
    (first, items), kept = make_job(40, 30, 30), list[ReferenceType[Int32Array]]()
    scheduler.add(Lane.INTERACTIVE, items)
    for _ in range(10):
        job, others = make_job(*[7] * 20)
        if twins:  # of an input that waits, which stays
            others[0].input_ids = items[0].input_ids
        kept += [ref(item.input_ids) for item in others[1:]]
        scheduler.add(Lane.INTERACTIVE, others)
        job.cancelled = True
        scheduler.drop(job)
    del job, others
    assert not any(ids() is not None for ids in kept)
    assert (scheduler.queued_items, scheduler.queued_tokens) == (3, 100) == (first.queued_items, first.queued_tokens)
    assert lengths(scheduler.next_batch()) == [40]
    scheduler.free_cores = 1
    assert lengths(scheduler.next_batch()) == [30, 30] and scheduler.queued_items == 0
