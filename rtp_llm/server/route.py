"""What a path leads to: one dialect, or several that share it and are told apart by their bodies or by the model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import msgspec

from rtp_llm.core import ModelInfo
from rtp_llm.server.catalog import Catalog
from rtp_llm.server.errors import ErrorForm, Headers, openai_form
from rtp_llm.server.exchange import Exchange
from rtp_llm.server.service import Service
from rtp_llm.server.turns import INLINE_BYTES


class Route(Protocol):
    """What a path leads to."""

    @property
    def error_form(self) -> ErrorForm: ...

    def choose(self, content: bytes, exchange: Exchange, catalog: Catalog) -> "Answerer":
        """The dialect that this body is in."""


@runtime_checkable
class Answerer(Route, Protocol):
    """A dialect that answers; it chooses itself, or another form of itself, without looking at the body."""

    async def answer(self, content: bytes, service: Service, exchange: Exchange) -> tuple[bytes, Headers]:
        """A body's answer, of the exchange's content type; every failure leaves as an exception."""


async def chosen(route: Route, content: bytes, exchange: Exchange, service: Service) -> Answerer:
    """What `route` makes of a body; a large one that must be looked at for it is read beside the event loop."""
    if len(content) <= INLINE_BYTES or isinstance(route, Answerer):
        return route.choose(content, exchange, service.catalog)
    return await service.turns.call(route.choose, content, exchange, service.catalog)


@dataclass(frozen=True, slots=True)
class Choice:
    """Dialects that share a path: the first whose key the body has, and not as null, else `otherwise`."""

    by_key: Mapping[str, Route]
    otherwise: Route
    _keys: "msgspec.json.Decoder[Any]" = field(init=False)

    def __post_init__(self) -> None:
        # Keys that no dialect is told by are passed over, however many there are.
        keys = [(key, msgspec.Raw | msgspec.UnsetType, msgspec.UNSET) for key in self.by_key]
        object.__setattr__(self, "_keys", msgspec.json.Decoder(msgspec.defstruct("Keys", keys)))

    @property
    def error_form(self) -> ErrorForm:
        """For what fails before the body is read."""
        return self.otherwise.error_form

    def choose(self, content: bytes, exchange: Exchange, catalog: Catalog) -> Answerer:
        """By the body's keys; what cannot be read is left to the last dialect to refuse."""
        try:
            body = self._keys.decode(content)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            body = None
        found = ((route, getattr(body, key, msgspec.UNSET)) for key, route in self.by_key.items())
        route = next((route for route, value in found if is_given(value)), self.otherwise)
        exchange.error_form = route.error_form  # a route that goes by the model may find none
        return route.choose(content, exchange, catalog)


def is_given(value: msgspec.Raw | msgspec.UnsetType) -> bool:
    """Whether a body has a value for a key, and not null."""
    return isinstance(value, msgspec.Raw) and (memoryview(value).nbytes != 4 or bytes(value) != b"null")


@dataclass(frozen=True, slots=True)
class Quoted:
    """A route that also takes its body as a JSON string which holds it, as RTP-LLM's POST / does."""

    route: Route

    @property
    def error_form(self) -> ErrorForm:
        """The route's."""
        return self.route.error_form

    def choose(self, content: bytes, exchange: Exchange, catalog: Catalog) -> Answerer:
        """What the route chooses, by what is in the string where the body is one."""
        if content.lstrip()[:1] != b'"':
            return self.route.choose(content, exchange, catalog)
        try:
            inner = msgspec.json.decode(content, type=str).encode()
        except (msgspec.DecodeError, UnicodeError):
            return self.route.choose(content, exchange, catalog)
        return _Unquoted(self.route.choose(inner, exchange, catalog), inner)


@dataclass(frozen=True, slots=True)
class _Unquoted:
    """An answerer for the body `inner`, which came within another."""

    answerer: Answerer
    inner: bytes

    @property
    def error_form(self) -> ErrorForm:
        return self.answerer.error_form

    def choose(self, content: bytes, exchange: Exchange, catalog: Catalog) -> Answerer:
        return self

    async def answer(self, content: bytes, service: Service, exchange: Exchange) -> tuple[bytes, Headers]:
        return await self.answerer.answer(self.inner, service, exchange)


@dataclass(frozen=True, slots=True)
class ByModel:
    """Dialects that share path and keys: what the model does decides."""

    pick: Callable[[ModelInfo], Route]
    error_form: ErrorForm = openai_form

    def choose(self, content: bytes, exchange: Exchange, catalog: Catalog) -> Answerer:
        """By the model."""
        info = catalog.of_body(content, exchange.headers).info()
        return self.pick(info).choose(content, exchange, catalog)
