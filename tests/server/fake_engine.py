"""An engine without a model: vectors that depend on the input alone, and every way of failing on demand."""

import asyncio
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from rtp_llm.core import FloatArray, Input, ModelInfo, Request, Response, SparseVector, TaskType
from rtp_llm.entities import Entity
from rtp_llm.errors import NotReady, UnsupportedTask
from rtp_llm.observability import Metrics, Waiting
from rtp_llm.timings import Timings

DIMENSION = 8
VOCAB_SIZE = 100
MAX_SEQ_LEN = 16
ENTITY = Entity("yes", 0.5, "a", 0, 1)


def vector_of(value: Input, dimension: int = DIMENSION) -> FloatArray:
    """The vector that FakeEngine gives for `value`, whatever else is in the request."""
    random = np.random.default_rng(zlib.crc32(repr(value).encode()))
    return random.standard_normal(dimension).astype(np.float32)


class FakeToken(NamedTuple):
    id: int
    text: str
    start: int | None = None
    stop: int | None = None
    special: bool = False


class NoQueue:
    """Nothing waits for a step: every request runs at once."""

    tokens = 0
    items = 0


class FakePart(NamedTuple):
    start: int
    stop: int
    tokens: list[FakeToken]


class FakeEngine:
    """`error`, `delay`, `not_ready` and `vector` change the behaviour; `requests` and `cancelled` tell the past.

    `facts` are what its info says otherwise than usual.
    """

    def __init__(self, **facts: Any) -> None:
        self.metrics = Metrics()
        self._facts = facts
        self._running: list[Request] = []
        self.metrics.watch_lane("interactive", NoQueue(), self._running)
        self.reset()

    def reset(self) -> None:
        self.requests: list[Request] = []
        self.chats: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self.delay = 0.0
        self.not_ready = ""
        self.vector: FloatArray | None = None
        self.cancelled = 0

    @property
    def running(self) -> int:
        """Requests that have no answer yet; `requests_in_flight` among the metrics."""
        return len(self._running)

    def info(self) -> ModelInfo:
        usual = ModelInfo(
            name="fake/model",
            model_type="bert",
            tasks=(TaskType.DENSE,),
            dimension=DIMENSION,
            max_seq_len=MAX_SEQ_LEN,
            vocab_size=VOCAB_SIZE,
            backend="fake",
            instruction_set="none",
            num_threads=1,
            dtype="fp32",
            max_batch_tokens=64,
            prompts=("query", "passage"),
            created=1700000000,
        )
        return replace(usual, **self._facts)

    def check_health(self) -> None:
        if self.not_ready:
            raise NotReady(self.not_ready)

    async def waiting(self) -> Waiting:
        return self.metrics.waiting()

    def tokens(self, text: str, *, add_special_tokens: bool = True) -> list[FakeToken]:
        """A token a letter, between two special ones."""
        letters = [FakeToken(ord(letter), letter, i, i + 1) for i, letter in enumerate(text)]
        if not add_special_tokens:
            return letters
        return [FakeToken(1, "[CLS]", special=True), *letters, FakeToken(2, "[SEP]", special=True)]

    def token_parts(self, text: str, *, add_special_tokens: bool = True) -> Iterator[FakePart]:
        """All in one part."""
        yield FakePart(0, len(text), self.tokens(text, add_special_tokens=add_special_tokens))

    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        """What `tokens` made the ids of."""
        return "".join(chr(token_id) for token_id in ids if not (skip_special_tokens and token_id in (1, 2)))

    def prompt(self, name: str) -> str:
        return f"{name}: "

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """Roles and contents; what was asked for is in `chats`."""
        self.chats.append(options)
        return "\n".join(f"{message['role']}: {message['content']}" for message in messages)

    async def run(self, request: Request) -> Response:
        self.requests.append(request)
        self._running.append(request)
        try:
            await asyncio.sleep(self.delay)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self._running.remove(request)
        if self.error is not None:
            raise self.error
        return self._respond(request)

    def _respond(self, request: Request) -> Response:
        dimension = request.params.dimensions or DIMENSION
        lengths = [len(value.split()) + 2 if isinstance(value, str) else len(value) for value in request.inputs]
        rows = [vector_of(value, dimension) if self.vector is None else self.vector for value in request.inputs]
        count = len(rows)
        outputs: dict[TaskType, Any] = {
            TaskType.DENSE: np.stack(rows),
            TaskType.RERANK: np.arange(count, dtype=np.float32) / (1 + count),
            TaskType.CLASSIFY: np.tile(np.array([0.25, 0.75], np.float32), (count, 1)),
            TaskType.SPARSE: [SparseVector(np.array([3, 7], np.int32), np.abs(row[:2])) for row in rows],
            TaskType.COLBERT: [row[None] for row in rows],
            TaskType.TOKENS: [row[None] for row in rows],
            TaskType.TOKEN_CLASSIFY: [[ENTITY] if request.params.aggregation_strategy else row[None] for row in rows],
        }
        if not set(request.tasks) <= set(outputs):
            raise UnsupportedTask("this model does not do that")
        return Response(
            outputs={task: outputs[task] for task in request.tasks},
            num_tokens=[min(length, MAX_SEQ_LEN) for length in lengths],
            truncated=[length > MAX_SEQ_LEN for length in lengths],
            timings=Timings(tokenize=0.001, queue=0.002, compute=0.003, total=0.006),
        )
