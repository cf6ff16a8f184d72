"""One RPC: bytes -> message -> the engine -> message, with the border at which every failure becomes a status."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias, TypeVar

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from rtp_llm.config import ServerConfig
from rtp_llm.core import Request, Response
from rtp_llm.errors import (
    DeadlineExceeded,
    EngineFailure,
    InvalidRequest,
    NotReady,
    Overloaded,
    RtpError,
    UnknownModel,
    UnsupportedTask,
)
from rtp_llm.observability import Answered, Metrics, Observer, Seen
from rtp_llm.server.admission import Admission
from rtp_llm.server.catalog import Catalog
from rtp_llm.server.dialect import MEMORY_BYTES, limited
from rtp_llm.server.engine_like import EngineLike
from rtp_llm.server.errors import as_rtp_error
from rtp_llm.server.exchange import choose_id
from rtp_llm.server.grpc import tei
from rtp_llm.server.grpc.proto import Message, message
from rtp_llm.server.scheduling import scheduled
from rtp_llm.server.scoring import RERANKERS, computed, scores_at_once
from rtp_llm.server.tei.frame import COMPUTE_TYPE
from rtp_llm.timings import Timings

# The context of an RPC; grpcio has no types.
Context: TypeAlias = Any
Result = TypeVar("Result")


@dataclass(slots=True)
class Rpc:
    """One call: its id, its metadata, and the metrics of the model that was asked, once it is known.

    deadline  the caller's own, as time.monotonic() counts; inf where there is none
    answered  the engine's answer to a call of one message; a stream may have any number, and keeps none
    """

    id: str
    metadata: dict[bytes, bytes]
    deadline: float
    metrics: Metrics | None = None
    answered: Sequence[Answered] = ()


# Answers one message of an RPC.
Answer: TypeAlias = Callable[[bytes, Rpc], Awaitable[Result]]
UnaryHandler: TypeAlias = Callable[[bytes, Context], Awaitable[Message]]
StreamHandler: TypeAlias = Callable[[AsyncIterator[bytes], Context], Awaitable[None]]

# Messages of a stream that are worked on at a time: some batches full, and a bound on what waits in memory.
WINDOW = 64
_LONGEST_WAIT = 5.0  # seconds between two tries of a stream that the queue has no room for
_MAX_DETAILS = 400  # characters: trailers have 8 KiB in all, and a character may take 12 bytes of them
_SMALL_BYTES = 2000  # longer texts are tokenised beside the event loop
_RANK_BYTES = 64  # what a stream's rank takes in memory, about
_OK, _CLIENT_LEFT = 200, 499  # the metrics speak of HTTP's statuses
_CODES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class Scored(NamedTuple):
    """One message of RerankStream with its answer."""

    body: Message
    request: Request
    response: Response


class Calls:
    """Makes the handlers of RPCs; each RPC gets an id, a status and a place in the metrics."""

    def __init__(
        self, catalog: Catalog, config: ServerConfig, admission: Admission, observers: Sequence[Observer] = ()
    ) -> None:
        self._catalog = catalog
        self._config = config
        self._admission = admission
        self._observers = observers
        self.leaving = asyncio.Event()
        self._running: set[asyncio.Task[Any]] = set()
        self._over = False

    def end(self) -> None:
        """Cut off what still runs: the time for shutting down is over."""
        self._over = True
        for task in self._running:
            task.cancel()

    def unary(self, path: str, answer: Answer[Message]) -> UnaryHandler:
        """One message, one answer."""

        async def handle(received: bytes, context: Context) -> Message:
            async with self.border(path, context) as rpc:
                reply = await answer(received, rpc)
                await context.send_initial_metadata(self._headers(reply, rpc.id))
                return reply

        return handle

    def stream(self, path: str, answer: Answer[Message]) -> StreamHandler:
        """A stream of messages, each answered, in order."""

        async def handle(received: AsyncIterator[bytes], context: Context) -> None:
            async with self.border(path, context) as rpc:
                await context.send_initial_metadata([("x-request-id", rpc.id)])
                async with aclosing(self._in_order(received, answer, rpc)) as replies:
                    async for reply in replies:
                        await context.write(reply)

        return handle

    def ranking(self, path: str) -> Callable[[AsyncIterator[bytes], Context], Awaitable[Message]]:
        """RerankStream: a stream of pairs, one answer to all."""

        async def handle(received: AsyncIterator[bytes], context: Context) -> Message:
            async with self.border(path, context) as rpc:
                reply = await self._rank(received, rpc)
                await context.send_initial_metadata(self._headers(reply, rpc.id))
                return reply

        return handle

    def inference(self, call: tei.Inference, body_type: str, *, patient: bool) -> Answer[Message]:
        """Runs the model for a message; where there is no room, a `patient` call waits and another fails."""

        async def answer(received: bytes, rpc: Rpc) -> Message:
            body = _parse(body_type, received)
            asked = self._catalog.asked(None, rpc.metadata)
            rpc.metrics = asked.metrics if asked else None
            engine, info, request = self._catalog.choose(
                asked, call.wanted, lambda info: call.to_request(body, info, self._config)
            )
            rpc.metrics = engine.metrics
            response = await self._run(engine, request, rpc, len(received), patient=patient)
            began = time.perf_counter()
            reply = await computed(response, call.render, body, response, info)
            if not patient:
                rpc.answered = [Answered(request, response, info.name, time.perf_counter() - began)]
            _fill(reply.metadata, _characters(request), response.total_tokens, response.timings)
            return reply

        return answer

    def direct(self, call: Callable[[Message, EngineLike], Message], body_type: str) -> Answer[Message]:
        """Answers a message without running the model."""

        async def answer(received: bytes, rpc: Rpc) -> Message:
            body = _parse(body_type, received)
            engine = self._catalog.asked(None, rpc.metadata) or self._catalog.default
            rpc.metrics = engine.metrics
            if len(received) <= _SMALL_BYTES:
                return call(body, engine)
            if body_type == "EncodeRequest":
                self._admission.check_text(body.inputs, "inputs")
            return await asyncio.to_thread(call, body, engine)

        return answer

    @asynccontextmanager
    async def border(self, path: str, context: Context) -> AsyncIterator[Rpc]:
        """Around an RPC: tells what it is; whatever is raised inside leaves as a status, without internals."""
        metadata = as_headers(context.invocation_metadata() or ())
        left = context.time_remaining()
        deadline = math.inf if left is None else time.monotonic() + left
        rpc, status = Rpc(choose_id(metadata.get(b"x-request-id")), metadata, deadline), _CLIENT_LEFT
        failure = ""
        started_at = time.perf_counter()
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            yield rpc
            status = _OK
        except asyncio.CancelledError:
            if not self._over:
                raise
            error = NotReady("the server is shutting down: try another one, or later")
            status, failure = error.status, error.failure
            await _abort(context, _code(error), error, rpc.id)
        except Exception as error:
            shown = as_rtp_error(error, "gRPC", path, rpc.id)
            status, failure = shown.status, shown.failure
            await _abort(context, _code(error), shown, rpc.id)
        finally:
            self._running.discard(task)
            seconds = time.perf_counter() - started_at
            metrics = rpc.metrics or self._catalog.default.metrics
            metrics.observe_http(path, status, seconds, failure)
            seen = Seen(
                request_id=rpc.id,
                method="gRPC",
                route=path,
                status=status,
                started_at=started_at,
                seconds=seconds,
                failure=failure,
                model=rpc.metrics.model_name if rpc.metrics else "",
                answered=rpc.answered,
                headers=rpc.metadata,
            )
            for observer in self._observers:
                observer.observe(seen)

    async def _run(self, engine: EngineLike, request: Request, rpc: Rpc, num_bytes: int, *, patient: bool) -> Response:
        self._admission.check_size(request, num_bytes)
        request = limited(replace(request, request_id=rpc.id), self._config, MEMORY_BYTES)
        await (self._admission.wait() if patient else self._admission.enter())
        try:
            while True:
                try:
                    return await self._run_in_time(engine, request, rpc)
                except Overloaded as error:
                    if not patient:
                        raise
                    await asyncio.sleep(min(error.retry_after, _LONGEST_WAIT))
        finally:
            self._admission.leave()

    async def _run_in_time(self, engine: EngineLike, request: Request, rpc: Rpc) -> Response:
        seconds = min(self._admission.seconds(rpc.metadata), rpc.deadline - time.monotonic())
        request = scheduled(request, rpc.metadata, seconds, by_client=self._config.client_priority)
        try:
            return await asyncio.wait_for(engine.run(request), seconds if math.isfinite(seconds) else None)
        except asyncio.TimeoutError:
            raise DeadlineExceeded(
                f"the answer was not ready after {seconds:.3g} seconds (the call's own deadline, or request_timeout)"
            ) from None

    async def _in_order(
        self, received: AsyncIterator[bytes], answer: Answer[Result], rpc: Rpc
    ) -> AsyncGenerator[Result, None]:
        """The answers in the order of the messages; at most WINDOW of them are worked on or wait to be sent.

        NotReady, after the answers to what has come in, when the server is about to end.
        """
        answers: asyncio.Queue[asyncio.Future[Result] | None] = asyncio.Queue()
        room = asyncio.Semaphore(WINDOW)
        running: set[asyncio.Future[Result]] = set()

        async def read() -> None:
            async for content in received:
                await room.acquire()
                task = asyncio.ensure_future(answer(content, rpc))
                running.add(task)
                answers.put_nowait(task)

        reader, leaver = asyncio.ensure_future(read()), asyncio.ensure_future(self.leaving.wait())
        leaver.add_done_callback(lambda _: reader.cancel())
        reader.add_done_callback(lambda _: answers.put_nowait(None))
        try:
            while (task := await answers.get()) is not None:
                yield await task
                running.discard(task)
                room.release()
            if reader.cancelled():
                raise NotReady("the server is shutting down: send what was not answered to another one, or later")
            reader.result()
        finally:
            tasks: list[asyncio.Future[Any]] = [reader, leaver, *running]
            for left in tasks:
                left.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _rank(self, received: AsyncIterator[bytes], rpc: Rpc) -> Message:
        asked = self._catalog.asked(None, rpc.metadata)
        engine = asked or self._catalog.first_able(RERANKERS)
        rpc.metrics = engine.metrics

        async def score(content: bytes, rpc: Rpc) -> Scored:
            body = _parse("RerankStreamRequest", content)
            request = tei.RERANK_ONE(body, engine.info(), self._config)
            return Scored(body, request, await self._run(engine, request, rpc, len(content), patient=True))

        scores: list[float] = []
        texts: list[str | None] = []
        timings: list[Timings] = []
        characters = tokens = kept_bytes = 0
        async with aclosing(self._in_order(received, score, rpc)) as pairs:
            async for body, request, response in pairs:
                found = await computed(response, scores_at_once, response, max_sim_sum=body.raw_scores)
                scores.append(found[0])
                texts.append(body.text if body.return_text else None)
                timings.append(response.timings)
                characters += _characters(request)
                tokens += response.total_tokens
                kept_bytes += _RANK_BYTES + len(texts[-1] or "")
                if kept_bytes > self._config.max_body_bytes:
                    raise InvalidRequest(f"the stream is too long after {len(scores)} texts (max_body_bytes): split it")
        if not scores:
            raise InvalidRequest("the stream is empty: send at least one text")
        reply = tei.ranks(np.array(scores, np.float32), texts)
        _fill(reply.metadata, characters, tokens, _mean(timings))
        return reply

    def _headers(self, reply: Message, request_id: str) -> list[tuple[str, str]]:
        """The original's headers, whole milliseconds, beside the request's id."""
        headers = [("x-request-id", request_id)]
        if not hasattr(reply, "metadata"):
            return headers
        metadata = reply.metadata
        milliseconds = {
            "x-compute-time": metadata.total_time_ns,
            "x-total-time": metadata.total_time_ns,
            "x-tokenization-time": metadata.tokenization_time_ns,
            "x-queue-time": metadata.queue_time_ns,
            "x-inference-time": metadata.inference_time_ns,
        }
        return [
            *headers,
            ("x-compute-type", COMPUTE_TYPE),
            ("x-compute-characters", str(metadata.compute_chars)),
            ("x-compute-tokens", str(metadata.compute_tokens)),
            *((name, str(nanoseconds // 1_000_000)) for name, nanoseconds in milliseconds.items()),
        ]


async def _abort(context: Context, code: Any, error: RtpError, request_id: str) -> None:
    """End the RPC; the caller learns of the error what every user may."""
    trailers = [("x-request-id", request_id)]
    if isinstance(error, Overloaded):
        # gRPC's own word for Retry-After, which clients with a retry policy obey.
        trailers.append(("grpc-retry-pushback-ms", str(round(error.retry_after * 1e3))))
    await context.abort(code, error.message[:_MAX_DETAILS], tuple(trailers))


def _parse(body_type: str, received: bytes) -> Message:
    try:
        return message(body_type).FromString(received)
    except DecodeError:
        raise InvalidRequest(f"the message is no {body_type} of tei.v1, or a text of it is not UTF-8") from None


def _code(error: Exception) -> Any:
    """The status, as the original gives it: what the model cannot do, or failed on, is a failed precondition."""
    if isinstance(error, (UnsupportedTask, EngineFailure)):
        return grpc.StatusCode.FAILED_PRECONDITION
    status = getattr(error, "status", None)
    if isinstance(error, UnknownModel):
        return grpc.StatusCode.NOT_FOUND
    if isinstance(error, InvalidRequest):
        return grpc.StatusCode.INVALID_ARGUMENT
    return _CODES.get(status, grpc.StatusCode.INTERNAL) if isinstance(status, int) else grpc.StatusCode.INTERNAL


def as_headers(metadata: Iterable[tuple[str, str | bytes]]) -> dict[bytes, bytes]:
    """An RPC's metadata, as HTTP has its headers."""
    return {_bytes(name): _bytes(value) for name, value in metadata}


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("latin-1", "replace")


def _characters(request: Request) -> int:
    """Characters of all texts."""
    return sum(len(text) for value in request.inputs for text in (value if isinstance(value, tuple) else (value,)))


def _fill(metadata: Message, characters: int, tokens: int, timings: Timings) -> None:
    metadata.compute_chars, metadata.compute_tokens = characters, tokens
    metadata.total_time_ns = _nanoseconds(timings.total)
    metadata.tokenization_time_ns = _nanoseconds(timings.tokenize)
    metadata.queue_time_ns = _nanoseconds(timings.queue)
    metadata.inference_time_ns = _nanoseconds(timings.compute)


def _nanoseconds(seconds: float) -> int:
    return max(round(seconds * 1e9), 0)


def _mean(timings: list[Timings]) -> Timings:
    rows = [(timing.tokenize, timing.queue, timing.compute, timing.total) for timing in timings]
    tokenize, queue, compute, total = np.mean(rows, axis=0).tolist()
    return Timings(tokenize=tokenize, queue=queue, compute=compute, total=total)
