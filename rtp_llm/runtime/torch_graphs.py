"""CUDA graphs for small batches, whose kernels take less time than their launches: one graph a bucket of tokens.

A batch is filled up to its bucket with sequences of its own kind that nobody reads, so that no kernel and no task has
to know of padding; a graph's kernels then find as many tokens and sequences each time. A bucket is computed without
a graph the first times. What a graph gains is measured when it is recorded: where it gains nothing, larger ones do not
either, and from that bucket on there are none. Where capturing fails, there are no graphs any more, and one line in the
log.
"""

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from rtp_llm.core import Batch, Item
from rtp_llm.errors import in_one_line
from rtp_llm.ops.torch_ops import TorchOps
from rtp_llm.runtime.torch_device import Device
from rtp_llm.runtime.torch_slot import Staged

logger = logging.getLogger(__name__)

# Takes the batches where the kernels find them -> all rows in one tensor, and the shape of each task's.
Compute = Callable[[Sequence[Batch]], tuple[torch.Tensor, list[tuple[int, ...]]]]

# A bucket is computed so often without a graph: kernels are compiled and chosen, workspaces are allocated.
_EAGER_TIMES = 2
_MAX_GRAPHS = 64
# What a graph may need at most of the device's memory, beside its share of the pool.
_LEAST_FREE = 512 << 20
# A graph that is not so many times as fast as its kernels one by one is not worth the tokens that fill its bucket.
_LEAST_GAIN = 1.1


class Bucket(NamedTuple):
    """How many tokens and sequences its batches have."""

    num_tokens: int
    num_seqs: int


def _bucket(num_tokens: int) -> Bucket:
    """For batches of so many tokens, and of a sequence for each 16 of them: what is left has room for one at least."""
    num_seqs = max(num_tokens // 16, 4)
    return Bucket(num_tokens + num_seqs, num_seqs + 1)


BUCKETS = tuple(map(_bucket, (32, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048)))


@dataclass(slots=True)
class _Graph:
    inputs: torch.Tensor
    output: torch.Tensor
    shapes: list[tuple[int, ...]]
    replay: Callable[[], None]


class Graphs:
    """Those of one model on one device, in at most `max_bytes`. Guarded by the device's launch lock."""

    def __init__(self, device: Device, ops: TorchOps, max_bytes: int, max_positions: int) -> None:
        self.enabled = bool(max_bytes) and ops.graph_safe
        self.num_replays = 0
        self._device = device
        self._ops = ops
        self._max_bytes = max_bytes
        self._max_positions = max_positions
        self._bytes = 0
        self._buckets: Sequence[Bucket] = BUCKETS
        self._seen: dict[Hashable, int] = {}
        self._graphs: dict[tuple[Bucket, Hashable], _Graph] = {}

    def __len__(self) -> int:
        return len(self._graphs)

    def fill(self, items: Sequence[Item]) -> tuple[Bucket, list[Item]] | None:
        """The smallest bucket for the items, and them with others that fill it; None where there is none."""
        num_tokens, num_seqs = sum(item.num_tokens for item in items), len(items)
        if not self.enabled:
            return None
        for bucket in self._buckets:
            tokens, seqs = bucket.num_tokens - num_tokens, bucket.num_seqs - num_seqs
            if (tokens, seqs) == (0, 0) or 0 < seqs <= tokens <= seqs * self._max_positions:
                return bucket, [*items, *_filling(tokens, seqs)]
        return None

    def run(
        self, bucket: Bucket, kind: Hashable, staged: Staged, batches: Sequence[Batch], compute: Compute
    ) -> _Graph | None:
        """Replay the graph of `kind` of batches of this bucket on what is staged, capturing it when its time has come.

        None: there is no graph. The caller holds the launch lock, computes on the device and has waited for the copy.
        """
        key = bucket, kind
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._capture(key, staged, batches, compute) if self._is_due(key) else None
            if graph is None:
                return None
        graph.inputs.copy_(staged.joined)
        graph.replay()
        self.num_replays += 1
        return graph

    def _is_due(self, key: tuple[Bucket, Hashable]) -> bool:
        self._seen[key] = self._seen.get(key, 0) + 1
        return (
            self.enabled
            and key[0] in self._buckets
            and self._seen[key] > _EAGER_TIMES
            and not self._is_full
            and self._device.free_bytes() > _LEAST_FREE
        )

    @property
    def _is_full(self) -> bool:
        return len(self._graphs) >= _MAX_GRAPHS or self._bytes >= self._max_bytes

    def _capture(
        self, key: tuple[Bucket, Hashable], staged: Staged, batches: Sequence[Batch], compute: Compute
    ) -> _Graph | None:
        # What is held for later use is not free: given back, it does not hide what the graph takes.
        self._device.empty_cache()
        free = self._device.free_bytes()
        try:
            inputs = staged.joined.clone()
            captured = [
                # Without the host's numbers, which are another batch's next time.
                replace(
                    self._ops.place(batch, arrays, offsets, inputs),
                    host=None,
                    max_seqlen=min(batch.num_tokens, self._max_positions),
                )
                for batch, arrays, offsets in zip(batches, staged.arrays, staged.offsets, strict=True)
            ]
            shapes: list[tuple[int, ...]] = []

            def recorded() -> torch.Tensor:
                joined, shapes[:] = compute(captured)
                return joined

            replay, output, gain = self._device.capture(recorded)
        except Exception as error:  # the border: whatever a kernel or a driver cannot record is computed without
            self.enabled = False
            logger.warning("no CUDA graphs, small batches take longer: %.250s", in_one_line(_first(error)))
            return None
        self._bytes += max(free - self._device.free_bytes(), 0)
        if gain < _LEAST_GAIN:
            logger.info("a CUDA graph of %d tokens gains nothing (%.2f times as fast)", key[0].num_tokens, gain)
            self._buckets = [bucket for bucket in self._buckets if bucket < key[0]]
            return None
        graph = self._graphs[key] = _Graph(inputs, output, shapes, replay)
        if self._is_full:  # nothing is filled for a graph that will not be
            self._buckets = [bucket for bucket in self._buckets if any(bucket == known for known, _ in self._graphs)]
        return graph


def _first(error: BaseException) -> BaseException:
    """What went wrong before all else: when a recording ends, CUDA says that it has failed, and not why."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def _filling(num_tokens: int, num_seqs: int) -> list[Item]:
    """Sequences of equal lengths, or nearly so."""
    return [
        Item(np.zeros((num_tokens + place) // num_seqs, np.int32), index=0) for place in range(num_seqs) if num_tokens
    ]
