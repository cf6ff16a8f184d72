"""SIGTERM, SIGHUP and SIGQUIT: by these a process ends without a word to Python, and what it was at stays half done."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_NAMES = ("SIGTERM", "SIGHUP", "SIGQUIT")  # Windows has the first


@contextmanager
def handled_by(end: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within it, `end` handles those that would end the process; what nohup has ignored, or others handle, stays so.

    Only of the main thread: others may set no handlers.
    """
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    replaced = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in replaced:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in replaced:
            # What `end` has set, or nobody; a handler that somebody else has set meanwhile stays.
            if signal.getsignal(number) in (end, signal.SIG_IGN, signal.SIG_DFL):
                signal.signal(number, signal.SIG_DFL)
