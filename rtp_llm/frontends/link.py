"""A front-end's way to the engine's process: what was asked there and waits for its answer."""

import asyncio
import itertools
import logging
import socket
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from rtp_llm.core import Request, Response, Whole
from rtp_llm.engine.tokenizer_pool import Tokenized
from rtp_llm.errors import NotReady
from rtp_llm.frontends.channel import Channel
from rtp_llm.frontends.messages import (
    Accept,
    Answer,
    Ask,
    Cancel,
    CatchUp,
    CaughtUp,
    End,
    Forget,
    LinesLost,
    Observed,
    Ping,
    Pong,
    Problems,
    Query,
    Ready,
    Reload,
)
from rtp_llm.server.errors import SHUTTING_DOWN

logger = logging.getLogger(__name__)

_GONE = "the engine's process has ended"
# Above it, what an answer is made of may take the event loop as long as many small ones do.
_LARGE_FRAME = 1 << 20
_MOST_OBSERVED = 64  # calls that are sent together
_OBSERVED_EVERY = 0.2  # seconds


class Link:
    """Asks over one end of a pair of sockets, on the event loop that has opened it.

    problems     by model, why it cannot answer; None where it can
    num_sharers  so many front-ends there are
    """

    def __init__(self, end: socket.socket, num_models: int, num_sharers: int) -> None:
        self.problems: tuple[str | None, ...] = (None,) * num_models
        self.num_sharers = num_sharers
        self._end = end
        self._is_closing = False
        self._lost = asyncio.Event()
        self._may_accept: bool | None = None  # None: the engine's process has not said yet
        self._is_told = asyncio.Event()
        self._on_end: Callable[[], None] = _nothing
        self._on_reload: Callable[[], None] = _nothing
        self._channel: Channel | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._wholes: weakref.WeakKeyDictionary[Whole, int] = weakref.WeakKeyDictionary()
        self._observed: list[tuple[int, str, tuple[Any, ...]]] = []

    async def open(self, end: Callable[[], None], reload: Callable[[], None]) -> None:
        """Speak with the engine's process, on this event loop.

        `end` is called for each signal that ends the server, and when that process has ended; `reload` for SIGHUP.
        """
        self._loop, self._on_end, self._on_reload = asyncio.get_running_loop(), end, reload
        self._channel = await Channel(self._receive, self._lose, largest_here=_LARGE_FRAME).open(self._end)

    async def may_accept(self) -> bool:
        """Say that this front-end can serve, and wait -> whether it is to; False: the server ends instead."""
        self._send(Ready())
        await self._is_told.wait()
        return self._may_accept is True

    def tell_lines_lost(self, count: int) -> None:
        """Lines of the log have been given up; from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._send, LinesLost(count))

    async def run(self, model: int, request: Request, tokenized: Tokenized | None) -> Response:
        """The answer of a model; cancelling the coroutine takes what waits of the request out of the queue."""
        whole = None
        if request.whole is not None:
            whole = self._number_of(request.whole)
        sent = request if whole is None else replace(request, whole=None)
        number, future = self._new()
        self._send(Ask(number, model, sent, tokenized, whole))
        try:
            response: Response = await future
        except asyncio.CancelledError:
            # Its answer may have come in this very round.
            if self._asked.pop(number, None) is not None:
                self._send(Cancel(number, request.end()))
            raise
        return response

    def give_up(self, model: int, request: Request) -> None:
        """Have a request counted that nobody waits for any more, before it was sent."""
        if request.end():
            is_late = request.deadline <= time.monotonic()
            self.observe(model, "observe_expired" if is_late else "observe_cancelled")

    async def query(self, model: int, what: Literal["waiting", "exposition"]) -> Any:
        """The answer to a question, after all that this front-end has counted."""
        self._tell_observed()
        number, future = self._new()
        self._send(Query(number, model, what))
        try:
            return await future
        finally:
            self._asked.pop(number, None)

    async def exposition(self) -> bytes:
        """The metrics of the whole server."""
        told: bytes = await self.query(0, "exposition")
        return told

    def observe(self, model: int, method: str, *arguments: Any) -> None:
        """Have something counted, soon."""
        self._observed.append((model, method, arguments))
        if len(self._observed) >= _MOST_OBSERVED:
            self._tell_observed()
        elif len(self._observed) == 1 and self._loop is not None:
            self._loop.call_later(_OBSERVED_EVERY, self._tell_observed)

    async def close(self) -> None:
        """Say what is still to be counted, and no more."""
        self._is_closing = True
        self._tell_observed()
        if self._channel is not None:
            self._channel.close()
            await self._lost.wait()

    def _new(self) -> tuple[int, "asyncio.Future[Any]"]:
        if self._channel is None or not self._channel.is_open:
            raise NotReady(_GONE)
        number = next(self._numbers)
        future = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        return number, future

    def _send(self, message: Any) -> None:
        if self._channel is not None:
            self._channel.send(message)

    def _tell_observed(self) -> None:
        if self._observed:
            self._send(Observed(self._observed))
            self._observed = []

    def _number_of(self, whole: Whole) -> int:
        number = self._wholes.get(whole)
        if number is None:
            number = self._wholes[whole] = next(self._numbers)
            weakref.finalize(whole, self._forget, number).atexit = False
        return number

    def _forget(self, number: int) -> None:
        """A whole is no more; whichever thread has let it go."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._send, Forget(number))

    def _receive(self, message: Any) -> None:
        match message:
            case Answer():
                self._settle(message)
            case Problems():
                self.problems = message.reasons
            case Ping():
                self._send(Pong())
            case CatchUp():
                self._tell_observed()
                self._send(CaughtUp())
            case Accept():
                self._decide(may_accept=True)
            case End():
                self._decide(may_accept=False)
                self._on_end()
            case Reload():
                self._on_reload()

    def _decide(self, *, may_accept: bool) -> None:
        """Whether this front-end is to serve at all; what is said later is of how it ends."""
        if self._may_accept is None:
            self._may_accept = may_accept
            self._is_told.set()

    def _settle(self, answer: Answer) -> None:
        future = self._asked.pop(answer.number, None)
        if future is None or future.done():
            return
        if isinstance(answer.outcome, Exception):
            future.set_exception(answer.outcome)
        else:
            future.set_result(answer.outcome)

    def _lose(self) -> None:
        reason = SHUTTING_DOWN if self._is_closing else _GONE
        self.problems = (reason,) * len(self.problems)
        asked, self._asked = self._asked, {}
        for future in asked.values():
            if not future.done():
                future.set_exception(NotReady(reason))
        self._lost.set()
        self._decide(may_accept=False)
        if not self._is_closing:
            logger.error("%s: requests under way cannot be answered, and so does this one", _GONE)
            self._on_end()


def _nothing() -> None:
    """Nobody has asked to be told yet."""
