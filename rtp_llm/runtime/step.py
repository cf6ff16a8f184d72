"""One batch from items to the tasks' tensors: what every runtime does, on whatever device."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rtp_llm.core import Batch, FloatArray, Int32Array, Item, Prefixes, Rows, TaskType, pack
from rtp_llm.models import Model
from rtp_llm.ops import Ops, Tensor
from rtp_llm.runtime.prefix_cache import PrefixCache
from rtp_llm.tasks import Task

# Takes a layer's queries, keys and values [T, ·] and a number of rows: keys and values of those first rows, kept.
TakeKeys = Callable[[Tensor, int], Any]


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be computed, on the host.

    items     what is asked, in the order of the rows
    batch     as `pack` left it: the model's `prepare` comes next
    prefixes  what the items begin with, of a model that shares them
    """

    tasks: Mapping[TaskType, Task]
    items: Sequence[Item]
    batch: Batch
    prefixes: Prefixes | None

    @property
    def shares(self) -> bool:
        """Some item leaves its first tokens to another sequence."""
        return self.prefixes is not None and bool(self.prefixes.new or self.prefixes.kept)

    @property
    def num_spared(self) -> int:
        """How many tokens fewer are computed since items share what they begin with, or it is kept."""
        return 0 if self.prefixes is None else sum(self.prefixes.skipped) - sum(map(len, self.prefixes.new))


def wanted_tasks(tasks: Mapping[TaskType, Task], items: Sequence[Item]) -> dict[TaskType, Task]:
    """The tasks that some item wants."""
    wanted = {name for item in items for name in item.tasks}
    return {name: task for name, task in tasks.items() if name in wanted}


def plan(model: Model, tasks: Mapping[TaskType, Task], items: Sequence[Item], cache: PrefixCache | None) -> Step:
    """Pack the items: rows and prefixes as the tasks and the model allow; without a cache each item brings its own."""
    read = {task.reads for task in tasks.values()}
    reads = read.pop() if len(read) == 1 else "all"
    prefixes = cache.find(items) if cache is not None and reads == "last" and model.shares_prefixes else None
    return Step(tasks, items, pack(items, reads, prefixes), prefixes)


def as_read(batch: Batch, items: Sequence[Item]) -> Batch:
    """What tasks see of the batch of these items: a sequence for each part of an item that has parts.

    Where some rows are wanted, which is not with parts, the model returns them alone: a sequence of one token each.
    """
    if any(item.parts for item in items):
        return _in_parts(batch, items)
    return batch if batch.wanted is None else _of_wanted(batch, batch.wanted)


def _in_parts(batch: Batch, items: Sequence[Item]) -> Batch:
    assert batch.wanted is None and batch.num_seqs == len(items)
    lengths = [length for item in items for length in item.parts or (item.num_tokens,)]
    prompt_lens = [length for item in items for length in (item.prompt_length, *(0 for _ in item.parts[1:]))]
    return replace(
        batch,
        cu_seqlens=np.cumsum([0, *lengths], dtype=np.int32),
        prompt_lens=np.array(prompt_lens, np.int32),
        seen_lens=None,
        max_seqlen=max(lengths),
    )


def _of_wanted(batch: Batch, wanted: Int32Array) -> Batch:
    num_rows = len(wanted)
    return Batch(
        input_ids=batch.input_ids[wanted],
        position_ids=batch.position_ids[wanted],
        token_type_ids=batch.token_type_ids[wanted],
        cu_seqlens=np.arange(num_rows + 1, dtype=np.int32),
        prompt_lens=np.zeros(num_rows, np.int32),
        max_seqlen=1,
    )


def forward(
    model: Model, ops: Ops, step: Step, batch: Batch, returned: Batch, take_keys: TakeKeys
) -> tuple[dict[TaskType, Tensor], list[Any]]:
    """Run the model, then each task -> its tensor, and for each layer what `take_keys` kept of new prefixes.

    `batch` and `returned` are the step's, where the kernels want them: what goes into the model and what it returns.
    """
    layers = {name: task.hidden_layers for name, task in step.tasks.items()}
    kept: list[Any] = []
    if step.prefixes is not None and step.prefixes.new:
        num_rows = sum(len(ids) for ids in step.prefixes.new)
        states: dict[tuple[int, ...], Tensor] = {
            (): model(ops, batch, on_keys=lambda _, qkv: kept.append(take_keys(qkv, num_rows)))
        }
    else:
        states = _hidden_states(model, ops, batch, layers.values())
    return {name: task(ops, states[layers[name]], returned) for name, task in step.tasks.items()}, kept


def _hidden_states(
    model: Model, ops: Ops, batch: Batch, wanted: Iterable[tuple[int, ...]]
) -> dict[tuple[int, ...], Tensor]:
    """Run the model -> the hidden states [T, len * H] of each combination of layers; () is the last alone."""
    combinations = {layers for layers in wanted if layers}
    if not combinations:
        return {(): model(ops, batch)}
    read, kept = set().union(*combinations), dict[int, Tensor]()

    def keep(number: int, hidden_states: Tensor) -> None:
        if number in read:
            kept[number] = hidden_states

    kept[len(model.layers)] = last = model(ops, batch, keep)
    return {(): last} | {layers: ops.concat([kept[number] for number in layers]) for layers in combinations}


def by_item(array: FloatArray, task: Task, batch: Batch, items: Sequence[Item]) -> Rows:
    """A task's array -> the rows of these items, the first of the batch.

    [n, ·]; or a list, where a row is an array of its own: [tokens, ·], or [parts, ·] of an item that has parts.
    """
    if task.per_token:
        return np.split(array, batch.cu_seqlens[1:-1])[: len(items)]
    if not any(item.parts for item in items):
        return array[: len(items)]
    stops = np.cumsum([len(item.parts) or 1 for item in items])
    pieces = np.split(array, stops[:-1])
    return [piece if item.parts else piece[0] for piece, item in zip(pieces, items, strict=True)]
