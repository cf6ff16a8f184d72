"""The served models, and which of them a request is for."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from rtp_llm.core import ModelInfo, Request, TaskType
from rtp_llm.errors import NotReady, UnknownModel, UnsupportedTask
from rtp_llm.observability import Metrics, RequestMetrics
from rtp_llm.server.adapter_model import adapter_models
from rtp_llm.server.engine_like import EngineLike

Body = TypeVar("Body")

MODEL_HEADER = b"x-model"
LATEST = ":latest"  # what Ollama's clients may put behind a name that has no other tag
ModelName: TypeAlias = Annotated[
    str | None,
    Meta(
        description="a served model; where one is served, any name will do; null: the first that can do what is asked"
    ),
]


class Need(NamedTuple):
    """A model that has at least `least` of `tasks`, and is not there for `other`."""

    tasks: frozenset[TaskType]
    least: int = 1
    other: TaskType | None = None

    def is_met(self, info: ModelInfo) -> bool:
        """Whether this model will do."""
        return len(self.tasks.intersection(info.tasks)) >= self.least and self.other not in info.tasks


# What a route needs of a model; those that meet an earlier need are asked first. (): any model will do.
Wanted: TypeAlias = tuple[Need, ...]


def one_of(*tasks: TaskType) -> Wanted:
    """Any model that has one of these."""
    return (Need(frozenset(tasks)),)


# A head of one label is a reranker, which gives its logits as a classifier of one label too: where there is no other.
CLASSIFIERS: Wanted = (Need(frozenset({TaskType.CLASSIFY}), other=TaskType.RERANK), *one_of(TaskType.CLASSIFY))
_OF_TEXTS = frozenset(TaskType) - {TaskType.RERANK, TaskType.CUSTOM}
# What has a use for a text that is no pair, then the rest.
READERS: Wanted = (Need(_OF_TEXTS, other=TaskType.RERANK), Need(frozenset(), 0))


class _Named(msgspec.Struct):
    """All that is read of a body to know its model."""

    model: Any = None


_named = msgspec.json.Decoder(_Named)


class Catalog:
    """One engine or several, in the order in which they were given; the first is the default.

    Where there is one, it answers whatever name a request has. Where there are several, a request says its model by the
    body's `model`, or by the header X-Model where its dialect knows no such field; and a request that says none goes to
    the first model that has a task for it. What a body's inputs look like never decides: the vectors of one client must
    come from one model.

    engines   what callers name, the models of adapters (`lora_modules`) among them, each after the model that has it
    loaded    what is loaded, without those
    draining  the server is about to end, and should get no more requests
    """

    def __init__(self, engines: Sequence[EngineLike]) -> None:
        self.loaded = tuple(engines)
        self.engines = tuple(named for engine in engines for named in (engine, *adapter_models(engine)))
        self.draining = False

    @property
    def default(self) -> EngineLike:
        """The first."""
        return self.engines[0]

    @property
    def metrics(self) -> list[Metrics]:
        """Those of each model that is in this process."""
        return [engine.metrics for engine in self.loaded if isinstance(engine.metrics, Metrics)]

    @property
    def only_metrics(self) -> RequestMetrics | None:
        """Those of the model that any request is for; None where there are several."""
        return self.default.metrics if len(self.loaded) == 1 else None

    @property
    def can_answer(self) -> bool:
        """Whether every model can, draining or not."""
        return all(map(_can_answer, self.loaded))

    def check_health(self) -> None:
        """Raise NotReady, with the reason, while any model cannot answer, or when no more requests should come."""
        if self.draining:
            raise NotReady("the server is about to shut down: try another one")
        for engine in self.loaded:
            engine.check_health()

    def is_healthy(self) -> bool:
        """Whether `check_health` has nothing to say."""
        return not self.draining and self.can_answer

    def find(self, name: str) -> EngineLike:
        """The model of this name or alias, with LATEST or without; UnknownModel lists those that there are."""
        for spelling in (name, name.removesuffix(LATEST), name + LATEST):
            for engine in self.engines:
                info = engine.info()
                if spelling == info.name or spelling in info.aliases:
                    return engine
        served = ", ".join(repr(engine.info().name) for engine in self.engines)
        raise UnknownModel(f"model {name[:200]!r} not found; this server serves {served}", param="model")

    def asked(self, name: str | None, headers: Mapping[bytes, bytes]) -> EngineLike | None:
        """The model that a body's `model` or the header names; None where neither does; UnknownModel."""
        if len(self.engines) == 1:
            return self.engines[0]
        name = name or headers.get(MODEL_HEADER, b"").decode("latin-1")
        return self.find(name) if name else None

    def of_body(self, content: bytes, headers: Mapping[bytes, bytes]) -> EngineLike:
        """The model that a body asks for before it is known what the body is.

        Where it asks for none: the first that does something with a text alone.
        """
        if len(self.engines) == 1:
            return self.engines[0]
        try:
            name = _named.decode(content).model
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            name = None
        return self.asked(name if isinstance(name, str) else None, headers) or self.first_able(READERS)

    def choose(
        self, asked: EngineLike | None, wanted: Wanted, to_request: Callable[[ModelInfo], Request]
    ) -> tuple[EngineLike, ModelInfo, Request]:
        """The model for a request, and what is asked of it; UnsupportedTask where no model can do it."""
        if asked is not None:
            info = asked.info()
            return asked, info, to_request(info)
        for engine in self.able(wanted):
            info = engine.info()
            try:
                request = to_request(info)
            except UnsupportedTask:
                continue
            if set(request.tasks) <= set(info.tasks):
                return engine, info, request
        raise self._unsupported()

    def able(self, wanted: Wanted) -> list[EngineLike]:
        """The models that a route may ask, those it prefers first."""
        if not wanted:
            return list(self.engines)
        ranked = [engine for need in wanted for engine in self.engines if need.is_met(engine.info())]
        return list(dict.fromkeys(ranked))

    async def prepared(
        self, asked: EngineLike | None, wanted: Wanted, prepare: Callable[[EngineLike], Awaitable[Body]]
    ) -> tuple[EngineLike, Body]:
        """The model for a body that needs one to be read, and the body as read; UnsupportedTask where none can."""
        if asked is not None:
            return asked, await prepare(asked)
        failure = None
        for engine in self.able(wanted):
            try:
                return engine, await prepare(engine)
            except UnsupportedTask as error:
                failure = error
        raise failure or self._unsupported()

    def first_able(self, wanted: Wanted) -> EngineLike:
        """The first of them; UnsupportedTask where there is none."""
        able = self.able(wanted)
        if not able:
            raise self._unsupported()
        return able[0]

    def _unsupported(self) -> UnsupportedTask:
        infos = [engine.info() for engine in self.engines]
        offers = "; ".join(f"{info.name}: {', '.join(task.value for task in info.tasks)}" for info in infos)
        return UnsupportedTask(f"no served model does what this request asks ({offers})")


def _can_answer(engine: EngineLike) -> bool:
    try:
        engine.check_health()
    except NotReady:
        return False
    return True
