"""One RPC: bytes -> message -> the engine -> message, with the border at which every failure becomes a status."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
from google.protobuf.message import DecodeError

from rtp_llm.config import ServerConfig
from rtp_llm.core import Request, Response, Whole
from rtp_llm.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotReady,
    Overloaded,
)
from rtp_llm.observability import Answered, Observer, RequestMetrics, Seen
from rtp_llm.server.admission import Admission
from rtp_llm.server.catalog import Catalog
from rtp_llm.server.client_watch import unless_client_leaves
from rtp_llm.server.cuts import HEADER, CutPlaces, cut_places
from rtp_llm.server.dialect import MEMORY_BYTES, limited
from rtp_llm.server.engine_like import EngineLike
from rtp_llm.server.errors import SHUTTING_DOWN, as_rtp_error
from rtp_llm.server.exchange import choose_id, nobody_leaves
from rtp_llm.server.grpc import tei
from rtp_llm.server.grpc.metadata import as_headers, characters_of, fill, headers_of, mean_of
from rtp_llm.server.grpc.proto import Message, message
from rtp_llm.server.grpc.statuses import Context, abort, code_of
from rtp_llm.server.scheduling import scheduled
from rtp_llm.server.scoring import RERANKERS, computed, scores_at_once
from rtp_llm.server.turns import INLINE_CHARACTERS, Turns
from rtp_llm.timings import Timings

Result = TypeVar("Result")
_CUT_BYTES = 2000  # of places of what was cut; trailers have 8 KiB in all


@dataclass(slots=True)
class Rpc:
    """One call: its id, its metadata, and the metrics of the model that was asked, once it is known.

    deadline  the caller's own, as time.monotonic() counts; inf where there is none
    answered  the engine's answer to a call of one message; a stream may have any number, and keeps none
    whole     of a stream, what its messages are parts of
    cut       inputs, or messages of a stream, that were cut at the limit
    """

    id: str
    metadata: dict[bytes, bytes]
    deadline: float
    metrics: RequestMetrics | None = None
    answered: Sequence[Answered] = ()
    whole: Whole | None = None
    cut: CutPlaces = field(default_factory=lambda: CutPlaces(_CUT_BYTES))


class Reply(NamedTuple):
    """What one message is answered with, serialised or not; `cut`: places of its inputs that were cut at the limit."""

    message: Message | bytes
    cut: Sequence[str] = ()


# Answers one message of an RPC.
Answer: TypeAlias = Callable[[bytes, Rpc], Awaitable[Result]]
UnaryHandler: TypeAlias = Callable[[bytes, Context], Awaitable[Message | bytes]]
StreamHandler: TypeAlias = Callable[[AsyncIterator[bytes], Context], Awaitable[None]]

# Messages of a stream that are worked on at a time: some batches full, and a bound on what waits in memory.
WINDOW = 64
_LONGEST_WAIT = 5.0  # seconds between two tries of a stream that the queue has no room for
_RANK_BYTES = 64  # what a stream's rank takes in memory, about
_OK, _CLIENT_LEFT = 200, 499  # the metrics speak of HTTP's statuses


class Scored(NamedTuple):
    """One message of RerankStream with its answer."""

    body: Message
    request: Request
    response: Response


class Calls:
    """Makes the handlers of RPCs; each RPC gets an id, a status and a place in the metrics."""

    def __init__(
        self,
        catalog: Catalog,
        config: ServerConfig,
        admission: Admission,
        turns: Turns,
        observers: Sequence[Observer] = (),
    ) -> None:
        self._catalog = catalog
        self._config = config
        self._admission = admission
        self._turns = turns
        self._observers = observers
        self.leaving = asyncio.Event()
        self._running: set[asyncio.Task[Any]] = set()
        self._over = False

    def end(self) -> None:
        """Cut off what still runs: the time for shutting down is over."""
        self._over = True
        for task in self._running:
            task.cancel()

    def unary(self, path: str, answer: Answer[Reply]) -> UnaryHandler:
        """One message, one answer."""

        async def handle(received: bytes, context: Context) -> Message | bytes:
            async with self.border(path, context) as rpc:
                reply, cut = await answer(received, rpc)
                rpc.cut.add(*cut)
                await context.send_initial_metadata(headers_of(reply, rpc.id))
                return reply

        return handle

    def stream(self, path: str, answer: Answer[Reply]) -> StreamHandler:
        """A stream of messages, each answered, in order."""

        async def handle(received: AsyncIterator[bytes], context: Context) -> None:
            async with self.border(path, context) as rpc:
                await context.send_initial_metadata([("x-request-id", rpc.id)])
                async with self._answers(received, answer, rpc) as replies:
                    number = 0
                    async for reply, cut in replies:
                        if cut:
                            rpc.cut.add(str(number))
                        number += 1
                        await context.write(reply)

        return handle

    def ranking(self, path: str) -> Callable[[AsyncIterator[bytes], Context], Awaitable[Message]]:
        """RerankStream: a stream of pairs, one answer to all."""

        async def handle(received: AsyncIterator[bytes], context: Context) -> Message:
            async with self.border(path, context) as rpc:
                reply = await self._rank(received, rpc)
                await context.send_initial_metadata(headers_of(reply, rpc.id))
                return reply

        return handle

    def inference(self, call: tei.Inference, body_type: str, *, patient: bool) -> Answer[Reply]:
        """Runs the model for a message; where there is no room, a `patient` call waits and another fails."""

        async def answer(received: bytes, rpc: Rpc) -> Reply:
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
            fill(reply.metadata, characters_of(request), response.total_tokens, response.timings)
            named = None if call.place is None else partial(call.place, info)
            return Reply(reply, cut_places(response, named))

        return answer

    def direct(
        self, call: Callable[[Message, EngineLike], Iterator[bytes]], body_type: str, *, patient: bool
    ) -> Answer[Reply]:
        """Answers a message without running the model, in pieces of what is serialised.

        A long one takes a place among those in flight, and its pieces are made beside the event loop, as over HTTP.
        """

        async def answer(received: bytes, rpc: Rpc) -> Reply:
            body = _parse(body_type, received)
            engine = self._catalog.asked(None, rpc.metadata) or self._catalog.default
            rpc.metrics = engine.metrics
            pieces = call(body, engine)
            if len(received) <= INLINE_CHARACTERS:
                return Reply(b"".join(pieces))
            if body_type == "EncodeRequest":
                self._admission.check_text(body.inputs, "inputs")
            async with self._admission.place(patient=patient):
                return Reply(await self._in_time(self._turns.join(pieces), self._seconds(rpc)))

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
            if rpc.cut:
                context.set_trailing_metadata(((HEADER, str(rpc.cut)),))
        except asyncio.CancelledError:
            if not self._over:
                raise
            error = NotReady(SHUTTING_DOWN)
            status, failure = error.status, error.failure
            await abort(context, code_of(error), error, rpc.id, rpc.cut)
        except Exception as error:
            shown = as_rtp_error(error, "gRPC", path, rpc.id)
            status, failure = shown.status, shown.failure
            await abort(context, code_of(error), shown, rpc.id, rpc.cut)
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
        request = replace(request, request_id=rpc.id, whole=rpc.whole, patient=patient)
        request = limited(request, self._config, MEMORY_BYTES)
        async with self._admission.place(patient=patient):
            while True:
                try:
                    return await self._run_in_time(engine, request, rpc)
                except Overloaded as error:
                    if not patient:
                        raise
                    await asyncio.sleep(min(error.retry_after, _LONGEST_WAIT))

    async def _run_in_time(self, engine: EngineLike, request: Request, rpc: Rpc) -> Response:
        seconds = self._seconds(rpc)
        request = scheduled(request, rpc.metadata, seconds, by_client=self._config.client_priority)
        return await self._in_time(engine.run(request), seconds)

    def _seconds(self, rpc: Rpc) -> float:
        """What is left to it."""
        return min(self._admission.seconds(rpc.metadata), rpc.deadline - time.monotonic())

    async def _in_time(self, work: Coroutine[Any, Any, Result], seconds: float) -> Result:
        # NOTE: on uvloop asyncio.wait_for may end before the deadline: the client would be counted as one that left.
        return await unless_client_leaves(work, nobody_leaves, max(seconds, 0.0), _too_late)

    @asynccontextmanager
    async def _answers(
        self, received: AsyncIterator[bytes], answer: Answer[Result], rpc: Rpc
    ) -> AsyncIterator[AsyncIterator[Result]]:
        """Those to a stream, in order; where it fails, or its client leaves, what is left of it is given up."""
        rpc.whole = whole = Whole()
        async with aclosing(self._in_order(received, answer, rpc, whole)) as answers:
            with _without_leaving(whole):
                yield answers

    async def _in_order(
        self, received: AsyncIterator[bytes], answer: Answer[Result], rpc: Rpc, whole: Whole
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
            with _without_leaving(whole):
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
        async with self._answers(received, score, rpc) as pairs:
            async for body, request, response in pairs:
                if any(response.truncated):
                    rpc.cut.add(str(len(scores)))
                found = await computed(response, scores_at_once, response, max_sim_sum=body.raw_scores)
                scores.append(found[0])
                texts.append(body.text if body.return_text else None)
                timings.append(response.timings)
                characters += characters_of(request)
                tokens += response.total_tokens
                kept_bytes += _RANK_BYTES + len(texts[-1] or "")
                if kept_bytes > self._config.max_body_bytes:
                    raise InvalidRequest(f"the stream is too long after {len(scores)} texts (max_body_bytes): split it")
        if not scores:
            raise InvalidRequest("the stream is empty: send at least one text")
        reply = tei.ranks(np.array(scores, np.float32), texts)
        fill(reply.metadata, characters, tokens, mean_of(timings))
        return reply


def _too_late(seconds: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"the answer was not ready after {seconds:.3g} seconds (the call's own deadline, or request_timeout)"
    )


@contextmanager
def _without_leaving(whole: Whole) -> Iterator[None]:
    """Within it, a failure ends what is a part of the whole, so that no part that is given up has lost its client."""
    try:
        yield
    except Exception:
        whole.end()
        raise


def _parse(body_type: str, received: bytes) -> Message:
    try:
        return message(body_type).FromString(received)
    except DecodeError:
        raise InvalidRequest(f"the message is no {body_type} of tei.v1, or a text of it is not UTF-8") from None
