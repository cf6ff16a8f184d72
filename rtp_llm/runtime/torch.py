"""A torch device: packed batches, one copy in, kernels enqueued without waiting, one copy out.

Each slot is a batch in flight with buffers of its own. A thread packs its batch, starts its copy, enqueues its kernels
under the launch lock (one stream, one order) and waits, without the interpreter lock, for its rows; meanwhile the next
thread enqueues the next batch. Nothing waits for the device in between.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
import torch

from rtp_llm.core import Batch, Item, Rows, TaskType
from rtp_llm.errors import DeviceLost, EngineFailure, one_line
from rtp_llm.models import Model
from rtp_llm.ops.native_checks import check_ids
from rtp_llm.ops.torch_ops import TorchOps
from rtp_llm.runtime.prefix_cache import PrefixCache
from rtp_llm.runtime.step import Step, as_read, by_item, forward, plan, wanted_tasks
from rtp_llm.runtime.token_budget import TokenBudget
from rtp_llm.runtime.torch_device import Device, Event
from rtp_llm.runtime.torch_graphs import Bucket, Graphs
from rtp_llm.runtime.torch_parallel import Leader
from rtp_llm.runtime.torch_slot import Slot
from rtp_llm.tasks import Task

logger = logging.getLogger(__name__)

_DTYPE_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
# A device reads its weights as long as it computes so many tokens: a graph spares more time than a prefix of no more.
_FEW_TOKENS = 256


class _Flight(NamedTuple):
    """A batch that the device works on; `tensor` is held until its rows are read."""

    batch: Batch
    shapes: list[tuple[int, ...]]
    tensor: torch.Tensor
    done: Event


class TorchRuntime:
    """One model on one device, or, with a `leader`, the first of several processes that hold a part of it each.

    budget         the token budget, and how it is found out
    graph_bytes    memory for CUDA graphs; 0: none
    """

    num_devices = 1

    def __init__(
        self,
        *,
        model_type: str,
        model: Model,
        ops: TorchOps,
        device: Device,
        budget: TokenBudget,
        prefix_cache_bytes: int = 0,
        graph_bytes: int = 0,
        leader: Leader | None = None,
    ) -> None:
        self.model_type = model_type
        self.model = model
        self.tasks: Mapping[TaskType, Task] = {}
        self.ops = ops
        self.device = device
        self.dtype = _DTYPE_NAMES[ops.dtype]
        self.num_cores = device.num_slots
        self.replicas = (self,)
        self.batch_tokens = budget.tokens
        self.counts = {"out_of_memory": 0.0, "graphs": 0.0, "graph_replays": 0.0, "largest_step": 0.0}
        types = getattr(model, "token_type", None)
        self._num_types = None if types is None else len(types)
        self._budget = budget
        self._prefixes = PrefixCache(prefix_cache_bytes)
        reads_host = not ops.reads_host.isdisjoint(model.reads_host)
        self._graphs = Graphs(device, ops, 0 if reads_host else graph_bytes, model.max_positions)
        self._leader = leader
        self._largest_step: int | None = None
        self._launch = device.launch
        self._slots: SimpleQueue[Slot] = SimpleQueue()
        for _ in range(device.num_slots):
            self._slots.put(Slot(device))

    def start(self, max_seq_len: int) -> None:
        """Find out the step that this device likes, unless it is given or known; once, when the tasks are there."""
        with self._launch:
            self.device.synchronize()
            # What loading held was on another stream, whose memory batches cannot have.
            self.device.empty_cache()
        self.batch_tokens = self._budget.find(self, max_seq_len)
        # What was too large while sizes were tried is not tried again.
        self._largest_step = None

    def watch(self, on_lost: Callable[[DeviceLost], None]) -> None:
        """Be told when nothing can be computed any more, though no batch has shown it yet."""
        if self._leader is not None:
            self._leader.on_lost(on_lost)

    def close(self) -> None:
        """End the other processes."""
        if self._leader is not None:
            self._leader.close()

    def run(self, items: Sequence[Item], num_cores: int) -> dict[TaskType, Rows]:
        """Compute one batch; out of memory, its halves, and no step as large from then on."""
        with torch.inference_mode():
            return self._run(items, wanted_tasks(self.tasks, items))

    def _run(self, items: Sequence[Item], tasks: Mapping[TaskType, Task]) -> dict[TaskType, Rows]:
        num_tokens = sum(item.num_own_tokens for item in items)
        if len(items) > 1 and self._largest_step is not None and num_tokens > self._largest_step:
            return self._halves(items, tasks)
        try:
            return self._compute(items, tasks)
        except torch.OutOfMemoryError:
            if self._leader is not None:
                raise DeviceLost("out of memory: --max_context_batch_size sets a smaller step") from None
        # NOTE: below the `except`, where the error's frames, which hold the batch's tensors, are gone.
        self._shrink(num_tokens)
        if len(items) > 1:
            return self._halves(items, tasks)
        try:
            return self._compute(items, tasks)
        except torch.OutOfMemoryError:
            raise EngineFailure(
                f"an input of {items[0].num_tokens} tokens needs more memory than the device has free; "
                "--max_seq_len sets a lower limit"
            ) from None

    def _shrink(self, num_tokens: int) -> None:
        """Steps of half the tokens, for good."""
        largest = max(num_tokens // 2, 1)
        self._largest_step = min(self._largest_step or largest, largest)
        self.counts["out_of_memory"] += 1
        self.counts["largest_step"] = self._largest_step
        logger.warning(
            "the device is out of memory at %d tokens; steps have up to %d from now on", num_tokens, self._largest_step
        )
        with self._launch:
            # The other batches in flight end first, so that the next attempt has their memory too.
            self.device.synchronize()
            self.device.empty_cache()

    def _halves(self, items: Sequence[Item], tasks: Mapping[TaskType, Task]) -> dict[TaskType, Rows]:
        middle = len(items) // 2
        first, second = self._run(items[:middle], tasks), self._run(items[middle:], tasks)
        return {name: _joined(rows, second[name]) for name, rows in first.items()}

    def _compute(self, items: Sequence[Item], tasks: Mapping[TaskType, Task]) -> dict[TaskType, Rows]:
        step, bucket = plan(self.model, tasks, items, self._prefixes), None
        has_parts = any(item.parts for item in items)
        if not has_parts and self._leader is None and step.num_spared <= _FEW_TOKENS:
            filled = self._graphs.fill(items)
            if filled is not None:
                bucket, every = filled
                step = plan(self.model, tasks, every, None)
        slot = self._slots.get()
        try:
            flight = self._enqueue(slot, step, bucket)
            flight.done.synchronize()
            arrays = slot.read(flight.shapes)
        except BaseException as error:
            # Nothing may still write to the slot when the next batch takes it.
            self._settle(error)
            raise
        finally:
            self._slots.put(slot)
        named = zip(step.tasks.items(), arrays, strict=True)
        return {name: by_item(array, task, flight.batch, items) for (name, task), array in named}

    def _settle(self, error: BaseException) -> None:
        try:
            # Locked, since a stream that records a graph, another thread's, cannot be waited for.
            with self._launch:
                self.device.synchronize()
        except RuntimeError as fatal:
            raise DeviceLost(f"the device has failed: {one_line(fatal):.200}") from error
        if self._leader is not None and not isinstance(error, torch.OutOfMemoryError):
            # The others wait in the middle of this batch, or have ended.
            raise DeviceLost(f"a batch failed on several devices: {type(error).__name__}") from error

    def _enqueue(self, slot: Slot, step: Step, bucket: Bucket | None) -> _Flight:
        """Copy in, compute, copy out: all begun, none waited for."""
        packed = self.model.prepare(step.batch)
        if self._num_types is not None:
            # A kernel reads whatever stands behind its table. Ids and lengths are checked where texts become tokens.
            check_ids(packed.token_type_ids, self._num_types)
        returned = as_read(packed, step.items)
        batches = [packed] if returned is packed else [packed, returned]
        plain = type(packed) is Batch  # one with angles of its own is made on the host
        staged = slot.stage(self.ops, batches, fixed=bucket is not None and plain)
        with self._launch, self.device.computing():
            if self._leader is not None:
                self._leader.announce(step.batch)
            self.device.wait(staged.ready)
            graph = None
            if bucket is not None and plain:
                kind = (tuple(step.tasks), len(batches), len(staged.joined), packed.adapter_numbers)
                graph = self._graphs.run(bucket, kind, staged, batches, lambda placed: self._tensors(step, placed))
                self.counts |= {"graphs": len(self._graphs), "graph_replays": self._graphs.num_replays}
            if graph is not None:
                tensor, shapes = graph.output, graph.shapes
            else:
                placed = [
                    self.ops.place(batch, arrays, offsets, staged.joined)
                    for batch, arrays, offsets in zip(batches, staged.arrays, staged.offsets, strict=True)
                ]
                tensor, shapes = self._tensors(step, placed)
            # A graph's output is written again by its next replay.
            done = self.device.copy_out(slot.output(len(tensor)), tensor, in_order=graph is not None)
        return _Flight(packed, shapes, tensor, done)

    def _tensors(self, step: Step, placed: Sequence[Batch]) -> tuple[torch.Tensor, list[tuple[int, ...]]]:
        """Enqueue the forward -> the rows of all tasks end to end in fp32, and the shapes they have."""

        def take_keys(qkv: torch.Tensor, num_rows: int) -> torch.Tensor:
            return qkv[:num_rows, -self.model.kv_size :].clone()

        tensors, kept = forward(self.model, self.ops, step, placed[0], placed[-1], take_keys)
        if step.prefixes is not None and kept:
            self._prefixes.add(step.prefixes, kept, torch.Tensor.clone)
        tensors = {name: self.ops.plain(tensor) for name, tensor in tensors.items()}
        rows = [tensor.float().reshape(-1) for tensor in tensors.values()]
        shapes = [tuple(tensor.shape) for tensor in tensors.values()]
        return rows[0] if len(rows) == 1 else torch.cat(rows), shapes


def _joined(first: Rows, second: Rows) -> Rows:
    if isinstance(first, list) or isinstance(second, list):
        return [*first, *second]
    return np.concatenate([first, second])
