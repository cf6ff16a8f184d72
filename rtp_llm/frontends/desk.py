"""Where the engine's process serves one front-end."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from rtp_llm.core import Request, Response, Whole
from rtp_llm.engine.engine import Engine
from rtp_llm.engine.job import Job
from rtp_llm.errors import EngineFailure, NotReady, RtpError
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
from rtp_llm.server.errors import unforeseen

logger = logging.getLogger(__name__)

# An answer to more may hold a vector, or an entity, for each of them: objects that take 3 us each to pickle.
_MANY_TOKENS = 1 << 14


class Desk:
    """Takes a front-end's requests to the engines, and their answers back.

    exposition   the metrics of the whole server
    on_ready     is called when the front-end could accept connections
    on_lines_lost  is told of lines that its log has lost
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        exposition: Callable[[], Awaitable[bytes]],
        on_ready: Callable[[], None],
        on_lines_lost: Callable[[int], None],
    ) -> None:
        self._engines = engines
        self._exposition = exposition
        self._on_ready = on_ready
        self._on_lines_lost = on_lines_lost
        self._channel: Channel | None = None
        self._loop = asyncio.get_running_loop()
        self._jobs: dict[int, tuple[Engine, Job]] = {}
        self._wholes: dict[int, Whole] = {}
        self._problems: Problems | None = None
        self._num_pings = 0
        self._catching_up: list[asyncio.Future[None]] = []
        self._answering: set[asyncio.Task[None]] = set()

    async def open(self, end: socket.socket) -> None:
        """Serve whoever has the other end."""
        self._channel = await Channel(self._receive, self._lose, _instead).open(end)
        self.tell_problems()

    def tell_problems(self) -> None:
        """Tell which models cannot answer, where that has changed."""
        problems = Problems(tuple(map(problem_of, self._engines)))
        if problems != self._problems:
            self._problems = problems
            self._send(problems)

    def tell_accept(self) -> None:
        """The front-end may accept connections."""
        self._send(Accept())

    async def catch_up(self) -> None:
        """Have counted what the front-end has counted, or has until it went away."""
        told = self._loop.create_future()
        self._catching_up.append(told)
        self._send(CatchUp())
        await told

    def tell_end(self) -> None:
        """A signal ends the server: in order, and where it is the second, at once."""
        self._send(End())

    def tell_reload(self) -> None:
        """The keys are to be read again."""
        self._send(Reload())

    def ping(self) -> int:
        """Ask whether the front-end's event loop turns -> how often this was asked since it last said so."""
        self._num_pings += 1
        if self._num_pings == 1:
            self._send(Ping())
        return self._num_pings - 1

    def close(self) -> None:
        """Speak no more; what was asked is given up."""
        if self._channel is not None:
            self._channel.close()

    def _receive(self, message: Any) -> None:
        match message:
            case Ask():
                self._ask(message)
            case Cancel():
                self._cancel(message)
            case Observed():
                for model, method, arguments in message.calls:
                    getattr(self._engines[model].metrics, method)(*arguments)
            case Query(what="waiting"):
                self._send(Answer(message.number, self._engines[message.model].metrics.waiting()))
            case Query():
                self._answering.add(task := self._loop.create_task(self._expose(message.number)))
                task.add_done_callback(self._answering.discard)
            case Forget():
                self._wholes.pop(message.whole, None)
            case Pong():
                self._num_pings = 0
            case CaughtUp():
                self._settle_caught_up()
            case Ready():
                self._on_ready()
            case LinesLost():
                self._on_lines_lost(message.num_lines)

    def _ask(self, ask: Ask) -> None:
        request = ask.request
        if ask.whole is not None:
            request = replace(request, whole=self._wholes.setdefault(ask.whole, Whole()))
        future: asyncio.Future[Response] = self._loop.create_future()
        engine = self._engines[ask.model]
        try:
            job = engine.submit(request, future, self._loop, tokenized=ask.tokenized)
        except Exception as error:
            self._send(Answer(ask.number, _told(error, request)))
            return
        self._jobs[ask.number] = engine, job
        future.add_done_callback(partial(self._settle, ask.number))

    def _settle(self, number: int, future: "asyncio.Future[Response]") -> None:
        _, job = self._jobs.pop(number, (None, None))
        if job is None or future.cancelled():
            return
        error = future.exception()
        if error is not None:
            self._send(Answer(number, _told(error, job.request)))
        elif job.total_tokens <= _MANY_TOKENS or self._channel is None:
            self._send(Answer(number, future.result()))
        else:
            self._channel.send_apart(Answer(number, future.result()))

    def _cancel(self, cancel: Cancel) -> None:
        engine, job = self._jobs.pop(cancel.number, (None, None))
        if engine is None or job is None:
            return
        if not cancel.is_counted:
            job.request.end()
        _give_up(engine, job)

    async def _expose(self, number: int) -> None:
        try:
            self._send(Answer(number, await self._exposition()))
        except Exception:  # the border: a metric that cannot be read must not leave who asks for all without an answer
            logger.exception("the metrics cannot be read")
            self._send(Answer(number, EngineFailure("the metrics cannot be read; the server's log tells why")))

    def _settle_caught_up(self) -> None:
        waiting, self._catching_up = self._catching_up, []
        for one in waiting:
            if not one.done():
                one.set_result(None)

    def _lose(self) -> None:
        """The front-end has gone, and with it all clients that it spoke with."""
        for engine, job in list(self._jobs.values()):
            _give_up(engine, job)
        self._jobs.clear()
        self._wholes.clear()
        self._settle_caught_up()

    def _send(self, message: Any) -> None:
        if self._channel is not None:
            self._channel.send(message)


def _give_up(engine: Engine, job: Job) -> None:
    """Nobody waits for it; whoever makes an answer of rows that are computed already looks at the future."""
    engine.cancel(job)
    job.future.cancel()


def problem_of(engine: Engine) -> str | None:
    """Why an engine cannot answer; None where it can."""
    try:
        engine.check_health()
    except NotReady as error:
        return error.message
    return None


def _told(error: BaseException, request: Request) -> RtpError:
    """An error as it is sent: the unforeseen is logged here, where its traceback is."""
    if isinstance(error, RtpError):
        return _known(error)
    logger.error("request %s failed", request.request_id, exc_info=error)
    return unforeseen(request.request_id)


def _known(error: RtpError) -> RtpError:
    """An error of this project's own class: one that a user's code has derived is known in no other process."""
    kind = next(one for one in type(error).__mro__ if one.__module__ == RtpError.__module__)
    if kind is type(error):
        return error
    known: RtpError = kind.__new__(kind, *error.args)
    known.__dict__.update(error.__dict__)
    return known


def _instead(message: Any, error: Exception) -> Answer | None:
    """What a front-end is told where an answer cannot be sent."""
    if not isinstance(message, Answer):
        return None
    return Answer(message.number, EngineFailure(f"the answer cannot be sent: {type(error).__name__}"))
