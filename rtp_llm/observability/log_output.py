"""Where the log goes: a thread writes it, so that a full disk, a closed pipe or a slow reader holds up nobody."""

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable

# What may wait, or be half written. A reader that has stopped reading costs so much memory, and then lines.
MAX_WAITING_BYTES = 4 << 20
_GATHER = 0.005  # seconds
_PATIENCE = 2.0  # seconds that the end of the process waits for what is still to be written


class LogOutput(logging.Handler):
    """Writes lines to a file descriptor, in order. What cannot be written, or not in time, is given up and counted.

    on_lost  is called with the number of lines given up, on the thread that finds out
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.on_lost: Callable[[int], None] = lambda count: None
        self._descriptor = descriptor
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._writing = False
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record's line; it is formatted here, since what it names may change."""
        try:
            line = self.format(record).encode("utf-8", "backslashreplace") + b"\n"
        except Exception:  # a line that cannot be formatted must not fail what it tells of
            line = b"a line of the log could not be formatted: " + repr(record.msg).encode()[:200] + b"\n"
        with self._changed:
            fits = self._waiting_bytes + len(line) <= MAX_WAITING_BYTES
            if fits:
                self._waiting.append(line)
                self._waiting_bytes += len(line)
                if len(self._waiting) == 1:
                    self._changed.notify_all()
        if not fits:
            self.on_lost(1)

    def flush(self) -> None:
        """Wait until all is written, for at most `_PATIENCE` seconds: also at the end of the process."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._writing, _PATIENCE)

    def _work(self) -> None:
        while True:
            # NOTE: whatever happens, MemoryError included, the lines that come later are still written.
            with contextlib.suppress(Exception):
                self._write_waiting()

    def _write_waiting(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting))
        # NOTE: lines that come together are written together: waking up for each costs a request 30 us.
        time.sleep(_GATHER)
        with self._changed:
            lines = list(self._waiting)
            self._waiting.clear()
            self._writing = True
        try:
            self._write(lines)
        finally:
            with self._changed:
                self._writing = False
                self._waiting_bytes -= sum(map(len, lines))
                self._changed.notify_all()

    def _write(self, lines: list[bytes]) -> None:
        num_left = len(lines)
        try:
            left = b"".join(lines)
            while left:
                left = left[os.write(self._descriptor, left) :]
                num_left = left.count(b"\n")
        except Exception:  # EPIPE, ENOSPC, no memory: there is nobody to tell but the metrics
            self.on_lost(num_left)
