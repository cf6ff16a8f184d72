"""A device: the cores that models share, the threads that drive them, and the queue of all their work."""

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Protocol

from rtp_llm.core import Response
from rtp_llm.engine.job import Job
from rtp_llm.engine.lane import Lane
from rtp_llm.engine.scheduler import BULK_SHARE, Grant, Scheduler
from rtp_llm.errors import DeviceLost

logger = logging.getLogger(__name__)

# Batch threads take all cores there are; the event loop, which needs little, must not wait its turn among them: at more
# load than can be computed, refusals would come as late as answers.
_NICENESS = 5
SHUTTING_DOWN = "the server is shutting down"
_FORKED = (
    "this process was forked from the one that loaded the model, and has none of its threads: load the model here, or "
    'start processes by multiprocessing\'s "spawn"'
)


class Tenant(Protocol):
    """A model, as its device knows it."""

    def process(self, grant: Grant) -> None:
        """Compute a batch of its items, give its cores back, and hand out what it finished."""

    def expire(self, job: Job) -> bool:
        """Give up a job of its that is too late; False when it has an outcome. The device's lock is held."""

    def resolve(self, jobs: list[Job]) -> None:
        """Tell whoever waits for these jobs of its, all of which have an outcome."""

    def seconds_of_work(self) -> Mapping[Lane, float]:
        """What waits for it, by lane, in seconds of the device."""

    def core_seconds(self, num_tokens: float) -> float:
        """What one core needs for a batch of so many tokens; 0 before anything is measured."""

    def stop_intake(self, timeout: float) -> None:
        """Take no more requests, and wait until what came in is queued, but no longer than `timeout` seconds."""

    def end(self, reason: str) -> None:
        """Fail all that is left."""

    def release(self) -> None:
        """Nothing is computed any more: end what was started to compute."""


class Device:
    """One thread a core takes batches; `changed` guards the scheduler and all that its tenants keep of their jobs.

    When a thread dies, all that waits for any model fails, `failure` says why, and `on_failure` is called, once: a
    device that has lost a thread is not repaired, since nobody knows what else is broken, but ended, for a supervisor
    to start anew.

    closing  why no more requests are taken; None while they are
    ended    why nothing is computed any more; None while it is
    """

    def __init__(self, batch_tokens: int, num_cores: int, bulk_share: float = BULK_SHARE, num_devices: int = 0) -> None:
        """`batch_tokens` is the step's budget of the first tenant, whose tokens cost 1; the rest is `Scheduler`'s."""
        self.scheduler = Scheduler(batch_tokens, num_cores, bulk_share, num_devices)
        self.changed = threading.Condition()
        self.closing: str | None = None
        self.ended: str | None = None
        self.failure: str | None = None
        self.on_failure: Callable[[], None] = _nothing
        self._tenants: list[Tenant] = []
        self._unreleased: list[Tenant] = []
        self._waking: set[asyncio.AbstractEventLoop | None] = set()
        self._drained = False
        self._process = os.getpid()
        self._threads = [threading.Thread(target=self._work, name=f"batch-{i}", daemon=True) for i in range(num_cores)]
        for thread in self._threads:
            thread.start()

    def attach(self, tenant: Tenant, batch_tokens: int, token_cost: float = 1.0) -> int:
        """A model that computes here from now on -> its number.

        batch_tokens  the budget of its steps
        token_cost    about what one of its tokens costs beside one of the first tenant's
        """
        with self.changed:
            self._tenants.append(tenant)
            self._unreleased.append(tenant)
            number = self.scheduler.add_model(batch_tokens, token_cost) if len(self._tenants) > 1 else 0
            self.scheduler.foresee(number, tenant.core_seconds)
            return number

    @property
    def problem(self) -> str | None:
        """Why nothing can be computed; None while all is well."""
        if self.failure is None and not all(thread.is_alive() for thread in self._threads):
            return "a batch thread has died"
        return self.failure

    @property
    def refusal(self) -> str | None:
        """Why no more requests are taken; None while they are."""
        if os.getpid() != self._process:
            return _FORKED
        return self.failure or self.closing

    def seconds_of_work(self, besides: Tenant) -> list[Mapping[Lane, float]]:
        """What waits for each other tenant, by lane, in seconds."""
        return [tenant.seconds_of_work() for tenant in self._tenants if tenant is not besides]

    def seconds_running(self) -> float:
        """What is left of the batches that run, in seconds of the device."""
        return self.scheduler.seconds_running(time.monotonic())

    def wake_after_this_round(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake an idle core when the loop has seen to all that arrived with this request, not for its first alone."""
        if loop not in self._waking:
            self._waking.add(loop)
            loop.call_soon(self.wake, loop)

    def wake(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """There is work for an idle core."""
        with self.changed:
            self._waking.discard(loop)
            self.changed.notify()

    def release(self, grant: Grant) -> None:
        """The batch is done, and whoever can go on is woken; the lock is held."""
        self.scheduler.release(grant)
        if self._drained:  # who waits for these cores may find that others have taken the last of the queue
            self.changed.notify_all()
        elif self.scheduler.queued_tokens:
            self.changed.notify()

    def help_until(self, future: "Future[Response]") -> Response:
        """Compute whatever waits while `future` is open; then its result."""
        while not future.done():
            grant, late = self._take()
            self._resolve(late)
            if grant is None and not late:
                break
            if grant is not None:
                try:
                    self._tenants[grant.model].process(grant)
                except DeviceLost as error:  # as in a batch thread; whoever waits has been told
                    self.die(error)
        return future.result()

    def close(self, timeout: float = 30.0, reason: str = SHUTTING_DOWN) -> None:
        """Take no requests, compute what is in, end the threads; what is left after `timeout` seconds fails.

        `reason` is what whoever asks from now on is told.
        """
        if os.getpid() != self._process:  # all that there is to end belongs to another process
            return
        deadline = time.monotonic() + timeout
        self.closing = reason
        for tenant in self._tenants:
            tenant.stop_intake(max(deadline - time.monotonic(), 0.0))
        with self.changed:
            self._drained = True
            self.changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(deadline - time.monotonic(), 0.0))
        self._end(f"{reason}; this request was not done in time")
        while self._unreleased:  # nothing is left to whoever closes it again
            self._unreleased.pop().release()

    def _end(self, reason: str) -> None:
        """Nothing is computed from now on: whoever waits is told."""
        with self.changed:
            self.ended = reason
            self.changed.notify_all()
        for tenant in list(self._tenants):
            tenant.end(reason)

    def _work(self) -> None:
        """A batch thread: take, compute, deliver, until the device closes and the queue is dry."""
        try:
            _step_back()
            while (grant := self._wait_for_grant()) is not None:
                self._tenants[grant.model].process(grant)
        except BaseException as error:  # whatever ends this thread, nobody may wait for it
            self.die(error)

    def die(self, error: BaseException) -> None:
        """Nothing is computed any more, for this reason."""
        if isinstance(error, DeviceLost):  # its message says it all
            reason = str(error)
            logger.critical("%s", reason)
        else:
            reason = f"a batch thread has died ({type(error).__name__})"
            logger.critical("a batch thread has died", exc_info=error)
        with self.changed:
            first, self.failure = self.failure is None, self.failure or reason
        self._end(self.failure)
        if first:
            self.on_failure()

    def _wait_for_grant(self) -> Grant | None:
        while True:
            with self.changed:
                if self.ended is not None:
                    return None
                grant, late = self._take()
                if grant is None and not late:
                    if self._drained and self.scheduler.queued_tokens == 0:
                        return None
                    self.changed.wait()
            self._resolve(late)
            if grant is not None:
                return grant

    def _take(self) -> tuple[Grant | None, list[Job]]:
        """The next batch, if any, and jobs that came too late; another thread is woken when more waits."""
        with self.changed:
            grant = self.scheduler.next_batch(time.monotonic())
            late = [job for job in self.scheduler.take_expired() if self._tenants[job.model].expire(job)]
            if grant is not None and self.scheduler.queued_tokens and self.scheduler.free_cores:
                self.changed.notify()
        return grant, late

    def _resolve(self, late: list[Job]) -> None:
        for number in {job.model for job in late}:
            self._tenants[number].resolve([job for job in late if job.model == number])


def _step_back() -> None:
    """Let this thread, where the system has priorities of threads and changes them, run after the process's others."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):  # a sandbox may forbid it (systemd's SystemCallFilter=~@resources)
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS)


def _nothing() -> None:
    """Nobody asked to be told."""
