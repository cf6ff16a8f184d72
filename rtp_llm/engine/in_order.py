"""Many requests of one caller, answered in order: what a library does where a server would refuse."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import Protocol, TypeAlias

from rtp_llm.core import Request, Response
from rtp_llm.engine.job import Job
from rtp_llm.errors import RtpError

# Requests in flight: so many in any case, more until there is work enough for all cores, and never more than that.
_LEAST_IN_FLIGHT = 8
_MOST_IN_FLIGHT = 256

Answer: TypeAlias = "Future[Response]"


class Starter(Protocol):
    """What is needed of an engine."""

    def submit(self, request: Request, future: Answer, *, may_refuse: bool) -> Job: ...

    def cancel(self, job: Job) -> None: ...

    def help_until(self, future: Answer) -> Response: ...

    @property
    def has_work_ahead(self) -> bool: ...


def run_in_order(engine: Starter, requests: Iterable[Request]) -> Iterator[Response]:
    """The answers. An error comes in its place, after the answers before it; the requests behind it are dropped."""
    waiting: deque[tuple[Job, Answer]] = deque()
    try:
        for request in requests:
            future: Answer = Future()
            while (job := _start(engine, request, future, len(waiting))) is None:
                yield engine.help_until(waiting[0][1])
                waiting.popleft()
            waiting.append((job, future))
        while waiting:
            yield engine.help_until(waiting[0][1])
            waiting.popleft()
    finally:
        for job, _ in waiting:
            engine.cancel(job)


def _start(engine: Starter, request: Request, future: Answer, num_waiting: int) -> Job | None:
    """None: one of those in flight is to be answered first, which makes room. A request alone is never refused."""
    if num_waiting == _MOST_IN_FLIGHT or (num_waiting >= _LEAST_IN_FLIGHT and engine.has_work_ahead):
        return None
    try:
        return engine.submit(request, future, may_refuse=num_waiting > 0)
    except RtpError:
        if num_waiting == 0:
            raise
        return None  # what is not for want of room will be wrong again, when all before it is answered
