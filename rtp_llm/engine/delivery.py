"""From a job's rows to its answer, and from the answer to whoever waits for it."""

import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import InvalidStateError
from contextlib import suppress
from itertools import groupby

from rtp_llm.core import Output, Response, TaskType
from rtp_llm.engine.entity_finder import EntityFinder
from rtp_llm.engine.job import Job
from rtp_llm.errors import EngineFailure, RtpError
from rtp_llm.observability import Metrics
from rtp_llm.tasks import Task

logger = logging.getLogger(__name__)


class Delivery:
    """Finishes jobs and wakes their waiters, in the thread that computed the last row."""

    def __init__(self, tasks: Mapping[TaskType, Task], metrics: Metrics, entities: EntityFinder) -> None:
        self._tasks = tasks
        self._metrics = metrics
        self._entities = entities

    def deliver(self, jobs: Iterable[Job]) -> None:
        """Hand finished or failed jobs to their waiters, with one wake-up per event loop."""
        for _, group in groupby(sorted(jobs, key=lambda job: id(job.loop)), key=lambda job: id(job.loop)):
            _send([(job, self._outcome(job)) for job in group])

    def give_up(self, job: Job, error: RtpError) -> None:
        """Tell a waiter that there will be no answer, whatever became of the job."""
        _send([(job, error)])

    def _outcome(self, job: Job) -> Response | Exception:
        if job.error is not None:
            return job.error
        try:
            outputs = self._finish(job)
        except Exception as error:  # the border: an answer that cannot be finished must not end the batch thread
            if isinstance(error, RtpError):
                return error
            logger.exception("request %s: finishing the answer failed", job.request.request_id)
            return EngineFailure(f"finishing the answer failed: {type(error).__name__}")
        response = Response(
            outputs=outputs,
            num_tokens=job.num_tokens,
            truncated=job.truncated,
            input_ids=job.input_ids,
            timings=job.timings(),
            batch_rows=job.batch_rows,
        )
        self._metrics.observe_response(response)
        return response

    def _finish(self, job: Job) -> dict[TaskType, Output]:
        params, ids = job.request.params, job.input_ids
        if job.chunks is not None and params.chunking is not None:
            return {task: job.chunks.finish(self._tasks[task], params, ids) for task in job.request.tasks}
        finished = {task: self._tasks[task].finish(job.rows(task), params, ids) for task in job.request.tasks}
        return finished if params.aggregation_strategy is None else self._entities.find(job, finished)


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
        with suppress(InvalidStateError):  # of one that another thread gives up meanwhile, as the device ends
            if isinstance(outcome, Exception):
                job.future.set_exception(outcome)
            else:
                job.future.set_result(outcome)
