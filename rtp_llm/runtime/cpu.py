"""The CPU: each running batch has its own stream of ops, on one core at load and on all when it is alone."""

from collections.abc import Iterable, Mapping, Sequence
from queue import SimpleQueue

import numpy as np

from rtp_llm.core import Batch, FloatArray, Item, Rows, TaskType, pack
from rtp_llm.models import Model
from rtp_llm.ops import Ops, Tensor
from rtp_llm.tasks import Task, hidden_layers

# Activations of 1024 tokens of a base-sized model stay in the second-level cache; larger steps only add latency.
BATCH_TOKENS = 1024


class CpuRuntime:
    """`num_cores` streams that share the weights; also what a torch device without its own runtime gets."""

    batch_tokens = BATCH_TOKENS

    def __init__(self, *, model_type: str, model: Model, ops: Ops, num_cores: int) -> None:
        self.model_type = model_type
        self.model = model
        self.tasks: Mapping[TaskType, Task] = {}
        self.ops = ops
        self.num_cores = num_cores
        self._streams: SimpleQueue[Ops] = SimpleQueue()
        for stream in [ops, *(ops.fork() for _ in range(num_cores - 1))]:
            self._streams.put(stream)

    def run(self, items: Sequence[Item], num_cores: int) -> dict[TaskType, Rows]:
        """Pack, run the model once and each task that some item wants on its hidden states."""
        wanted = {name for item in items for name in item.tasks}
        tasks = {name: task for name, task in self.tasks.items() if name in wanted}
        read = {task.reads for task in tasks.values()}
        reads = read.pop() if len(read) == 1 else "all"
        packed = self.model.prepare(pack(items, reads, share_prefixes=self.model.shares_prefixes))
        ops = self._streams.get()
        try:
            ops.num_threads = num_cores
            returned = ops.upload(packed.of_wanted())
            layers = {name: hidden_layers(task) for name, task in tasks.items()}
            states = self._hidden_states(ops, ops.upload(packed), layers.values())
            tensors = {name: task(ops, states[layers[name]], returned) for name, task in tasks.items()}
            arrays = {name: ops.to_numpy(tensor) for name, tensor in tensors.items()}
        finally:
            self._streams.put(ops)
        return {name: _by_item(array, packed) if tasks[name].per_token else array for name, array in arrays.items()}

    def _hidden_states(
        self, ops: Ops, batch: Batch, wanted: Iterable[tuple[int, ...]]
    ) -> dict[tuple[int, ...], Tensor]:
        """Run the model -> the hidden states [T, len * H] of each combination of layers; () is the last alone."""
        combinations = {layers for layers in wanted if layers}
        if not combinations:
            return {(): self.model(ops, batch)}
        read, kept = set().union(*combinations), dict[int, Tensor]()

        def keep(number: int, hidden_states: Tensor) -> None:
            if number in read:
                kept[number] = hidden_states

        kept[len(self.model.layers)] = last = self.model(ops, batch, keep)
        return {(): last} | {layers: ops.concat([kept[number] for number in layers]) for layers in combinations}


def _by_item(array: FloatArray, batch: Batch) -> list[FloatArray]:
    """[T, ·] -> a view [tokens, ·] for each sequence."""
    return np.split(array, batch.cu_seqlens[1:-1])
