"""The CPU: each running batch has its own stream of ops, on one core at load and on all when it is alone."""

from collections.abc import Iterable, Mapping, Sequence
from queue import SimpleQueue

import numpy as np

from rtp_llm.core import Batch, FloatArray, Item, Prefixes, Rows, TaskType, pack
from rtp_llm.models import Model
from rtp_llm.ops import Ops, Tensor
from rtp_llm.runtime.prefix_cache import PrefixCache
from rtp_llm.tasks import Task, hidden_layers

# Activations of 1024 tokens of a base-sized model stay in the second-level cache; larger steps only add latency.
BATCH_TOKENS = 1024


class CpuRuntime:
    """`num_cores` streams that share the weights; also what a torch device without its own runtime gets.

    streams  those of another model on the same cores; a batch holds one while it runs, whoever's it is
    """

    batch_tokens = BATCH_TOKENS

    def __init__(
        self,
        *,
        model_type: str,
        model: Model,
        ops: Ops,
        num_cores: int,
        prefix_cache_bytes: int = 0,
        streams: "SimpleQueue[Ops] | None" = None,
    ) -> None:
        self.model_type = model_type
        self.model = model
        self.tasks: Mapping[TaskType, Task] = {}
        self.ops = ops
        self.num_cores = num_cores
        self._prefixes = PrefixCache(prefix_cache_bytes)
        self.streams: SimpleQueue[Ops] = SimpleQueue() if streams is None else streams
        if streams is None:
            for stream in [ops, *(ops.fork() for _ in range(num_cores - 1))]:
                self.streams.put(stream)

    def run(self, items: Sequence[Item], num_cores: int) -> dict[TaskType, Rows]:
        """Pack, run the model once and each task that some item wants on its hidden states."""
        wanted = {name for item in items for name in item.tasks}
        tasks = {name: task for name, task in self.tasks.items() if name in wanted}
        read = {task.reads for task in tasks.values()}
        reads = read.pop() if len(read) == 1 else "all"
        prefixes = self._prefixes.find(items) if reads == "last" and self.model.shares_prefixes else None
        packed = self.model.prepare(pack(items, reads, prefixes))
        ops = self.streams.get()
        try:
            ops.num_threads = num_cores
            returned = ops.upload(packed.as_read(items))
            layers = {name: hidden_layers(task) for name, task in tasks.items()}
            states = self._hidden_states(ops, ops.upload(packed), layers.values(), prefixes)
            tensors = {name: task(ops, states[layers[name]], returned) for name, task in tasks.items()}
            arrays = {name: ops.to_numpy(tensor) for name, tensor in tensors.items()}
        finally:
            self.streams.put(ops)
        return {
            name: _by_item(array, packed) if tasks[name].per_token else by_parts(array, items)
            for name, array in arrays.items()
        }

    def _hidden_states(
        self, ops: Ops, batch: Batch, wanted: Iterable[tuple[int, ...]], prefixes: Prefixes | None
    ) -> dict[tuple[int, ...], Tensor]:
        """Run the model -> the hidden states [T, len * H] of each combination of layers; () is the last alone."""
        combinations = {layers for layers in wanted if layers}
        if prefixes is not None and prefixes.new:
            return {(): self._run_and_keep(ops, batch, prefixes)}
        if not combinations:
            return {(): self.model(ops, batch)}
        read, kept = set().union(*combinations), dict[int, Tensor]()

        def keep(number: int, hidden_states: Tensor) -> None:
            if number in read:
                kept[number] = hidden_states

        kept[len(self.model.layers)] = last = self.model(ops, batch, keep)
        return {(): last} | {layers: ops.concat([kept[number] for number in layers]) for layers in combinations}

    def _run_and_keep(self, ops: Ops, batch: Batch, prefixes: Prefixes) -> Tensor:
        """Run the model; keys and values of the new prefixes, which are the batch's first rows, serve later batches."""
        rows = np.arange(batch.cu_seqlens[len(prefixes.new)], dtype=np.int32)
        layers: list[FloatArray] = []

        def keep(_: int, qkv: Tensor) -> None:
            layers.append(ops.to_numpy(ops.rows(qkv, rows))[:, -self.model.kv_size :])

        hidden_states = self.model(ops, batch, on_keys=keep)
        self._prefixes.add(ops, prefixes, layers)
        return hidden_states


def by_parts(array: FloatArray, items: Sequence[Item]) -> Rows:
    """A row for each part of each item, [·, D] -> one for each item: [D], or [parts, D] where it has parts."""
    if not any(item.parts for item in items):
        return array
    stops = np.cumsum([len(item.parts) or 1 for item in items])
    pieces = np.split(array, stops[:-1])
    return [piece if item.parts else piece[0] for piece, item in zip(pieces, items, strict=True)]


def _by_item(array: FloatArray, batch: Batch) -> list[FloatArray]:
    """[T, ·] -> a view [tokens, ·] for each sequence."""
    return np.split(array, batch.cu_seqlens[1:-1])
