"""Attention of the compiled kernels: rows whose weights are relative to their highest score, beside others."""

from typing import Any

import numpy as np
import pytest

from rtp_llm.core import Batch, FloatArray
from rtp_llm.ops.native_ops import NativeOps
from tests.ops.data import assert_as_exact, batch_of, normal

LENGTHS, HEADS, HEAD_DIM = [70, 150, 5, 40], 2, 32
VISIBLE: list[dict[str, Any]] = [{}, {"causal": True}, {"window": 9}, {"causal": True, "window": 50}]


def rows_of_all_sizes(length: int, seed: int = 0) -> FloatArray:
    """Some rows' scores are all near 0, others' far above and below."""
    qkv, sizes = normal(length, 3 * HEADS * HEAD_DIM, seed=seed), np.array([1, 1, 0.1, 12, 1, 3, 8, 1], np.float32)
    qkv[:, : HEADS * HEAD_DIM] *= np.resize(sizes, length)[:, None]
    return qkv


def attention(ops: NativeOps, qkv: FloatArray, batch: Batch, parts: int = 3, **visible: Any) -> FloatArray:
    x = ops.vector(qkv)
    x.parts = parts
    options = {"num_heads": HEADS, "num_kv_heads": HEADS, "head_dim": HEAD_DIM, "scale": HEAD_DIM**-0.5}
    return ops.to_numpy(ops.attention(x, batch, **options, **visible))


@pytest.mark.parametrize("visible", VISIBLE)
@pytest.mark.parametrize("length", [31, 64, 150])
def test_rows_of_all_sizes(ops: NativeOps, length: int, visible: Any) -> None:
    pytest.importorskip("torch")
    from tests.ops.test_numpy_ops import sdpa, tensors

    qkv = rows_of_all_sizes(length)
    options = {"causal": False, "window": None, **visible}
    results = [sdpa(x, [length], HEADS, HEADS, HEAD_DIM**-0.5, **options).numpy() for x in tensors(qkv)[0]]
    assert_as_exact(attention(ops, qkv, batch_of([length]), **visible), *results)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("visible", VISIBLE)
def test_a_row_has_the_same_bits_beside_rows_of_all_sizes(ops: NativeOps, visible: Any, parts: int) -> None:
    qkv, starts = rows_of_all_sizes(sum(LENGTHS)), np.cumsum([0, *LENGTHS])
    together = attention(ops, qkv, batch_of(LENGTHS), parts, **visible)
    for start, end in zip(starts[:-1], starts[1:], strict=True):
        batch = batch_of([end - start])
        for ops.num_threads in (1, 3):
            alone = attention(ops, qkv[start:end], batch, parts, **visible)
            np.testing.assert_array_equal(alone, together[start:end])
        for row in range(end - start):
            wanted = np.array([row], np.int32)
            one = attention(ops, qkv[start:end], batch, parts, rows=wanted, **visible)
            np.testing.assert_array_equal(one[0], together[start + row])


@pytest.mark.parametrize("visible", [{"causal": True}, {"causal": True, "window": 50}])
def test_a_causal_row_has_the_same_bits_whatever_follows(ops: NativeOps, visible: Any) -> None:
    qkv = rows_of_all_sizes(150)
    whole = attention(ops, qkv, batch_of([150]), **visible)
    for length in (1, 33, 64, 149):
        np.testing.assert_array_equal(attention(ops, qkv[:length], batch_of([length]), **visible), whole[:length])


@pytest.mark.parametrize("size", [1, 1e36])
@pytest.mark.parametrize("score", [-300.0, -60.0, -40.0, -10.0, 20.0, 24.0, 28.0, 32.0, 40.0, 70.0, 300.0, 1e30])
def test_scores_that_are_all_about_as_high(ops: NativeOps, score: float, size: float) -> None:
    """However high or low that is, and with values that few weights above 1 would drive beyond fp32."""
    qkv, (queries, keys, values) = normal(80, 3 * HEAD_DIM), (0, HEAD_DIM, slice(2 * HEAD_DIM, None))
    qkv[:, : 2 * HEAD_DIM] = 0
    qkv[:, queries], qkv[:, keys] = HEAD_DIM**0.5, score + 3 * normal(80)
    weights = np.exp(qkv[:, keys] - qkv[:, keys].max(), dtype=np.float64)
    expected = weights / weights.sum() @ qkv[:, values].astype(np.float64)
    qkv[:, values] *= np.float32(size)
    y = ops.attention(
        ops.vector(qkv), batch_of([80]), num_heads=1, num_kv_heads=1, head_dim=HEAD_DIM, scale=HEAD_DIM**-0.5
    )
    error = 1e-6 + 2e-7 * min(abs(score), 300)
    np.testing.assert_allclose(ops.to_numpy(y) / size, np.broadcast_to(expected, (80, HEAD_DIM)), rtol=0, atol=error)


@pytest.mark.parametrize("size", [1e-25, 1e-8, 1e30, 1e36])
def test_values_of_all_sizes(ops: NativeOps, size: float) -> None:
    qkv = normal(100, 3 * HEADS * HEAD_DIM)
    expected = attention(ops, qkv, batch_of([100]))
    qkv[:, 2 * HEADS * HEAD_DIM :] *= np.float32(size)
    y = attention(ops, qkv, batch_of([100]))
    np.testing.assert_allclose(y / np.float32(size), expected, rtol=0, atol=1e-6)
