"""The CPU: each running batch has its own stream of ops, on one core at load and on all when it is alone."""

from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue

import numpy as np

from rtp_llm.core import Batch, FloatArray, Item, Rows, TaskType
from rtp_llm.errors import DeviceLost
from rtp_llm.models import Model
from rtp_llm.ops import Ops, Tensor
from rtp_llm.runtime.prefix_cache import PrefixCache
from rtp_llm.runtime.recordings import Recordings
from rtp_llm.runtime.step import Step, as_read, by_item, forward, plan, wanted_tasks
from rtp_llm.tasks import Task

# Activations of 1024 tokens of a base-sized model stay in the second-level cache; larger steps only add latency.
BATCH_TOKENS = 1024


class CpuRuntime:
    """`num_cores` streams that share the weights.

    streams  those of another model on the same cores; a batch holds one while it runs, whoever's it is
    """

    batch_tokens = BATCH_TOKENS
    num_devices = 0

    def __init__(
        self,
        *,
        model_type: str,
        model: Model,
        ops: Ops,
        num_cores: int,
        dtype: str = "fp32",
        prefix_cache_bytes: int = 0,
        streams: "SimpleQueue[Ops] | None" = None,
    ) -> None:
        self.model_type = model_type
        self.model = model
        self.tasks: Mapping[TaskType, Task] = {}
        self.ops = ops
        self.num_cores = num_cores
        self.dtype = dtype
        self.replicas = (self,)
        self.counts: Mapping[str, float] = {}
        self._prefixes = PrefixCache(prefix_cache_bytes)
        self._recordings = Recordings()
        self.streams: SimpleQueue[Ops] = SimpleQueue() if streams is None else streams
        if streams is None:
            for stream in [ops, *(ops.fork() for _ in range(num_cores - 1))]:
                self.streams.put(stream)

    def start(self, max_seq_len: int) -> None:
        """There is nothing to find out."""

    def watch(self, on_lost: Callable[[DeviceLost], None]) -> None:
        """The CPU is not lost."""

    def close(self) -> None:
        """There is nothing to end."""

    def run(self, items: Sequence[Item], num_cores: int) -> dict[TaskType, Rows]:
        """Pack, run the model once and each task that some item wants on its hidden states."""
        step = plan(self.model, wanted_tasks(self.tasks, items), items, self._prefixes)
        packed = self.model.prepare(step.batch)
        ops = self.streams.get()
        try:
            ops.num_threads = num_cores
            rows = self._recordings.run(ops, step, packed, lambda batch: self._tensors(ops, step, batch).popitem()[1])
            if rows is not None:
                arrays = dict.fromkeys(step.tasks, rows)
            else:
                arrays = {name: ops.to_numpy(tensor) for name, tensor in self._tensors(ops, step, packed).items()}
        finally:
            self.streams.put(ops)
        return {name: by_item(array, step.tasks[name], packed, items) for name, array in arrays.items()}

    def _tensors(self, ops: Ops, step: Step, packed: Batch) -> dict[TaskType, Tensor]:
        """Ask for the forward and the step's tasks."""
        read = as_read(packed, step.items)
        returned = ops.upload(read)
        batch = returned if read is packed else ops.upload(packed)

        def take_keys(qkv: Tensor, num_rows: int) -> FloatArray:
            return ops.to_numpy(ops.rows(qkv, np.arange(num_rows, dtype=np.int32)))[:, -self.model.kv_size :]

        tensors, kept = forward(self.model, ops, step, batch, returned, take_keys)
        if step.prefixes is not None and kept:
            self._prefixes.add(step.prefixes, kept, lambda part: ops.vector(part.copy()))
        return tensors
