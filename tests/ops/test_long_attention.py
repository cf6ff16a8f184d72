"""Attention of the compiled kernels over many keys, on tiles where there is AMX: exact, the same bits in any batch."""

from typing import Any

import numpy as np
import pytest

from rtp_llm.core import Batch, FloatArray
from rtp_llm.ops.native_ops import NativeOps
from tests.ops.data import assert_as_exact, batch_of, normal
from tests.ops.test_numpy_ops import sdpa, tensors

pytest.importorskip("torch")
Heads = tuple[int, int, int]
# 160 keys are the fewest for tiles, which take them 256 at a time and 32 rows at a time.
LENGTHS = [159, 160, 161, 191, 256, 257, 290, 513]
VISIBLE: list[dict[str, Any]] = [
    {}, {"causal": True}, {"window": 79}, {"window": 80}, {"window": 200}, {"causal": True, "window": 160},
]  # fmt: skip


def qkv_of(length: int, heads: Heads) -> FloatArray:
    return normal(length, (heads[0] + 2 * heads[1]) * heads[2])


def attention(ops: NativeOps, qkv: FloatArray, batch: Batch, heads: Heads, **visible: Any) -> FloatArray:
    y = ops.attention(
        ops.vector(qkv), batch, num_heads=heads[0], num_kv_heads=heads[1], head_dim=heads[2],
        scale=heads[2] ** -0.5, **visible,
    )  # fmt: skip
    return ops.to_numpy(y)


@pytest.mark.parametrize("visible", VISIBLE)
@pytest.mark.parametrize("length", LENGTHS)
def test_lengths_around_the_steps_of_tiles(ops: NativeOps, length: int, visible: Any) -> None:
    heads = (2, 1, 32)
    qkv = qkv_of(length, heads)
    options = {"causal": False, "window": None, **visible}
    results = [sdpa(x, [length], 2, 1, 32**-0.5, **options).numpy() for x in tensors(qkv)[0]]
    assert_as_exact(attention(ops, qkv, batch_of([length]), heads, **visible), *results)


@pytest.mark.parametrize("heads", [(1, 1, 24), (3, 1, 40), (1, 1, 64), (2, 2, 96), (1, 1, 288)])
def test_head_sizes(ops: NativeOps, heads: Heads) -> None:
    qkv = qkv_of(300, heads)
    results = [sdpa(x, [300], *heads[:2], heads[2] ** -0.5, False, None).numpy() for x in tensors(qkv)[0]]
    assert_as_exact(attention(ops, qkv, batch_of([300]), heads), *results)


@pytest.mark.parametrize("factor", [10, 30])
def test_scores_far_apart_and_rising(ops: NativeOps, factor: int) -> None:
    qkv = factor * qkv_of(600, (1, 1, 32))
    qkv[:, 32:64] *= np.linspace(0.1, 1, 600, dtype=np.float32)[:, None]
    results = [sdpa(x, [600], 1, 1, 32**-0.5, False, None).numpy() for x in tensors(qkv)[0]]
    assert_as_exact(attention(ops, qkv, batch_of([600]), (1, 1, 32)), *results)


@pytest.mark.parametrize("visible", VISIBLE)
def test_the_same_bits_in_any_batch_on_any_number_of_threads(ops: NativeOps, visible: Any) -> None:
    heads, lengths = (2, 1, 32), [170, 3, 600, 40]
    qkv = qkv_of(sum(lengths), heads)
    starts = np.cumsum([0, *lengths])
    alone = [
        attention(ops, qkv[start : start + length], batch_of([length]), heads, **visible)
        for start, length in zip(starts[:-1], lengths, strict=True)
    ]
    for ops.num_threads in (1, 2, 5):
        together = attention(ops, qkv, batch_of(lengths), heads, **visible)
        np.testing.assert_array_equal(together, np.concatenate(alone))


@pytest.mark.parametrize("visible", [{"causal": True}, {"causal": True, "window": 200}])
def test_a_causal_row_has_the_same_bits_whatever_follows(ops: NativeOps, visible: Any) -> None:
    qkv = qkv_of(400, (2, 1, 32))
    whole = attention(ops, qkv, batch_of([400]), (2, 1, 32), **visible)
    for length in (100, 165, 257, 399):
        part = attention(ops, qkv[:length], batch_of([length]), (2, 1, 32), **visible)
        np.testing.assert_array_equal(part, whole[:length])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_query_that_is_not_finite_is_seen_in_its_row_alone(ops: NativeOps, bad: float) -> None:
    qkv, batch = qkv_of(300, (1, 1, 32)), batch_of([300])
    expected = attention(ops, qkv, batch, (1, 1, 32))
    qkv[70, 3] = bad
    y = attention(ops, qkv, batch, (1, 1, 32))
    assert not np.isfinite(y[70]).any()
    np.testing.assert_array_equal(np.delete(y, 70, axis=0), np.delete(expected, 70, axis=0))
