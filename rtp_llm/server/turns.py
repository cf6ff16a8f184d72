"""What takes long and holds the interpreter, beside the event loop: one thread, on which requests take turns.

Several threads would not compute more, since Python runs on one at a time, and each would keep the event loop waiting
for longer.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_TURN = 0.02  # seconds after which it is another request's turn
# What is done on the event loop all the same, in a millisecond or two: a body of so many bytes is decoded and checked,
INLINE_BYTES = 256 << 10
# and a text of so many characters is tokenised, or written by a chat template.
INLINE_CHARACTERS = 2000


class Turns:
    """A thread that starts with the first who needs it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="turns")

    async def join(self, pieces: Iterator[bytes]) -> bytes:
        """All pieces as one; cancelling the coroutine ends the work at the piece that is being made."""
        parts: list[bytes] = []
        while some := await self.call(_some, pieces):
            parts += some
        return b"".join(parts)

    async def call(
        self, work: Callable[Arguments, Result], *arguments: Arguments.args, **named: Arguments.kwargs
    ) -> Result:
        """What `work` returns, as one turn."""
        return await asyncio.wrap_future(self._thread.submit(work, *arguments, **named))

    async def call_by_size(
        self, num_bytes: int, work: Callable[Arguments, Result], *arguments: Arguments.args, **named: Arguments.kwargs
    ) -> Result:
        """What `work` on a body of so many bytes returns: on the event loop where that is quick, else as one turn."""
        if num_bytes <= INLINE_BYTES:
            return work(*arguments, **named)
        return await self.call(work, *arguments, **named)


def _some(pieces: Iterator[bytes]) -> list[bytes]:
    """What comes within a turn; nothing at the end."""
    made, end = [], time.monotonic() + _TURN
    for piece in pieces:
        made.append(piece)
        if time.monotonic() >= end:
            break
    return made
