"""The scheduler is pure logic: what it hands out for what it was given."""

from concurrent.futures import Future
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtp_llm.core import Item, Request
from rtp_llm.engine.job import Job
from rtp_llm.engine.scheduler import Grant, Scheduler


def make_job(*lengths: int) -> tuple[Job, list[Item]]:
    job = Job(Request(inputs=["x"] * len(lengths)), Future())
    items = [Item(np.zeros(length, np.int32), index, owner=job) for index, length in enumerate(lengths)]
    return job, items


def lengths(grant: Grant | None) -> list[int]:
    assert grant is not None
    return [item.num_tokens for item in grant.items]


def test_nothing_waits() -> None:
    assert Scheduler(64, 2).next_batch() is None


@pytest.mark.parametrize("sizes", [(10, 20), (64,), (5, 5, 5)])
def test_an_item_alone_or_few_tokens_get_all_cores(sizes: tuple[int, ...]) -> None:
    scheduler = Scheduler(64, 4)
    scheduler.add(make_job(*sizes)[1])
    grant = scheduler.next_batch()
    assert grant is not None and grant.num_cores == 4 and grant.num_tokens == sum(sizes)
    scheduler.add(make_job(7)[1])
    assert scheduler.next_batch() is None
    scheduler.release(grant)
    assert lengths(scheduler.next_batch()) == [7]


@pytest.mark.parametrize(("sizes", "cores"), [((70, 70), [2, 2]), ((70, 70, 70, 70), [1, 1, 1, 1]), ((33, 9), [4])])
def test_waiting_items_are_shared_out_between_free_cores(sizes: tuple[int, ...], cores: list[int]) -> None:
    scheduler = Scheduler(1024, 4)
    scheduler.add(make_job(*sizes)[1])
    grants = [scheduler.next_batch() for _ in cores]
    assert [grant and grant.num_cores for grant in grants] == cores and scheduler.next_batch() is None


def test_more_work_gets_a_core_a_batch() -> None:
    scheduler = Scheduler(100, 2)
    scheduler.add(make_job(*[10] * 50)[1])
    grants = [scheduler.next_batch() for _ in range(3)]
    assert [grant and (grant.num_cores, grant.num_tokens) for grant in grants] == [(1, 100), (1, 100), None]


def test_the_last_batches_end_together() -> None:
    scheduler = Scheduler(1000, 2)
    scheduler.add(make_job(*[10] * 60)[1])
    sizes = []
    while (grant := scheduler.next_batch()) is not None:
        sizes.append(grant.num_tokens)
        scheduler.free_cores = 1
    assert sizes == [300, 150, 70, 80]


def test_similar_lengths_together_oldest_first() -> None:
    scheduler = Scheduler(24, 1)
    scheduler.add(make_job(8, 3, 9, 2, 7)[1])
    assert lengths(scheduler.next_batch()) == [8, 9, 7]


def test_an_item_over_the_budget_runs_alone() -> None:
    scheduler = Scheduler(16, 1)
    scheduler.add(make_job(40, 3)[1])
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
        scheduler.add(items)
    gone = jobs[left][0]
    gone.cancelled = True
    scheduler.drop(gone)
    assert scheduler.queued_tokens == (10 if left == 0 else 8)
    grant = scheduler.next_batch()
    assert grant is not None and all(item.owner is not gone for item in grant.items)
    scheduler.release(grant)
    assert scheduler.next_batch() is None and scheduler.queued_tokens == 0


@settings(deadline=None, max_examples=150)
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
            scheduler.add(pending.pop(0))
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
        item.prefix = item.input_ids[:20].tobytes()
    scheduler.add(items[1:])
    assert scheduler.queued_tokens == 15
    grant = scheduler.next_batch()
    assert lengths(grant) == [25, 25, 25] and grant is not None and grant.num_tokens == 35
    assert (scheduler.queued_tokens, job.queued_tokens) == (0, 0)
