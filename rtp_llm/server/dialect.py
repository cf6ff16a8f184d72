"""The hot path: bytes of one dialect -> Request -> the engine -> bytes. Plain ASGI, no framework in between.

A Dialect runs the model; a Lookup asks the tokenizer alone. Which of them answers is in rtp_llm/server/route.py.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta

from rtp_llm.config import ServerConfig
from rtp_llm.core import OF_TOKENS, AnswerLimit, ModelInfo, Request, Response, TaskType
from rtp_llm.errors import InvalidInput, InvalidRequest, RequestTooLarge
from rtp_llm.observability import Answered
from rtp_llm.server.accept import preferred
from rtp_llm.server.body import decode
from rtp_llm.server.catalog import Catalog, Wanted
from rtp_llm.server.cuts import truncated_header
from rtp_llm.server.engine_like import EngineLike
from rtp_llm.server.errors import ErrorForm, Headers, openai_form
from rtp_llm.server.exchange import JSON, Exchange
from rtp_llm.server.route import Answerer
from rtp_llm.server.scheduling import scheduled
from rtp_llm.server.service import Service
from rtp_llm.server.turns import INLINE_BYTES, INLINE_CHARACTERS, Turns
from rtp_llm.server.usage import usage_json

Body = TypeVar("Body")

# What several dialects say of an input over the limit, and the names of all such fields.
Truncate = Annotated[bool | None, Meta(description="false: an input over the limit is an error; null: true")]
Side = Annotated[
    Literal["left", "right"] | None,
    Meta(description="the end that an over-long input loses; null: the checkpoint's own, mostly right"),
]
_FIELD = re.compile(r"[.\[]")  # what ends a field's name in the place of an input
_CUTS = ("truncate", "truncation", "truncate_prompt_tokens", "max_tokens")
_WEIGHT_BYTES = 24  # of a weight of a sparse vector with its token, in an answer, about
_OF_MANY_NUMBERS = frozenset({TaskType.SPARSE, *OF_TOKENS})
MEMORY_BYTES = 4  # of a number that is computed, and not answered


def answer_headers(request: Request, response: Response) -> Headers:
    """RTP-LLM's usage; the exchange adds the browser's timings."""
    return [(b"usage", usage_json(response))]


@dataclass(frozen=True, slots=True)
class Dialect(Generic[Body]):
    """One wire form of a task.

    decoder           bytes -> the dialect's own body type
    to_request        what the body asks for; InvalidRequest where this model or these limits cannot serve it
    render            the answer in pieces; the event loop serves others between two of them
    wanted            which models may be asked where the body names none; a function where that hangs on the body
    render_on_thread  whether `render` computes, and is run beside the event loop; or with which responses
    error_form        how its clients are told of failures
    headers           of every answer; own_headers: those that hang on what the body asked for
    prepare           what of the body the engine must be asked for first: it writes out chat messages
    content_type      of an answer that is no failure
    tells_cuts        whether answer or own headers say which inputs were cut; else a header does where some were
    place             the field by which the input of this number came, where that is not `input`
    cut               what the body must say so that an input over the limit is cut
    by_accept         other forms of the answer, by the value of the request's Accept
    by_body           another form of the answer, where the body asks for one
    number_bytes      what a number of a vector for each token takes in the answer, about; in memory where none is sent
    """

    decoder: msgspec.json.Decoder[Body]
    to_request: Callable[[Body, ModelInfo, ServerConfig, str], Request]
    render: Callable[[Body, Response, ModelInfo], Iterator[bytes]]
    wanted: Wanted | Callable[[Body], Wanted] = ()
    render_on_thread: bool | Callable[[Response], bool] = False
    error_form: ErrorForm = openai_form
    headers: Callable[[Request, Response], Headers] = answer_headers
    own_headers: Callable[[Body, Response, ModelInfo], Headers] | None = None
    prepare: Callable[[Body, ServerConfig, EngineLike], Awaitable[Body]] | None = None
    content_type: bytes = JSON
    tells_cuts: bool = False
    place: Callable[[Body, ModelInfo, int], str] | None = None
    cut: str = "truncate to true"
    by_accept: "Mapping[bytes, Dialect[Body]]" = field(default_factory=dict)
    by_body: "Callable[[Body], Dialect[Body] | None] | None" = None
    number_bytes: Callable[[Body], int] = lambda body: MEMORY_BYTES

    def choose(self, content: bytes, exchange: Exchange, catalog: Catalog) -> Answerer:
        """Itself, or what the client would rather accept."""
        accept = exchange.headers.get(b"accept") if self.by_accept else None
        return self if accept is None else self.by_accept.get(preferred(accept, self.by_accept), self)

    async def answer(self, content: bytes, service: Service, exchange: Exchange) -> tuple[bytes, Headers]:
        """Decode, run, render."""
        service.admission.check_room()
        # NOTE: what is small is not sent through `call_by_size`, here and below: that alone would cost a query 1.5 us.
        is_small = len(content) <= INLINE_BYTES
        body = decode(self.decoder, content) if is_small else await service.turns.call(decode, self.decoder, content)
        form = self.by_body(body) if self.by_body is not None else None
        return await (form or self)._answer_in_time(body, len(content), service, exchange)

    async def _answer_in_time(
        self, body: Body, num_bytes: int, service: Service, exchange: Exchange
    ) -> tuple[bytes, Headers]:
        """Within a place among those in flight, the time that it may take, and as long as the client is there."""
        seconds = service.admission.seconds(exchange.headers)
        work = partial(self._serve, body, num_bytes, service, exchange, time.monotonic() + seconds)
        return await service.admitted(work, exchange.receive, seconds)

    async def _serve(
        self, body: Body, num_bytes: int, service: Service, exchange: Exchange, deadline: float
    ) -> tuple[bytes, Headers]:
        engine, info, body, request = await self._choose_model(body, num_bytes, service, exchange)
        exchange.metrics, exchange.content_type = engine.metrics, self.content_type
        named = None if self.place is None else partial(self.place, body, info)
        service.admission.check_size(request, num_bytes, *([named] if named else []))
        number, by_client = getattr(body, "priority", None), service.config.client_priority
        request = scheduled(request, exchange.headers, deadline - time.monotonic(), number, by_client=by_client)
        request = request if exchange.whole is None else replace(request, whole=exchange.whole)
        try:
            response, rendered, seconds_to_encode = await self._run(body, request, engine, info, service.turns)
        except InvalidRequest as error:
            raise error if named is None else _in_its_field(error, named, self.cut, len(request.inputs)) from None
        engine.metrics.observe_encode(seconds_to_encode)
        exchange.answered.append(Answered(request, response, info.name, seconds_to_encode))
        own = self.own_headers(body, response, info) if self.own_headers is not None else []
        if not self.tells_cuts and any(response.truncated):
            own = [*own, truncated_header(response, named)]
        return rendered, [*self.headers(request, response), *own]

    async def _choose_model(
        self, body: Body, num_bytes: int, service: Service, exchange: Exchange
    ) -> tuple[EngineLike, ModelInfo, Body, Request]:
        """The model, the body as it is read, and what it asks of the model."""
        catalog, config = service.catalog, service.config
        name = exchange.deployment or getattr(body, "model", None) or exchange.hosted_model
        asked = catalog.asked(name, exchange.headers)
        exchange.metrics = asked.metrics if asked else None
        wanted = self._wanted(body) if asked is None else ()
        if self.prepare is not None and getattr(body, "messages", None) is not None:
            asked, body = await catalog.prepared(asked, wanted, partial(self.prepare, body, config))

        def to_request(info: ModelInfo) -> Request:
            return self.to_request(body, info, config, exchange.request_id)

        if num_bytes <= INLINE_BYTES:
            engine, info, request = catalog.choose(asked, wanted, to_request)
        else:
            engine, info, request = await service.turns.call(catalog.choose, asked, wanted, to_request)
        if not config.auto_truncate and not _says_what_is_cut(body):
            request = replace(request, params=replace(request.params, truncate=False))
        return engine, info, body, limited(request, config, self.number_bytes(body))

    def _wanted(self, body: Body) -> Wanted:
        return self.wanted(body) if callable(self.wanted) else self.wanted

    async def _run(
        self, body: Body, request: Request, engine: EngineLike, info: ModelInfo, turns: Turns
    ) -> tuple[Response, bytes, float]:
        """The engine's answer, its rendering, and the seconds that this took."""
        # No inputs come this far in Ollama's dialect alone, which answers them with nothing.
        response = await engine.run(request) if request.inputs else Response(outputs={}, num_tokens=[], truncated=[])
        _check_sparse(request, response)
        began = time.perf_counter()
        pieces, on_thread = self.render(body, response, info), self.render_on_thread
        on_thread = on_thread(response) if callable(on_thread) else on_thread
        rendered = await (turns.join(pieces) if on_thread else _join(pieces))
        return response, rendered, time.perf_counter() - began


@dataclass(frozen=True, slots=True)
class Lookup(Generic[Body]):
    """One wire form of a question to the tokenizer; long ones are answered beside the event loop, in turns.

    render   the answer in pieces
    prepare  what of the body the engine must be asked for first
    """

    decoder: msgspec.json.Decoder[Body]
    render: Callable[[Body, EngineLike, Service], Iterator[bytes]]
    error_form: ErrorForm = openai_form
    prepare: Callable[[Body, ServerConfig, EngineLike], Awaitable[Body]] | None = None

    def choose(self, content: bytes, exchange: Exchange, catalog: Catalog) -> Answerer:
        """Itself."""
        return self

    async def answer(self, content: bytes, service: Service, exchange: Exchange) -> tuple[bytes, Headers]:
        """Decode and look up."""
        body = await service.turns.call_by_size(len(content), decode, self.decoder, content)
        asked = service.catalog.asked(getattr(body, "model", None), exchange.headers)
        if self.prepare is None and len(content) <= INLINE_CHARACTERS:
            return b"".join(self._pieces(body, asked, service, exchange)), []
        work = partial(self._looked_up, body, asked, service, exchange)
        return await service.admitted(work, exchange.receive, service.admission.seconds(exchange.headers)), []

    async def _looked_up(self, body: Body, asked: EngineLike | None, service: Service, exchange: Exchange) -> bytes:
        if self.prepare is not None:
            prepare = partial(self.prepare, body, service.config)
            asked, body = await service.catalog.prepared(asked, (), prepare)
        return await service.turns.join(self._pieces(body, asked, service, exchange))

    def _pieces(self, body: Body, asked: EngineLike | None, service: Service, exchange: Exchange) -> Iterator[bytes]:
        engine = asked or service.catalog.default
        exchange.metrics = engine.metrics
        return self.render(body, engine, service)


def _in_its_field(error: InvalidRequest, named: Callable[[int], str], cut: str, num_inputs: int) -> InvalidRequest:
    """The same by the name of the field that it is about; the engine knows of `input` alone."""
    if isinstance(error, InvalidInput):
        return error.at(named(error.index), cut)
    if error.param == "input":
        error.param = _FIELD.split(named(num_inputs - 1))[0]
    return error


def _says_what_is_cut(body: object) -> bool:
    """Whether a body says for itself what becomes of an input over the limit."""
    given = [getattr(body, name, None) for name in _CUTS]
    given.append(getattr(getattr(body, "parameters", None), "truncate", None))
    return any(value is not None and value is not msgspec.UNSET for value in given)


def _check_sparse(request: Request, response: Response) -> None:
    """RequestTooLarge where sparse vectors, whose size is known when they are there, make too long an answer."""
    if request.answer_limit is None or TaskType.SPARSE not in response.outputs:
        return
    most = request.answer_limit[0]
    num_bytes = _WEIGHT_BYTES * sum(len(vector.indices) for vector in response.outputs[TaskType.SPARSE])
    if num_bytes > most:
        message = (
            f"the weights of these sparse vectors take about {num_bytes} bytes, the limit is {most} "
            "(max_answer_bytes): send fewer inputs at a time, or max_active_dims"
        )
        raise RequestTooLarge(message, param="input")


def limited(request: Request, config: ServerConfig, number_bytes: int) -> Request:
    """The request, whose answer a vector a token, or weights of tokens, may make too large."""
    if _OF_MANY_NUMBERS.isdisjoint(request.tasks):
        return request
    return replace(request, answer_limit=AnswerLimit(config.max_answer_bytes, number_bytes))


async def _join(pieces: Iterator[bytes]) -> bytes:
    parts = [next(pieces)]
    for piece in pieces:
        parts.append(piece)
        await asyncio.sleep(0)
    return parts[0] if len(parts) == 1 else b"".join(parts)
