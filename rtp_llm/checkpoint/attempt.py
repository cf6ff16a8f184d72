"""Work of a library that may wait for ever for a host that says nothing."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


class Attempt:
    """One try of such work, on a thread of its own, which is left behind where it stalls.

    begun     set by the work once it is under way, from when on it sees to its own time
    given_up  set when nobody waits for the work any more: what it still does, it may stop
    """

    def __init__(self) -> None:
        self.begun, self.given_up = threading.Event(), threading.Event()

    def run(self, work: Callable[[], Result], seconds: float) -> Result:
        """The work's result; TimeoutError where it has neither begun nor ended after `seconds`."""
        future: Future[Result] = Future()
        threading.Thread(target=self._work, args=(work, future), name="attempt", daemon=True).start()
        try:
            if not self.begun.wait(seconds):
                raise TimeoutError(f"no answer within {seconds:g} seconds")
            return future.result()
        except BaseException:
            self.given_up.set()
            raise

    def _work(self, work: Callable[[], Result], future: "Future[Result]") -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
        self.begun.set()
