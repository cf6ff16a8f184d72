"""The hot path: bytes of one dialect -> Request -> the engine -> bytes. Plain ASGI, no framework in between."""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import msgspec
from starlette.types import Receive

from rtp_llm.config import ServerConfig
from rtp_llm.core import ModelInfo, Request, Response
from rtp_llm.errors import DeadlineExceeded, RequestTooLarge
from rtp_llm.observability import Metrics
from rtp_llm.server.admission import Admission
from rtp_llm.server.body import decode, read_body
from rtp_llm.server.errors import ClientLeft, Headers
from rtp_llm.server.exchange import Exchange
from rtp_llm.server.scheduling import scheduled

Body = TypeVar("Body")
Result = TypeVar("Result")

# NOTE: a timer costs a request 1.9 us, a task that watches from the start 4.6 us, running the work in a task of its own
# 12.4 us; most answers are ready before the timer fires.
_WATCH_AFTER = 0.1


class Token(Protocol):
    """One token of a text and the characters it covers, start:stop; a special token covers none."""

    @property
    def id(self) -> int: ...

    @property
    def text(self) -> str: ...

    @property
    def special(self) -> bool: ...

    @property
    def start(self) -> int | None: ...

    @property
    def stop(self) -> int | None: ...


class EngineLike(Protocol):
    """All that the server knows of an engine."""

    metrics: Metrics

    def info(self) -> ModelInfo:
        """The loaded model; NotReady before there is one."""

    def check_health(self) -> None:
        """Raise NotReady, with the reason, while requests cannot be answered."""

    async def run(self, request: Request) -> Response:
        """Answer one request; cancelling the coroutine drops what still waits of it."""

    def tokens(self, text: str, *, add_special_tokens: bool = True) -> Sequence[Token]:
        """The tokens of a text as the model would read it, without prompt or limit."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; InvalidRequest for an id that is out of the vocabulary."""

    def prompt(self, name: str) -> str:
        """The text of the prompt called `name`, one of the model's."""


@dataclass(frozen=True, slots=True)
class Dialect(Generic[Body]):
    """One wire form of a task.

    decoder     bytes -> the dialect's own body type
    to_request  what the body asks for; InvalidRequest where this model or these limits cannot serve it
    render      the answer in pieces; the event loop serves others between two of them
    render_on_thread  for a `render` that computes: it is run beside the event loop
    """

    decoder: msgspec.json.Decoder[Body]
    to_request: Callable[[Body, ModelInfo, ServerConfig, str], Request]
    render: Callable[[Body, Response, ModelInfo], Iterator[bytes]]
    render_on_thread: bool = False


def check_count(count: int, config: ServerConfig, param: str) -> None:
    """RequestTooLarge for more inputs than a request may have."""
    limit = config.max_client_batch_size
    if count > limit:
        message = f"{count} inputs are over the limit of {limit} (max_client_batch_size): send fewer at a time"
        raise RequestTooLarge(message, param=param)


class InferenceRoutes:
    """Answers in any dialect, within the limits of `admission`."""

    def __init__(self, engine: EngineLike, config: ServerConfig, admission: Admission) -> None:
        self._engine = engine
        self._config = config
        self._admission = admission

    async def _read(self, exchange: Exchange) -> bytes:
        return await read_body(exchange, self._config.max_body_bytes, self._config.body_timeout)

    async def answer(self, dialect: Dialect[Any], exchange: Exchange) -> None:
        """Read, run, respond; every failure leaves as an exception."""
        seconds = self._admission.seconds(exchange.headers)
        received = await self._read(exchange)
        body = decode(dialect.decoder, received)
        info = self._engine.info()
        request = dialect.to_request(body, info, self._config, exchange.request_id)
        self._admission.check_size(request, len(received))
        request = scheduled(request, exchange.headers, seconds)
        await self._admission.enter()
        try:
            response = await _unless_client_leaves(self._engine.run(request), exchange.receive, seconds)
            began = time.perf_counter()
            pieces = dialect.render(body, response, info)
            content = await (asyncio.to_thread(b"".join, pieces) if dialect.render_on_thread else _join(pieces))
        finally:
            self._admission.leave()
        self._engine.metrics.observe_encode(time.perf_counter() - began)
        await exchange.respond(200, content, _headers(response))


async def _join(pieces: Iterator[bytes]) -> bytes:
    parts = [next(pieces)]
    for piece in pieces:
        parts.append(piece)
        await asyncio.sleep(0)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _headers(response: Response) -> Headers:
    tokens, timings = response.total_tokens, response.timings
    stages = (
        f"tokenize;dur={timings.tokenize * 1e3:.3f}, queue;dur={timings.queue * 1e3:.3f}, "
        f"compute;dur={timings.compute * 1e3:.3f}, total;dur={timings.total * 1e3:.3f}"
    )
    return [
        (b"usage", b'{"prompt_tokens":%d,"total_tokens":%d}' % (tokens, tokens)),
        (b"server-timing", stages.encode()),
    ]


async def _unless_client_leaves(work: Coroutine[Any, Any, Result], receive: Receive, seconds: float) -> Result:
    """The result of `work`; ClientLeft, with `work` cancelled, when the connection closes first.

    DeadlineExceeded, with `work` cancelled, when it takes longer than `seconds`.
    """
    watch = _Watch(receive, seconds)
    try:
        return await work
    except asyncio.CancelledError:
        if watch.client_left:
            raise ClientLeft from None
        if watch.expired:
            raise DeadlineExceeded(f"the answer was not ready after {seconds:g} seconds") from None
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
        self._deadline = loop.time() + seconds
        self._timer = loop.call_later(_WATCH_AFTER, self._start) if seconds > _WATCH_AFTER else self._set_alarm()

    def stop(self) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def _start(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch())
        if math.isfinite(self._deadline):
            self._timer = self._set_alarm()

    def _set_alarm(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_at(self._deadline, self._expire)

    def _expire(self) -> None:
        assert self._owner is not None
        self.expired = True
        self._owner.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        assert self._owner is not None
        self.client_left = True
        self._owner.cancel()
