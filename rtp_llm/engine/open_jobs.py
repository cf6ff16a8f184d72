"""The jobs of one model, from their tokens to their outcome: answered, failed, too late, or left by their client."""

import time
from collections.abc import Iterable
from contextlib import suppress

from rtp_llm.core import Item
from rtp_llm.engine.delivery import Delivery
from rtp_llm.engine.device import Device
from rtp_llm.engine.gate import Gate
from rtp_llm.engine.intake import expired
from rtp_llm.engine.job import Job
from rtp_llm.engine.lane import Lane
from rtp_llm.engine.lane_queue import key_of
from rtp_llm.engine.outcome import ItemRows, Outcome, item_failure
from rtp_llm.engine.result_cache import ResultCache
from rtp_llm.engine.route_encoder import LookedUp
from rtp_llm.errors import DeadlineExceeded, NotReady
from rtp_llm.observability import Metrics


class OpenJobs:
    """Those that are in flight, `by_lane`. The device's lock guards their counters, the gate and the result cache."""

    def __init__(self, device: Device, gate: Gate, cache: ResultCache, delivery: Delivery, metrics: Metrics) -> None:
        self.by_lane: dict[Lane, set[Job]] = {lane: set() for lane in Lane}
        self._device = device
        self._gate = gate
        self._cache = cache
        self._delivery = delivery
        self._metrics = metrics

    def count(self, lane: Lane) -> int:
        """Those of a lane but for those whose answer is on its way to their client."""
        return sum(not job.done for job in tuple(self.by_lane[lane]))

    def expect(self, job: Job, num_tokens: int) -> None:
        """So many tokens are on their way from a tokeniser, which others must wait for."""
        with self._device.changed:
            self._gate.announce(job, num_tokens)

    def expect_no_more(self, job: Job) -> None:
        """What was expected of a job and has not come will not come."""
        with self._device.changed:
            self._gate.announce(job, -job.announced)

    def enqueue(self, job: Job, items: list[Item]) -> None:
        """Queue what must be computed; what the tokens say, or the cache knows, is there at once."""
        with self._device.changed:
            self._gate.announce(job, -sum(item.num_own_tokens for item in items))
            if job.done:
                return
            if self._device.ended is not None:
                self._mark_failed(job, NotReady(self._device.ended))
            else:
                waiting = [item for item in items if not self._is_answered(job, item)]
                self._device.scheduler.add(job.lane, waiting, job.model)
            is_done = job.done
        if is_done:
            self.resolve([job])

    def store(self, outcomes: Iterable[Outcome]) -> list[Job]:
        """Hand what was computed to the jobs that wait for it -> those that are now done. The device's lock is held."""
        return [job for outcome in outcomes for job in self._store(outcome)]

    def cancel(self, job: Job) -> None:
        """Nobody waits for it any more."""
        with self._device.changed:
            if not job.done:
                job.cancelled = True
                self._gate.announce(job, -job.announced)
                self._device.scheduler.drop(job)
                self.by_lane[job.lane].discard(job)
                if not job.request.end():
                    return
                # Whoever waits gives up at the deadline too, and may be the first to notice.
                if job.request.deadline <= time.monotonic():
                    self._metrics.observe_expired()
                else:
                    self._metrics.observe_cancelled()

    def fail(self, job: Job, error: Exception) -> None:
        """Give it this outcome, unless it has one, and tell whoever waits."""
        with self._device.changed:
            failed = self._mark_failed(job, error)
        if failed:
            self.resolve([job])

    def expire(self, job: Job) -> bool:
        """Give up a job that is too late; False when it has an outcome. The device's lock is held."""
        return self._mark_failed(job, expired())

    def end(self, reason: str) -> None:
        """Nothing is computed from now on: whoever waits is told."""
        for jobs in self.by_lane.values():
            for job in list(jobs):
                with self._device.changed:
                    self._mark_failed(job, NotReady(reason))
                # Also where it has an outcome already: the thread may have died on the way to deliver it.
                self._delivery.give_up(job, NotReady(reason))
                jobs.discard(job)

    def resolve(self, jobs: list[Job]) -> None:
        """Tell whoever waits for these jobs, all of which have an outcome."""
        self._delivery.deliver(jobs, lambda job: self.by_lane[job.lane].discard(job))

    def _is_answered(self, job: Job, item: Item) -> bool:
        """Whether nothing has to be computed for an item, of which its job then knows."""
        if isinstance(item, LookedUp):
            job.answer()
            return True
        return bool(self._cache.capacity) and self._recall(job, item)

    def _recall(self, job: Job, item: Item) -> bool:
        rows = self._cache.get(key_of(item))
        self._metrics.observe_cache(hit=rows is not None)
        if rows is None:
            return False
        self._keep(job, item, rows)
        return True

    def _store(self, outcome: Outcome) -> list[Job]:
        """Hand an item's rows to its job, and to those of identical items. -> jobs that are now done."""
        finished: list[Job] = []
        for item in outcome.items:
            job: Job = item.owner
            if job.done:
                continue
            if outcome.error is not None:
                self._fail_input(job, item, outcome.error)
            else:
                self._keep(job, item, outcome.rows)
            if job.done:
                finished.append(job)
        if self._cache.capacity and outcome.error is None:
            with suppress(MemoryError):  # what does not fit is not kept
                self._cache.put(key_of(outcome.items[0]), outcome.rows)
        return finished

    def _keep(self, job: Job, item: Item, rows: ItemRows) -> None:
        """Copy an item's rows into its job; where there is no memory for these, that is the job's own failure."""
        try:
            job.store(item, rows)
        except Exception as error:  # the border: one request's answer must not end the batch thread
            self._fail_input(job, item, error)

    def _fail_input(self, job: Job, item: Item, error: Exception) -> None:
        self._metrics.observe_failed_input()
        self._mark_failed(job, item_failure(item, error))

    def _mark_failed(self, job: Job, error: Exception) -> bool:
        """False when it has an outcome already."""
        if job.done:
            return False
        job.error = error
        self._gate.announce(job, -job.announced)
        if isinstance(error, DeadlineExceeded) and job.request.end():
            self._metrics.observe_expired()
        self._device.scheduler.drop(job)
        return True
