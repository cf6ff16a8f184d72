"""The log of what cannot be read as HTTP: who sent it and why it cannot be; of a flood a line in a minute."""

import logging
import time
from collections.abc import Callable
from typing import TypeAlias

logger = logging.getLogger(__name__)

_SECONDS = 60.0
_MOST_SHOWN = 120  # characters of a reason, which may hold what was sent
_TLS = b"\x16\x03"  # how a handshake begins
Client: TypeAlias = tuple[str, int] | None  # address and port, where they are known


class UnreadableLog:
    """For the event loop alone: anybody can send anything, and a port scanner does."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = -float("inf")
        self._num_untold = 0

    def tell(self, client: Client, data: bytes, error: Exception, status: int) -> None:
        """That `client` sent `data`, which ended the parser with `error` and was answered with `status`."""
        # What was raised within the parser's calls is the context of the parser's own error.
        reason = "it looks like TLS" if data.startswith(_TLS) else str(error.__context__ or error)[:_MOST_SHOWN]
        words = "%s sent what cannot be read as an HTTP request (%s) and was answered with %d"
        self._tell(words, _name(client), reason, status)

    def tell_handshake(self, client: Client, reason: str) -> None:
        """That a TLS handshake with `client` has failed, so that nothing could be asked or answered."""
        self._tell("%s failed at the TLS handshake (%s)", _name(client), reason[:_MOST_SHOWN])

    def _tell(self, words: str, *values: object) -> None:
        now = self._clock()
        if now < self._next:
            self._num_untold += 1
            return
        untold = f"; since the last such line there were {self._num_untold} more" if self._num_untold else ""
        logger.info(words + "%s", *values, untold)
        self._next, self._num_untold = now + _SECONDS, 0


def _name(client: Client) -> str:
    return f"{client[0]}:{client[1]}" if client else "a client"
