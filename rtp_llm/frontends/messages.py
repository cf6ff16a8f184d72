"""What a front-end and the engine's process tell each other."""

from typing import Any, Literal, NamedTuple

from rtp_llm.config import EngineConfig, ServerConfig
from rtp_llm.core import ModelInfo, Request
from rtp_llm.engine.loading import Reach
from rtp_llm.engine.tokenizer_pool import Tokenized


class Served(NamedTuple):
    """A model as a front-end needs to know it; `config` names a folder, whatever the command line has named."""

    config: EngineConfig
    info: ModelInfo
    reach: Reach


class Orders(NamedTuple):
    """The first word to a front-end, whose `name` its log shows: what to serve, the options, and how many they are."""

    name: str
    num_front_ends: int
    config: ServerConfig
    models: list[Served]


class Ask(NamedTuple):
    """A request for the model of a number, to be answered under `number`.

    tokenized  what the front-end has made of its inputs; None: the engine's process sees to that
    whole      the number of what it is a part of, in place of the request's own; None: it is none
    """

    number: int
    model: int
    request: Request
    tokenized: Tokenized | None
    whole: int | None


class Query(NamedTuple):
    """A question about a model, or about the whole server, to be answered under `number`."""

    number: int
    model: int
    what: Literal["waiting", "exposition"]


class Answer(NamedTuple):
    """What became of an Ask or a Query: a result, or an exception."""

    number: int
    outcome: Any


class Cancel(NamedTuple):
    """Nobody waits for this Ask any more; `is_counted`: as far as the front-end knows, that is to be counted."""

    number: int
    is_counted: bool


class Forget(NamedTuple):
    """No more parts of this whole will come."""

    whole: int


class Observed(NamedTuple):
    """What a front-end has counted: each the number of a model, a method of its Metrics, and the arguments."""

    calls: list[tuple[int, str, tuple[Any, ...]]]


class LinesLost(NamedTuple):
    """Lines of a front-end's log that could not be written."""

    num_lines: int


class Ready(NamedTuple):
    """The front-end can serve, and waits to hear that it may."""


class Accept(NamedTuple):
    """A front-end may accept connections: its socket listens."""


class CatchUp(NamedTuple):
    """Asks a front-end for what it has counted and not told yet."""


class CaughtUp(NamedTuple):
    """That has been told."""


class Ping(NamedTuple):
    """Asks a front-end whether its event loop still turns."""


class Pong(NamedTuple):
    """It does."""


class End(NamedTuple):
    """A signal that ends the server: the first in order, the second at once."""


class Reload(NamedTuple):
    """The keys are to be read again."""


class Problems(NamedTuple):
    """By model, why it cannot answer; None where it can."""

    reasons: tuple[str | None, ...]
