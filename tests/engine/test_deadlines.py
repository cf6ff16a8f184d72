"""What is computed, made smaller, passed over or shed for deadlines: pure logic, the time is an argument."""

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtp_llm.engine.job import Job
from rtp_llm.engine.lane import Lane
from rtp_llm.engine.scheduler import Grant, Scheduler
from rtp_llm.engine.step_time import StepTime
from tests.engine.jobs import lengths, make_job

# Of a model that does a thousand tokens a second on a core, in whatever steps.
SECONDS = StepTime(lambda num_tokens: num_tokens / 1000).seconds


def make_scheduler(batch_tokens: int = 64, cores: int = 1, fixed: float = 0.0, num_devices: int = 0) -> Scheduler:
    """A thousand tokens a second on a core, and `fixed` seconds a step."""
    scheduler = Scheduler(batch_tokens, cores, num_devices=num_devices)
    scheduler.foresee(0, lambda num_tokens: fixed + num_tokens / 1000)
    return scheduler


def add(scheduler: Scheduler, *sizes: int, lane: Lane = Lane.INTERACTIVE, deadline: float = math.inf) -> Job:
    job, items = make_job(*sizes, lane=lane, deadline=deadline)
    scheduler.add(lane, items)
    return job


def taken(scheduler: Scheduler, now: float = 0.0) -> list[int]:
    """The lengths of the next batch, which is done at once."""
    grant = scheduler.next_batch(now)
    assert grant is not None
    scheduler.release(grant)
    return lengths(grant)


def test_what_would_be_late_is_shed_for_what_will_not_be() -> None:
    scheduler = make_scheduler(fixed=1.0)
    late, early = add(scheduler, 10, deadline=1.2), add(scheduler, 12, deadline=9.0)
    assert taken(scheduler) == [12]
    assert scheduler.take_expired() == [late] and scheduler.take_expired() == []
    assert scheduler.queued_tokens == late.queued_tokens == early.queued_tokens == 0


def test_before_anything_is_measured_only_passed_deadlines_count() -> None:
    scheduler = Scheduler(64, 1)
    add(scheduler, 10, deadline=0.001)
    add(scheduler, 12)
    assert taken(scheduler) == [10, 12] and not scheduler.take_expired()


@pytest.mark.parametrize("lane", Lane)
def test_the_last_one_is_computed_while_there_is_time_at_all(lane: Lane) -> None:
    """So that a forecast that is wrong goes on being compared with what is true."""
    scheduler = make_scheduler(fixed=100.0)
    late = [add(scheduler, size, lane=lane, deadline=1.0) for size in (10, 11, 12)]
    assert taken(scheduler, now=0.9) == [12] and scheduler.take_expired() == late[:2]
    add(scheduler, 10, lane=lane, deadline=1.0)
    assert scheduler.next_batch(now=1.0) is None and len(scheduler.take_expired()) == 1


def test_a_step_is_made_smaller_for_its_oldest() -> None:
    scheduler = make_scheduler()
    add(scheduler, 10, deadline=SECONDS(30, 1) + 1e-6)
    add(scheduler, *[10] * 5)
    assert taken(scheduler) == [10, 10, 10] and not scheduler.take_expired()
    assert taken(scheduler) == [10, 10, 10]


def test_no_step_is_made_small_in_vain() -> None:
    """With a second for each step, one of three items would do a third of one of nine."""
    scheduler = make_scheduler(fixed=1.0)
    late = add(scheduler, 10, deadline=1.3)
    add(scheduler, *[10] * 5)
    assert taken(scheduler) == [10] * 5 and scheduler.take_expired() == [late]


def test_nothing_is_shed_by_a_step_that_is_not_taken() -> None:
    """The first two have to go, and then the third is in time: the step has shrunk with the queue."""
    scheduler = make_scheduler(batch_tokens=1000, fixed=0.5)
    late = [add(scheduler, 400, deadline=0.5) for _ in range(2)]
    add(scheduler, 100, deadline=SECONDS(600, 1) + 1e-6)
    assert taken(scheduler) == [100] and scheduler.take_expired() == late


def test_what_has_less_time_than_the_step_is_passed_over_and_kept() -> None:
    scheduler = make_scheduler()
    add(scheduler, *[10] * 3)
    hasty = [add(scheduler, 10, deadline=SECONDS(30, 1)) for _ in range(2)]
    add(scheduler, *[10] * 3)
    grant = scheduler.next_batch()
    assert grant is not None and len(grant.items) == 6
    assert not any(item.owner in hasty for item in grant.items) and not scheduler.take_expired()
    scheduler.release(grant)
    assert taken(scheduler) == [10, 10]


def test_who_is_late_on_one_core_has_all_that_are_free() -> None:
    scheduler = make_scheduler(batch_tokens=1000, cores=2)
    add(scheduler, 100, deadline=SECONDS(100, 2) + 1e-6)
    add(scheduler, 100)
    grant = scheduler.next_batch()
    assert grant is not None and (grant.num_cores, grant.num_tokens) == (2, 100)


def test_a_request_of_several_items_is_shed_as_a_whole() -> None:
    scheduler = make_scheduler(batch_tokens=100)
    several = add(scheduler, *[50] * 6, deadline=1.0)
    add(scheduler, 40, 40)
    assert taken(scheduler) == [50, 50]
    assert taken(scheduler, now=0.97) == [40, 40]
    assert scheduler.take_expired() == [several] and scheduler.queued_items == several.queued_items == 0


@pytest.mark.parametrize("pressed", [True, False])
def test_where_deadlines_press_the_oldest_request_is_finished_first(pressed: bool) -> None:
    """Else items of the same length make a step, whosever they are."""
    scheduler = make_scheduler(batch_tokens=60)
    first = add(scheduler, 20, 30, 10, deadline=0.2 if pressed else 9.0)
    others = add(scheduler, *[20] * 20, deadline=9.0)
    grant = scheduler.next_batch()
    assert grant is not None
    owners = [item.owner for item in grant.items]
    assert owners == ([first] * 3 if pressed else [first, others, others])


@pytest.mark.parametrize("announced", [0, 500])
def test_a_request_that_all_cores_cannot_do_in_time_is_not_begun(announced: int) -> None:
    """Each step would be in time, the last of so many would not."""
    scheduler = make_scheduler(batch_tokens=100, cores=2)
    large = add(scheduler, *[50] * 10, lane=Lane.BULK, deadline=0.4 if announced else 0.2)
    large.announced = announced
    add(scheduler, 60, lane=Lane.BULK)
    assert taken(scheduler) == [60] and scheduler.take_expired() == [large]


def test_what_is_asked_for_twice_counts_once() -> None:
    scheduler = make_scheduler(batch_tokens=100)
    job, items = make_job(*[50] * 20, deadline=0.2)
    for item in items:
        item.input_ids = items[0].input_ids
    scheduler.add(Lane.INTERACTIVE, items)
    add(scheduler, 60)
    assert taken(scheduler) == [50] and not scheduler.take_expired() and not job.queued_items


@pytest.mark.parametrize("patience", [5.0, 0.5])
def test_an_input_that_somebody_can_wait_for_is_computed_for_all(patience: float) -> None:
    scheduler = make_scheduler(fixed=1.0)
    jobs = [make_job(10, deadline=deadline) for deadline in (0.6, patience)]
    jobs[1][1][0].input_ids = jobs[0][1][0].input_ids
    for _, items in jobs:
        scheduler.add(Lane.INTERACTIVE, items)
    add(scheduler, 12)
    grant = scheduler.next_batch()
    assert grant is not None
    assert scheduler.take_expired() == ([] if patience > 1 else [job for job, _ in jobs])
    assert [len(group) for group in grant.groups] == ([2, 1] if patience > 1 else [1])


def test_what_runs_is_foreseen() -> None:
    scheduler = make_scheduler(cores=4)
    assert scheduler.seconds_running(0.0) == 0
    add(scheduler, 50)
    grant = scheduler.next_batch(1.0)
    assert grant is not None and grant.num_cores == 4 and grant.ends_at == pytest.approx(1.0125)
    assert scheduler.seconds_running(1.0) == pytest.approx(0.0125) and scheduler.seconds_running(2.0) == 0
    scheduler.release(grant)
    assert scheduler.seconds_running(1.0) == 0


@settings(max_examples=150)
@given(
    jobs=st.lists(
        st.tuples(
            st.integers(0, 1),
            st.sampled_from(Lane),
            st.lists(st.integers(1, 90), min_size=1, max_size=8),
            st.booleans(),
        ),
        min_size=1,
        max_size=14,
    ),
    fixed=st.floats(0, 1),
    cores=st.integers(1, 4),
    gpus=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_without_deadlines_nothing_changes(
    jobs: list[tuple[int, Lane, list[int], bool]], fixed: float, cores: int, gpus: bool, seed: int
) -> None:
    """What steps take is foreseen, or is not: the same batches in the same order, on as many cores."""

    def batches(foreseen: bool) -> list[tuple[list[tuple[int, ...]], int, int, Lane, int]]:
        scheduler = Scheduler(64, cores, num_devices=cores if gpus else 0)
        scheduler.add_model(128, 2.0)
        if foreseen:
            for model in range(2):
                scheduler.foresee(model, lambda num_tokens: fixed + num_tokens)
        random, running, seen, pending = Random(seed), list[Grant](), [], list(enumerate(jobs))
        while pending or running or scheduler.queued_items:
            if pending and random.random() < 0.5:
                number, (model, lane, sizes, twins) = pending.pop(0)
                job, items = make_job(*sizes, lane=lane)
                job.model = model
                for item in items:
                    item.input_ids = np.full(item.num_tokens, 0 if twins else number, np.int32)
                scheduler.add(lane, items, model)
            grant = scheduler.next_batch(random.random())
            if grant is not None:
                running.append(grant)
                groups = [tuple(item.num_tokens for item in group) for group in grant.groups]
                seen.append((groups, grant.num_cores, grant.num_tokens, grant.lane, grant.model))
            elif running:
                scheduler.release(running.pop(random.randrange(len(running))))
        return seen

    assert batches(True) == batches(False)


@settings(max_examples=100)
@given(
    jobs=st.lists(
        st.tuples(st.sampled_from(Lane), st.lists(st.integers(1, 40), min_size=1, max_size=8), st.floats(0.01, 3)),
        min_size=1,
        max_size=14,
    ),
    cores=st.integers(1, 3),
    random=st.randoms(use_true_random=False),
)
def test_no_core_idles_and_nothing_is_lost(
    jobs: list[tuple[Lane, list[int], float]], cores: int, random: Random
) -> None:
    """Each job is computed whole or found too late, and what is computed was not too late when it was begun."""
    scheduler, served, now, running = make_scheduler(cores=cores, fixed=0.05), set[int](), 0.0, list[Grant]()
    pending, late, made = list(jobs), list[Job](), []
    while pending or scheduler.queued_items or running:
        now += 0.02
        if pending and random.random() < 0.5:
            lane, sizes, patience = pending.pop()
            job, items = make_job(*sizes, lane=lane, deadline=now + patience)
            made.append((job, items))
            scheduler.add(lane, items)
        grant = scheduler.next_batch(now)
        for job in scheduler.take_expired():
            job.error = TimeoutError()
            late.append(job)
        if grant is not None:
            assert all(item.owner.request.deadline > now and not item.owner.done for item in grant.items)
            served.update(id(item) for item in grant.items)
            running.append(grant)
            continue
        assert not scheduler.queued_items or not scheduler.free_cores
        if running and random.random() < 0.7:
            scheduler.release(running.pop(0))
    for job, items in made:
        assert job in late or all(id(item) in served for item in items)
        assert job.queued_items == job.queued_tokens == 0
    assert len(late) == len(set(late)) and scheduler.queued_tokens == 0 and scheduler.seconds_running(0.0) == 0
