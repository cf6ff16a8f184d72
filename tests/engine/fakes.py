"""A runtime that needs no model and a tokeniser that needs no files."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from rtp_llm.config import EngineConfig
from rtp_llm.core import FloatArray, Input, Item, ModelInfo, Params, Reads, Request, Response, Rows, TaskType
from rtp_llm.engine.engine import Engine
from rtp_llm.engine.estimate import Estimate
from rtp_llm.engine.lane import Lane
from rtp_llm.engine.lane_threads import LaneThreads
from rtp_llm.engine.tokenizer_pool import TokenizerPool
from rtp_llm.errors import InvalidRequest
from rtp_llm.observability import Metrics
from rtp_llm.tasks import Task

DIM = 4
INFO = ModelInfo(
    name="fake",
    model_type="fake",
    tasks=(TaskType.DENSE,),
    dimension=DIM,
    max_seq_len=64,
    vocab_size=256,
    backend="fake",
    instruction_set="none",
    num_threads=2,
    dtype="fp32",
    max_batch_tokens=64,
)


class FakeTask(Task):
    dimension = DIM
    per_token = False
    reads: Reads = "last"

    def check(self, params: Params) -> None:
        if params.dimensions is not None and params.dimensions > DIM:
            raise InvalidRequest("dimensions too large")

    def __call__(self, ops: Any, hidden_states: Any, batch: Any) -> Any:
        raise AssertionError("FakeRuntime has the rows")

    def finish(self, rows: Rows, params: Params, input_ids: Sequence[Any]) -> Any:
        assert not isinstance(rows, list)
        return rows[:, : params.dimensions]


class FakeRuntime:
    """A row holds the sum and the length of its ids; a batch with id 13 raises, one with id 14 gives NaN."""

    batch_tokens = 64
    num_devices = 0
    counts: ClassVar[dict[str, float]] = {}

    def watch(self, on_lost: Any) -> None:
        """It is not lost."""

    def close(self) -> None:
        """It has started nothing."""

    def __init__(self, num_cores: int = 2, seconds: float = 0.0) -> None:
        self.num_cores = num_cores
        self.tasks = {TaskType.DENSE: FakeTask()}
        self.seconds = seconds
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def run(self, items: Sequence[Item], num_cores: int) -> dict[TaskType, FloatArray]:
        assert self.gate.wait(60)
        self.batches.append(len(items))
        time.sleep(self.seconds)
        ids = [item.input_ids for item in items]
        if any(13 in row for row in ids):
            raise RuntimeError("unlucky")
        rows = np.array([[row.sum(), len(row), 0, 1] for row in ids], dtype=np.float32)
        rows[[14 in row for row in ids]] = np.nan
        return {TaskType.DENSE: rows}


class FakeTokenizer:
    """One id a character; inputs of more than 20 characters in all go to a thread."""

    tokenizer = None  # it is its own

    def __init__(self) -> None:
        self._threads = LaneThreads(2, "fake")

    def estimate(self, params: Params) -> Estimate:
        return Estimate(len(params.prompt or ""), INFO.max_seq_len, params.chunking)

    def is_small(self, inputs: Sequence[Input], estimate: Estimate) -> bool:
        return sum(len(text) for text in inputs) <= 20

    def is_one_part(self, inputs: Sequence[Input], estimate: Estimate) -> bool:
        return sum(len(text) for text in inputs) <= 100

    def encode(self, inputs: Sequence[Any], params: Params, start: int = 0, *, rerank: bool = False) -> list[Item]:
        if "refuse" in inputs:
            raise InvalidRequest("refused")
        if "break" in inputs:
            raise ValueError("broken")
        rows = [[ord(letter) for letter in text] if isinstance(text, str) else text for text in inputs]
        return [Item(np.array(row, np.int32), start + i, truncated=len(row) > 60) for i, row in enumerate(rows)]

    def read(self, request: Request, start: int, stop: int) -> list[Item]:
        pool: Any = self
        return TokenizerPool.read(pool, request, start, stop)

    def submit(self, work: Callable[[], bool], lane: Lane) -> None:
        self._threads.submit(work, lane)

    def close(self, timeout: float) -> None:
        self._threads.close(timeout)


def make_engine(runtime: FakeRuntime, beside: Engine | None = None, **options: Any) -> Engine:
    """On the device of `beside`, or on one of its own."""
    config = EngineConfig(checkpoint_path="fake", **options)
    tokenizer: Any = FakeTokenizer()
    anything: Any = runtime
    return Engine(config, anything, tokenizer, INFO, Metrics(), beside.device if beside else None)


def ask(*inputs: Any, **params: Any) -> Request:
    return Request(inputs=list(inputs), params=Params(**params))


def lengths(response: Response) -> list[int]:
    return [int(row[1]) for row in response.outputs[TaskType.DENSE]]


async def all_cores_work(engine: Engine) -> None:
    while engine.device.scheduler.free_cores:
        await asyncio.sleep(0.002)


def hold_encoding(engine: Engine) -> threading.Event:
    """-> what the tokeniser threads wait for before each part."""
    encode, go = engine._tokenizer.encode, threading.Event()

    def held(*args: Any, **options: Any) -> Any:
        assert go.wait(60)
        return encode(*args, **options)

    engine._tokenizer.encode = held  # type: ignore[method-assign]
    return go


def slow_to_encode(engine: Engine, seconds: float) -> list[int]:
    """-> how many inputs were encoded at a time, as it goes on."""
    encode, parts = engine._tokenizer.encode, list[int]()

    def slowly(inputs: Any, *args: Any, **options: Any) -> Any:
        parts.append(len(inputs))
        time.sleep(seconds)
        return encode(inputs, *args, **options)

    engine._tokenizer.encode = slowly  # type: ignore[method-assign]
    return parts
