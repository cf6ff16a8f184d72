"""Threads that work by turns: interactive work overtakes bulk work, and a long piece of it lets others in between."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeAlias

from rtp_llm.engine.lane import Lane

# One turn's work -> whether more is left, which then waits behind what waits already. It sees to its own errors.
Work: TypeAlias = Callable[[], bool]

# While both lanes wait, one turn in so many is the bulk lane's.
_BULK_TURN = 5


class LaneThreads:
    """A queue of work for each lane, and the threads that empty it."""

    def __init__(self, num_threads: int, name: str) -> None:
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
        self._changed = threading.Condition()
        self._waiting: dict[Lane, deque[Work]] = {lane: deque() for lane in Lane}
        self._num_running = self._overtaken = 0
        self._closing = False

    def submit(self, work: Work, lane: Lane) -> None:
        """Have this done; RuntimeError once `close` was called."""
        with self._changed:
            if self._closing:
                raise RuntimeError("the threads take no more work")
            self._add(work, lane)

    def close(self, timeout: float) -> None:
        """Take no more work and wait until all is done; after `timeout` seconds, what has no turn yet gets none."""
        with self._changed:
            self._closing = True
            self._changed.wait_for(lambda: not (self._num_running or any(self._waiting.values())), timeout)
            for waiting in self._waiting.values():
                waiting.clear()
            self._executor.shutdown(wait=False, cancel_futures=True)

    def _add(self, work: Work, lane: Lane) -> None:
        self._executor.submit(self._take_turn)
        self._waiting[lane].append(work)

    def _take_turn(self) -> None:
        with self._changed:
            lane = self._next_lane()
            if not self._waiting[lane]:  # given up by `close`
                return
            work = self._waiting[lane].popleft()
            self._num_running += 1
        is_left = False
        try:
            is_left = work()
        finally:
            with self._changed:
                self._num_running -= 1
                if is_left:
                    with suppress(RuntimeError):  # closed meanwhile: it has had its last turn
                        self._add(work, lane)
                self._changed.notify_all()

    def _next_lane(self) -> Lane:
        """Whose turn it is."""
        urgent, bulk = self._waiting[Lane.INTERACTIVE], self._waiting[Lane.BULK]
        if not urgent or (bulk and self._overtaken == _BULK_TURN - 1):
            self._overtaken = 0
            return Lane.BULK
        self._overtaken += bool(bulk)
        return Lane.INTERACTIVE
