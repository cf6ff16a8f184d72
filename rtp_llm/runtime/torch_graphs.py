"""CUDA graphs for small batches, whose kernels take less time than their launches: one graph a bucket of tokens.

A batch is filled up to its bucket with sequences of its own kind that nobody reads, so that no kernel and no task has
to know of padding; a graph's kernels then find as many tokens and sequences each time. A bucket is computed without
a graph the first times. Where capturing fails, there are no graphs any more, and one line in the log.
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


class Bucket(NamedTuple):
    """How many tokens and sequences its batches have."""

    num_tokens: int
    num_seqs: int


BUCKETS = tuple(Bucket(tokens, max(tokens // 16, 4)) for tokens in (32, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048))


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
        self._seen: dict[Hashable, int] = {}
        self._graphs: dict[Hashable, _Graph] = {}

    def __len__(self) -> int:
        return len(self._graphs)

    def fill(self, items: Sequence[Item]) -> tuple[Bucket, list[Item]] | None:
        """The smallest bucket for the items, and them with others that fill it; None where there is none."""
        num_tokens, num_seqs = sum(item.num_tokens for item in items), len(items)
        if not self.enabled or num_tokens > BUCKETS[-1].num_tokens:
            return None
        for bucket in BUCKETS:
            tokens, seqs = bucket.num_tokens - num_tokens, bucket.num_seqs - num_seqs
            if (tokens, seqs) == (0, 0) or 0 < seqs <= tokens <= seqs * self._max_positions:
                return bucket, [*items, *_filling(tokens, seqs)]
        return None

    def run(self, key: Hashable, staged: Staged, batches: Sequence[Batch], compute: Compute) -> _Graph | None:
        """Replay the graph of `key` on what is staged, capturing it when its time has come.

        None: there is no graph. The caller holds the launch lock, computes on the device and has waited for the copy.
        """
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._capture(key, staged, batches, compute) if self._is_due(key) else None
            if graph is None:
                return None
        graph.inputs.copy_(staged.joined)
        graph.replay()
        self.num_replays += 1
        return graph

    def _is_due(self, key: Hashable) -> bool:
        self._seen[key] = self._seen.get(key, 0) + 1
        full = len(self._graphs) >= _MAX_GRAPHS or self._bytes >= self._max_bytes
        return self.enabled and not full and self._seen[key] > _EAGER_TIMES and self._device.free_bytes() > _LEAST_FREE

    def _capture(self, key: Hashable, staged: Staged, batches: Sequence[Batch], compute: Compute) -> _Graph | None:
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

            replay, output = self._device.capture(recorded)
        except Exception as error:  # the border: whatever a kernel or a driver cannot record is computed without
            self.enabled = False
            logger.warning("no CUDA graphs, small batches take longer: %.250s", in_one_line(error))
            return None
        self._bytes += max(free - self._device.free_bytes(), 0)
        graph = self._graphs[key] = _Graph(inputs, output, shapes, replay)
        return graph


def _filling(num_tokens: int, num_seqs: int) -> list[Item]:
    """Sequences of equal lengths, or nearly so."""
    return [
        Item(np.zeros((num_tokens + place) // num_seqs, np.int32), index=0) for place in range(num_seqs) if num_tokens
    ]
