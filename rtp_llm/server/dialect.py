"""The hot path: bytes of one dialect -> Request -> the engine -> bytes. Plain ASGI, no framework in between."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import msgspec
from starlette.types import Receive

from rtp_llm.config import ServerConfig
from rtp_llm.core import ModelInfo, Request, Response
from rtp_llm.errors import Overloaded, RequestTooLarge
from rtp_llm.observability import Metrics
from rtp_llm.server.body import decode, read_body
from rtp_llm.server.errors import ClientLeft, Headers
from rtp_llm.server.exchange import Exchange

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

    def tokens(self, text: str) -> Sequence[Token]:
        """The tokens of a text as the model would read it, without prompt or limit."""


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
    """Answers in any dialect, with one limit on what is in flight."""

    def __init__(self, engine: EngineLike, config: ServerConfig) -> None:
        self._engine = engine
        self._config = config
        self._in_flight = 0

    async def _read(self, exchange: Exchange) -> bytes:
        return await read_body(exchange, self._config.max_body_bytes, self._config.body_timeout)

    async def answer(self, dialect: Dialect[Any], exchange: Exchange) -> None:
        """Read, run, respond; every failure leaves as an exception."""
        body = decode(dialect.decoder, await self._read(exchange))
        info = self._engine.info()
        request = dialect.to_request(body, info, self._config, exchange.request_id)
        limit = self._config.concurrency_limit
        if self._in_flight >= limit:
            raise Overloaded(f"{limit} requests are in flight, the most allowed (concurrency_limit): try again shortly")
        self._in_flight += 1
        try:
            response = await _unless_client_leaves(self._engine.run(request), exchange.receive)
            pieces = dialect.render(body, response, info)
            content = await (asyncio.to_thread(b"".join, pieces) if dialect.render_on_thread else _join(pieces))
        finally:
            self._in_flight -= 1
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


async def _unless_client_leaves(work: Coroutine[Any, Any, Result], receive: Receive) -> Result:
    """The result of `work`; ClientLeft, with `work` cancelled, when the connection closes first."""
    watch = _ClientWatch(receive)
    try:
        return await work
    except asyncio.CancelledError:
        if watch.client_left:
            raise ClientLeft from None
        raise
    finally:
        watch.stop()


class _ClientWatch:
    """Cancels the task that made it when the client leaves."""

    __slots__ = ("_owner", "_receive", "_timer", "_watcher", "client_left")

    def __init__(self, receive: Receive) -> None:
        loop = asyncio.get_running_loop()
        self.client_left = False
        self._receive = receive
        self._owner = asyncio.current_task()
        self._watcher: asyncio.Task[None] | None = None
        self._timer = loop.call_later(_WATCH_AFTER, self._start)

    def stop(self) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def _start(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        assert self._owner is not None
        self.client_left = True
        self._owner.cancel()
