"""The CPU runtime: a batch computes the tasks that its items want, each once."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rtp_llm.core import Batch, Int32Array, Item, Params, Reads, Rows, TaskType
from rtp_llm.ops.numpy_ops import NumpyOps
from rtp_llm.runtime.cpu import CpuRuntime
from rtp_llm.tasks import Task


class CountingTask(Task):
    """Sums each sequence, or gives every token as it is; counts its calls."""

    dimension = 1
    reads: Reads = "all"

    def __init__(self, per_token: bool) -> None:
        self.per_token = per_token
        self.calls = 0

    def __call__(self, ops: Any, hidden_states: Any, batch: Batch) -> Any:
        self.calls += 1
        return hidden_states if self.per_token else np.add.reduceat(hidden_states, batch.cu_seqlens[:-1])

    def check(self, params: Params) -> None:
        """Anything goes."""

    def finish(self, rows: Rows, params: Params, input_ids: Sequence[Int32Array]) -> Any:
        return rows


class EchoModel:
    """The ids themselves as hidden states [T, 1]."""

    shares_prefixes = False

    def prepare(self, batch: Batch) -> Batch:
        return batch

    def __call__(self, ops: Any, batch: Batch) -> Any:
        return batch.input_ids[:, None].astype(np.float32)


def make_runtime() -> tuple[CpuRuntime, dict[TaskType, CountingTask]]:
    anything: Any = EchoModel()
    runtime = CpuRuntime(model_type="fake", model=anything, ops=NumpyOps(), num_cores=1)
    tasks = {TaskType.DENSE: CountingTask(False), TaskType.TOKENS: CountingTask(True)}
    runtime.tasks = tasks
    return runtime, tasks


def item(*ids: int, tasks: tuple[TaskType, ...]) -> Item:
    return Item(np.array(ids, np.int32), 0, tasks=tasks)


def test_only_what_some_item_wants() -> None:
    runtime, tasks = make_runtime()
    rows = runtime.run([item(1, 2, tasks=(TaskType.DENSE,)), item(3, tasks=(TaskType.DENSE,))], 1)
    assert list(rows) == [TaskType.DENSE] and tasks[TaskType.TOKENS].calls == 0


def test_a_mixed_batch_is_one_forward_with_each_task_once() -> None:
    runtime, tasks = make_runtime()
    both = (TaskType.DENSE, TaskType.TOKENS)
    rows = runtime.run(
        [item(1, 2, tasks=(TaskType.DENSE,)), item(3, tasks=(TaskType.TOKENS,)), item(4, 5, tasks=both)], 1
    )
    assert [task.calls for task in tasks.values()] == [1, 1]
    assert np.array_equal(rows[TaskType.DENSE], [[3], [3], [9]])
    assert [part.tolist() for part in rows[TaskType.TOKENS]] == [[[1], [2]], [[3]], [[4], [5]]]


class LayeredModel(EchoModel):
    """Adds 10 in each of two layers."""

    layers = (10, 10)

    def __call__(self, ops: Any, batch: Batch, on_layer: Any = None) -> Any:
        hidden_states = super().__call__(ops, batch)
        for number, step in enumerate(self.layers):
            on_layer(number, hidden_states)
            hidden_states = hidden_states + step
        return hidden_states


def test_layers_that_a_task_reads_stand_side_by_side() -> None:
    anything: Any = LayeredModel()
    runtime = CpuRuntime(model_type="fake", model=anything, ops=NumpyOps(), num_cores=1)
    layered: Any = CountingTask(True)
    layered.hidden_layers = (2, 0)
    runtime.tasks = {TaskType.DENSE: CountingTask(False), TaskType.TOKENS: layered}
    rows = runtime.run([item(1, 2, tasks=(TaskType.TOKENS, TaskType.DENSE)), item(3, tasks=(TaskType.TOKENS,))], 1)
    assert [part.tolist() for part in rows[TaskType.TOKENS]] == [[[21, 1], [22, 2]], [[23, 3]]]
    assert np.array_equal(rows[TaskType.DENSE], [[43], [23]])
