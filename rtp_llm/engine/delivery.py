"""From a job's rows to its answer, and from the answer to whoever waits for it."""

import logging
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import InvalidStateError
from functools import partial
from itertools import groupby
from typing import TypeAlias

from rtp_llm.core import Output, Response, TaskType
from rtp_llm.engine.entity_finder import EntityFinder
from rtp_llm.engine.job import Job
from rtp_llm.engine.lane import Lane
from rtp_llm.engine.lane_threads import Work
from rtp_llm.errors import EngineFailure, RtpError
from rtp_llm.observability import Metrics
from rtp_llm.tasks import Task

logger = logging.getLogger(__name__)


# Tokens in which entities are found at once: 14 ms of an interpreter that others wait for.
_AT_ONCE = 512

# Says how many tokens it has looked at, again and again, and returns the outputs.
_Search: TypeAlias = Generator[int, None, Mapping[TaskType, Output]]


class Delivery:
    """Finishes jobs and wakes their waiters, in the thread that computed the last row.

    But for what takes long in Python, the entities of many tokens: those are found by `submit`'s threads, by turns.
    """

    def __init__(
        self,
        tasks: Mapping[TaskType, Task],
        metrics: Metrics,
        entities: EntityFinder,
        submit: Callable[[Work, Lane], None],
    ) -> None:
        self._tasks = tasks
        self._metrics = metrics
        self._entities = entities
        self._submit = submit

    def deliver(self, jobs: Iterable[Job], on_sent: Callable[[Job], None]) -> None:
        """Hand finished or failed jobs to their waiters, with one wake-up per event loop; `on_sent` is told of each."""
        now = [job for job in jobs if not self._is_put_off(job, on_sent)]
        for _, group in groupby(sorted(now, key=lambda job: id(job.loop)), key=lambda job: id(job.loop)):
            sent = [(job, self._outcome(job)) for job in group]
            _send(sent)
            for job, _ in sent:
                on_sent(job)

    def give_up(self, job: Job, error: RtpError) -> None:
        """Tell a waiter that there will be no answer, whatever became of the job."""
        _send([(job, error)])

    def _is_put_off(self, job: Job, on_sent: Callable[[Job], None]) -> bool:
        is_long = job.request.params.aggregation_strategy is not None and sum(job.num_tokens) > _AT_ONCE
        if job.error is not None or not is_long:
            return False
        try:
            self._submit(partial(self._find_some, job, self._search(job), on_sent), job.lane)
        except RuntimeError:  # the threads have ended
            return False
        return True

    def _find_some(self, job: Job, search: _Search, on_sent: Callable[[Job], None]) -> bool:
        """Look at the next tokens -> whether more are left; of what nobody waits for, none are."""
        looked_at = 0
        outcome: Response | Exception | None = None
        try:
            while not job.future.done():
                if looked_at >= _AT_ONCE:
                    return True
                looked_at += next(search)
        except StopIteration as end:
            outcome = self._response(job, end.value)
        except Exception as error:  # the border, as below
            outcome = _failure(job, error)
        if outcome is not None:
            _send([(job, outcome)])
        on_sent(job)
        return False

    def _outcome(self, job: Job) -> Response | Exception:
        if job.error is not None:
            return job.error
        try:
            return self._response(job, self._finish(job))
        except Exception as error:  # the border: an answer that cannot be finished must not end the batch thread
            return _failure(job, error)

    def _response(self, job: Job, outputs: Mapping[TaskType, Output]) -> Response:
        response = Response(
            outputs=dict(outputs),
            num_tokens=job.num_tokens,
            truncated=job.truncated,
            input_ids=job.input_ids,
            timings=job.timings(),
            batch_rows=job.batch_rows,
        )
        self._metrics.observe_response(response)
        return response

    def _finish(self, job: Job) -> Mapping[TaskType, Output]:
        params = job.request.params
        if job.chunks is not None and params.chunking is not None:
            return {task: job.chunks.finish(self._tasks[task], params, job.input_ids) for task in job.request.tasks}
        if params.aggregation_strategy is None:
            return self._scores(job)
        search = self._search(job)
        while True:
            try:
                next(search)
            except StopIteration as end:
                found: Mapping[TaskType, Output] = end.value
                return found

    def _search(self, job: Job) -> _Search:
        return (yield from self._entities.find(job, self._scores(job)))

    def _scores(self, job: Job) -> dict[TaskType, Output]:
        params, ids = job.request.params, job.input_ids
        return {task: self._tasks[task].finish(job.rows(task), params, ids) for task in job.request.tasks}


def _failure(job: Job, error: Exception) -> Exception:
    """What a waiter is told of an answer that cannot be finished."""
    if isinstance(error, RtpError):
        return error
    logger.error("request %s: finishing the answer failed", job.request.request_id, exc_info=error)
    return EngineFailure(f"finishing the answer failed: {type(error).__name__}")


def _send(settled: list[tuple[Job, Response | Exception]]) -> None:
    """To waiters of one event loop, or of none."""
    loop = settled[0][0].loop
    if loop is None:
        _settle(settled)
        return
    try:
        loop.call_soon_threadsafe(_settle, settled)
    except RuntimeError:
        logger.debug("an event loop closed before %d of its answers", len(settled))


def _settle(settled: list[tuple[Job, Response | Exception]]) -> None:
    for job, outcome in settled:
        if job.future.done():
            continue
        try:
            if isinstance(outcome, Exception):
                job.future.set_exception(outcome)
            else:
                job.future.set_result(outcome)
        except InvalidStateError:  # of one that another thread gives up meanwhile, as the device ends
            continue
