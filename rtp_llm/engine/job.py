"""A request on its way through the engine."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from rtp_llm.core import NO_ADAPTER, FloatArray, Int32Array, Item, Request, Response, Rows, TaskType
from rtp_llm.engine.chunker import ChunkRows
from rtp_llm.engine.lane import Lane
from rtp_llm.timings import Timings

_NO_IDS: Int32Array = np.zeros(0, np.int32)
_NO_SPANS: Int32Array = np.zeros((0, 2), np.int32)
_NO_ROWS: FloatArray = np.zeros((0, 0), np.float32)


class Job:
    """Collects a request's rows as its items are computed, in whatever batches.

    `future` is resolved by the engine when the last row is in, or with the first error. `loop` is set when the future
    belongs to an event loop and must be resolved on it. Once some of it is queued, the object belongs to the engine's
    lock.

    announced   tokens that are expected of inputs which have not been tokenised yet
    batch_rows  sequences of the step that computes the first of its items
    chunks      instead of `outputs`, where inputs are computed in chunks or windows
    model       the number of its model among those of the device
    num_chunks  that have come of its inputs, where those are computed in chunks
    next_input  the first of its inputs that a tokeniser thread has not seen to yet
    places      where its items wait, as the queue has it
    spans       of its inputs' tokens, where entities are wanted
    """

    __slots__ = (
        "announced",
        "batch_rows",
        "cancelled",
        "chunks",
        "computing_at",
        "error",
        "future",
        "input_ids",
        "lane",
        "loop",
        "model",
        "next_input",
        "num_chunks",
        "num_tokens",
        "outputs",
        "places",
        "queued_items",
        "queued_tokens",
        "remaining",
        "request",
        "spans",
        "started_at",
        "tokenized_at",
        "total_tokens",
        "truncated",
    )

    def __init__(
        self,
        request: Request,
        future: "asyncio.Future[Response] | Future[Response]",
        loop: Any | None = None,
        lane: Lane = Lane.INTERACTIVE,
        model: int = 0,
    ) -> None:
        count = len(request.inputs)
        self.request = request
        self.future = future
        self.loop = loop
        self.lane = lane
        self.model = model
        self.announced = 0
        self.batch_rows = self.next_input = 0
        self.remaining = count
        self.queued_tokens = self.queued_items = self.total_tokens = self.num_chunks = 0
        self.cancelled = False
        self.error: Exception | None = None
        self.outputs: dict[TaskType, Rows] = {}
        self.places: list[Any] = []
        in_chunks = request.params.chunking == "mean" or request.params.stride is not None
        self.chunks = ChunkRows(count) if in_chunks else None
        self.input_ids = [_NO_IDS] * count
        self.spans: list[Int32Array] = [_NO_SPANS] * count if request.params.aggregation_strategy is not None else []
        self.num_tokens = [0] * count
        self.truncated = [False] * count
        self.started_at = time.perf_counter()
        self.tokenized_at = self.computing_at = 0.0

    @property
    def done(self) -> bool:
        """Nothing more is wanted of it: answered, failed or left by its client."""
        return self.cancelled or self.error is not None or self.remaining == 0

    @property
    def tokens_to_compute(self) -> int:
        """Of what waits, identical items once, and of what is still expected."""
        waiting: int = sum(place.num_own_tokens for place in set(self.places) if place.items)
        return self.announced + waiting

    def accept(self, items: list[Item], adapter: int = NO_ADAPTER) -> None:
        """The tokeniser's word on some of the inputs, which are computed with the adapter of this number."""
        self.tokenized_at = time.perf_counter()
        in_chunks = self.request.params.chunking is not None or self.chunks is not None
        for item in items:
            item.owner = self
            item.tasks = self.request.tasks
            item.adapter = adapter
            self.total_tokens += len(item.input_ids)
            if in_chunks:
                continue
            self.input_ids[item.index] = item.input_ids
            self.num_tokens[item.index] = len(item.input_ids)
            self.truncated[item.index] = item.truncated
            if item.spans is not None:
                self.spans[item.index] = item.spans
        if in_chunks:
            self._accept_chunks(items)

    def _accept_chunks(self, items: list[Item]) -> None:
        """Tokens of several inputs in one item, or of one input in several; all of an input's come together."""
        self.num_chunks += len(items)
        pieces: dict[int, list[Int32Array]] = {}
        spans: dict[int, list[Int32Array]] = {}
        for item in items:
            parts = np.split(item.input_ids, np.cumsum(item.parts)[:-1]) if item.parts else [item.input_ids]
            for index, ids in enumerate(parts, item.index):
                pieces.setdefault(index, []).append(ids)
            if item.spans is not None:
                spans.setdefault(item.index, []).append(item.spans)
        for index, several in spans.items():
            self.spans[index] = np.concatenate(several)
        for index, own in pieces.items():
            self.input_ids[index] = np.concatenate(own)
            self.num_tokens[index] = len(self.input_ids[index])

    def store(self, item: Item, rows: Mapping[TaskType, FloatArray]) -> None:
        """One item's own rows: [·], or [tokens, ·] where a task has a row for each token. They are copied."""
        if not self.computing_at:  # nothing had to be computed for it
            self.computing_at = time.perf_counter()
        if self.chunks is not None:
            self.remaining -= self.chunks.add(item, rows[self.request.tasks[0]])
            return
        if item.parts:
            self.outputs = {task: rows[task].copy() for task in self.request.tasks}
            self.remaining = 0
            return
        for task in self.request.tasks:
            row, own = rows[task], self.outputs.get(task)
            if own is None:
                own = self.outputs[task] = self._room_for(row)
            # A copy: a view would keep the arrays of the whole batch until this job is done.
            own[item.index] = row.copy() if isinstance(own, list) else row
        self.remaining -= 1

    def answer(self) -> None:
        """One item is answered without a row."""
        self.remaining -= 1
        if not self.remaining and not self.computing_at:  # nothing had to be computed for any
            self.computing_at = time.perf_counter()

    def rows(self, task: TaskType) -> Rows:
        """A task's rows, in the order of the inputs; what was answered without one has none, or one of no meaning.

        Of inputs that are read in parts, those of each part.
        """
        if self.chunks is not None:
            return [row for own in self.chunks.rows for row in own]
        return self.outputs.get(task, np.zeros((len(self.num_tokens), 0), np.float32))

    def _room_for(self, row: FloatArray) -> Rows:
        count = len(self.num_tokens)
        if row.ndim > 1:
            return [_NO_ROWS] * count
        return np.empty((count, len(row)), dtype=np.float32)

    def timings(self) -> Timings:
        """Seconds by stage, up to now. Tokenising of later parts overlaps with computing in a large request."""
        now = time.perf_counter()
        return Timings(
            started_at=self.started_at,
            tokenize=min(self.tokenized_at, self.computing_at) - self.started_at,
            queue=max(self.computing_at - self.tokenized_at, 0.0),
            compute=now - self.computing_at,
            total=now - self.started_at,
        )


def note_start(groups: Sequence[Sequence[Item]], now: float) -> None:
    """A step begins, of identical items together; for some of their jobs it is the first."""
    for group in groups:
        for item in group:
            job: Job = item.owner
            if not job.computing_at:
                job.computing_at, job.batch_rows = now, len(groups)
