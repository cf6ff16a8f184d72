"""A lone sequence computed by a program recorded for its length: the same bits as op by op, and the same errors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import Batch, FloatArray, Int32Array, Item, Params, Reads, Rows, TaskType
from rtp_llm.errors import InvalidRequest
from rtp_llm.ops import Ops, PoolMode, Tensor, native_recording
from rtp_llm.ops.native_library import load as load_library
from rtp_llm.ops.native_library import usable
from rtp_llm.ops.native_ops import NativeOps
from rtp_llm.runtime import recordings
from rtp_llm.runtime.cpu import CpuRuntime
from rtp_llm.tasks import Task
from tests.backends import BACKENDS
from tests.models.oracle import load, make_items
from tests.models.test_bert import save_bert
from tests.models.test_qwen import save as save_qwen
from tests.models.test_roberta import save as save_roberta

pytest.importorskip("torch")

LENGTHS = (5, 1, 33, 17, 5, 40, 2, 33)
VOCAB = 80


class Pooled(Task):
    """A pooling, then an activation where one is given."""

    dimension = 1
    per_token = False

    def __init__(self, mode: PoolMode, reads: Reads, activation: str | None = None) -> None:
        self.mode, self.reads, self.activation = mode, reads, activation
        self.calls = 0

    def __call__(self, ops: Ops, hidden_states: Tensor, batch: Batch) -> Tensor:
        self.calls += 1
        pooled = ops.pool(hidden_states, batch, self.mode, skip_prompt=self.reads == "all")
        if self.activation is None:
            return pooled
        return ops.linear(pooled, ops.matrix(np.eye(pooled.shape[1], dtype=np.float32)), activation=self.activation)

    def check(self, params: Params) -> None:
        """Anything goes."""

    def finish(self, rows: Rows, params: Params, input_ids: Sequence[Int32Array]) -> Any:
        return rows


def runtime_of(folder: Path, task: Pooled) -> CpuRuntime:
    ops = BACKENDS["native"]()
    runtime = CpuRuntime(model_type="test", model=load(folder, ops), ops=ops, num_cores=1)
    runtime.tasks = {TaskType.DENSE: task}
    return runtime


def items_of(lengths: Sequence[int] = LENGTHS) -> list[Item]:
    items = make_items(tuple(lengths), VOCAB)
    for item in items:
        item.tasks = (TaskType.DENSE,)
        item.prompt_length = item.index % 3
    return items


def alone(runtime: CpuRuntime, item: Item, num_cores: int = 1) -> FloatArray:
    rows = runtime.run([item], num_cores)[TaskType.DENSE]
    return np.asarray(rows[0])


@pytest.mark.parametrize("family", ["bert", "roberta", "qwen"])
@pytest.mark.parametrize("reads", ["all", "first", "last"])
def test_the_same_bits_as_op_by_op(family: str, reads: Reads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if family == "bert":
        save_bert(tmp_path)
    elif family == "roberta":
        save_roberta(tmp_path, "Roberta")
    else:
        save_qwen(tmp_path, "Qwen3")
    mode: PoolMode = "mean" if reads == "all" else "cls" if reads == "first" else "lasttoken"
    task, items = Pooled(mode, reads), items_of()
    if family == "roberta":
        items[2].input_ids[3:5] = 1  # padding that somebody wrote: the positions of the second 33 differ
        for item in items:
            item.token_type_ids = None
    runtime = runtime_of(tmp_path, task)
    recorded = [alone(runtime, item, cores) for item, cores in zip(items, [1, 2] * 4, strict=True)]
    assert task.calls == len(set(LENGTHS))
    together = runtime.run(items, 1)[TaskType.DENSE]
    recorded += [alone(runtime, item) for item in items]  # a batch on the same stream is not in their way
    monkeypatch.setattr(recordings, "_MOST_TOKENS", 0)
    op_by_op = [alone(runtime, item) for item in items]
    np.testing.assert_array_equal(recorded, [*op_by_op, *op_by_op])
    np.testing.assert_array_equal(together, op_by_op)


def test_an_id_out_of_range_is_that_input_s_own_error(tmp_path: Path) -> None:
    save_bert(tmp_path)
    runtime = runtime_of(tmp_path, Pooled("mean", "all"))
    good, bad = items_of((7, 7))
    expected = alone(runtime, good)
    bad.input_ids[3] = 1 << 20
    with pytest.raises(InvalidRequest, match="id 1048576 is outside"):
        alone(runtime, bad)
    np.testing.assert_array_equal(alone(runtime, good), expected)


def test_rows_are_the_callers_own(tmp_path: Path) -> None:
    save_bert(tmp_path)
    runtime = runtime_of(tmp_path, Pooled("mean", "all"))
    first, second = items_of((7, 7))
    rows = [alone(runtime, item) for item in (first, second, first)]
    assert not np.array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])


def test_what_goes_through_python_is_not_kept(tmp_path: Path) -> None:
    save_bert(tmp_path)
    task = Pooled("mean", "all", activation="softsign")
    runtime = runtime_of(tmp_path, task)
    (item,) = items_of((7,))
    rows = [alone(runtime, item) for _ in range(3)]
    assert task.calls == 3
    np.testing.assert_array_equal(rows[1:], [rows[0]] * 2)


@pytest.mark.parametrize("broken", ["embed", "norm", "attention", "pool"])
def test_an_op_that_numpy_does_is_not_kept(broken: str, tmp_path: Path) -> None:
    """What it made of one text's ids would be a constant of the program."""
    save_bert(tmp_path)
    runtime = runtime_of(tmp_path, Pooled("mean", "all"))
    ops = object.__new__(NativeOps)._bind(1, load_library(usable()[0]), frozenset({broken}))
    other = CpuRuntime(model_type="test", model=load(tmp_path, ops), ops=ops, num_cores=1)
    other.tasks = runtime.tasks
    for item in items_of((7, 7, 7)):
        np.testing.assert_allclose(alone(other, item), alone(runtime, item), atol=1e-5)


def test_a_large_result_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_bert(tmp_path)
    monkeypatch.setattr(native_recording, "_MOST_BYTES", 8)
    task = Pooled("mean", "all")
    runtime = runtime_of(tmp_path, task)
    for item in items_of((7, 7, 7)):
        alone(runtime, item)
    assert task.calls == 3


def test_a_tensor_that_a_failed_batch_left_is_in_nobody_s_way(tmp_path: Path) -> None:
    save_bert(tmp_path)
    task = Pooled("mean", "all")
    runtime = runtime_of(tmp_path, task)
    ops, items = runtime.ops, items_of((7, 7, 7, 7))
    held = ops.concat([ops.vector(np.ones((2, 3), np.float32))])
    rows = [alone(runtime, item) for item in items]
    np.testing.assert_array_equal(ops.to_numpy(held), np.ones((2, 3)))
    del held
    np.testing.assert_array_equal([alone(runtime, item) for item in items], rows)
    assert task.calls == 5
