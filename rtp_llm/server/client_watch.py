"""An eye on the client while its answer is made: whoever leaves, or has waited long enough, keeps nothing running."""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from rtp_llm.errors import DeadlineExceeded
from rtp_llm.server.errors import ClientLeft

Result = TypeVar("Result")

# NOTE: a timer costs a request 1.9 us, a task that watches from the start 4.6 us, running the work in a task of its own
# 12.4 us; most answers are ready before the timer fires.
_WATCH_AFTER = 0.1


def too_late(seconds: float) -> DeadlineExceeded:
    """What a client is told whose answer has taken longer than that."""
    return DeadlineExceeded(f"the answer was not ready after {seconds:g} seconds")


async def unless_client_leaves(
    work: Coroutine[Any, Any, Result],
    receive: Receive,
    seconds: float,
    told: Callable[[float], DeadlineExceeded] = too_late,
) -> Result:
    """The result of `work`; ClientLeft, with `work` cancelled, when the connection closes first.

    DeadlineExceeded as it is `told`, with `work` cancelled, when it takes longer than `seconds`.
    """
    watch = _Watch(receive, seconds)
    try:
        return await work
    except asyncio.CancelledError:
        if watch.client_left:
            raise ClientLeft from None
        if watch.expired:
            raise told(seconds) from None
        raise
    finally:
        watch.stop()


class _Watch:
    """Cancels the task that made it when the client leaves, or when `seconds` are over."""

    __slots__ = ("_deadline", "_owner", "_receive", "_timer", "_watcher", "client_left", "expired")

    def __init__(self, receive: Receive, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self.client_left = self.expired = False
        self._receive = receive
        self._owner = asyncio.current_task()
        self._watcher: asyncio.Task[None] | None = None
        self._deadline = time.monotonic() + seconds
        self._timer = loop.call_later(_WATCH_AFTER, self._start) if seconds > _WATCH_AFTER else self._set_alarm()

    def stop(self) -> None:
        """Look no more; the tasks are let go, whose tracebacks lead back here: all go without the garbage collector."""
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        self._watcher = self._owner = None

    def _start(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch())
        if math.isfinite(self._deadline):
            self._timer = self._set_alarm()

    def _set_alarm(self) -> asyncio.TimerHandle:
        left = max(self._deadline - time.monotonic(), 0.0)
        return asyncio.get_running_loop().call_later(left, self._expire)

    def _expire(self) -> None:
        if time.monotonic() < self._deadline:  # uvloop counts from the start of its round
            self._timer = self._set_alarm()
            return
        assert self._owner is not None
        self.expired = True
        self._owner.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        assert self._owner is not None
        self.client_left = True
        self._owner.cancel()
