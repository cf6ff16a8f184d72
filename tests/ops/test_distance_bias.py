"""Attention with a bias by the distance from query to key: the definition against torch, the others against it."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import Batch, FloatArray, pack
from rtp_llm.ops.native_ops import NativeOps
from rtp_llm.ops.numpy_ops import NumpyOps
from tests.ops.data import assert_as_exact, batch_of, normal
from tests.ops.test_numpy_ops import tensors
from tests.ops.test_shared_prefix import backend as backend
from tests.ops.test_shared_prefix import items_of, rows_of, shared_pack

torch = pytest.importorskip("torch")
F = torch.nn.functional
Heads = tuple[int, int, int]
HEADS = [(1, 1, 3), (4, 2, 8), (3, 3, 40), (12, 12, 64)]
VISIBLE: list[dict[str, Any]] = [{}, {"causal": True}, {"window": 5}, {"causal": True, "window": 70}]
LENGTHS = [[1], [2, 1, 13, 70], [200, 33]]


def attention(
    ops: Any, qkv: FloatArray, batch: Batch, heads: Heads, bias: FloatArray | None, **visible: Any
) -> FloatArray:
    batch = ops.upload(batch)
    y = ops.attention(
        ops.vector(qkv), batch, num_heads=heads[0], num_kv_heads=heads[1], head_dim=heads[2], scale=0.3,
        rows=batch.wanted, distance_bias=None if bias is None else ops.vector(bias), **visible,
    )  # fmt: skip
    return np.asarray(ops.to_numpy(y))


def qkv_of(num_tokens: int, heads: Heads) -> FloatArray:
    return normal(num_tokens, (heads[0] + 2 * heads[1]) * heads[2])


def split_heads(part: Any, heads: Heads) -> Iterator[Any]:
    """Queries, keys and values of a sequence, [num_heads, S, head_dim] each."""
    for rows in part.view(len(part), -1, heads[2]).transpose(0, 1).split([heads[0], heads[1], heads[1]]):
        yield rows.repeat_interleave(heads[0] // len(rows), 0)


def assert_same_bits(ops: NativeOps, qkv: FloatArray, lengths: list[int], compute: Callable[..., FloatArray]) -> None:
    """`compute` gives the rows of some queries, keys and values and their batch: alone, together, on some threads."""
    parts = np.split(qkv, np.cumsum(lengths)[:-1])
    alone = [compute(part, batch_of([length])) for part, length in zip(parts, lengths, strict=True)]
    for ops.num_threads in (1, 2, 5):
        np.testing.assert_array_equal(compute(qkv, batch_of(lengths)), np.concatenate(alone))


def sdpa(qkv: Any, bias: Any, lengths: list[int], heads: Heads, causal: bool, window: int | None) -> Any:
    """torch's own attention, one sequence at a time, its mask written out."""
    outputs, reach = [], (bias.shape[1] + 1) // 2
    for part in qkv.split(lengths):
        q, k, v = split_heads(part, heads)
        mask = torch.full((heads[0], len(part), len(part)), -torch.inf, dtype=qkv.dtype)
        for i in range(len(part)):
            for j in range(len(part)):
                if (j <= i or not causal) and (window is None or abs(i - j) < window):
                    mask[:, i, j] = bias[:, min(max(j - i, 1 - reach), reach - 1) + reach - 1]
        outputs.append(F.scaled_dot_product_attention(q, k, v, mask, scale=0.3).transpose(0, 1).flatten(1))
    return torch.cat(outputs)


@pytest.mark.parametrize("visible", VISIBLE)
@pytest.mark.parametrize(("lengths", "heads", "reach"), [([7, 1, 20], (4, 2, 5), 4), ([30], (3, 3, 8), 1)])
def test_the_definition(lengths: list[int], heads: Heads, reach: int, visible: Any) -> None:
    qkv, bias = qkv_of(sum(lengths), heads), 3 * normal(heads[0], 2 * reach - 1)
    options = {"causal": False, "window": None, **visible}
    results = [sdpa(x, table, lengths, heads, **options).numpy() for x, table in zip(*tensors(qkv, bias), strict=True)]
    assert_as_exact(attention(NumpyOps(), qkv, batch_of(lengths), heads, bias, **visible), *results)


def by_numpy(lengths: list[int], heads: Heads, visible: Any, reach: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Queries, keys and values, a bias, and what the definition makes of them."""
    qkv, bias = qkv_of(sum(lengths), heads), 3 * normal(heads[0], 2 * reach - 1)
    return qkv, bias, attention(NumpyOps(), qkv, batch_of(lengths), heads, bias, **visible)


@pytest.mark.parametrize("reach", [2, 9, 129])
@pytest.mark.parametrize("visible", VISIBLE)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_every_backend(backend: Any, lengths: list[int], heads: Heads, visible: Any, reach: int, kept: Any) -> None:
    qkv, bias, expected = kept(by_numpy, lengths, heads, visible, reach)
    y = attention(backend, qkv, batch_of(lengths), heads, bias, **visible)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("reach", [3, 40])
def test_a_bias_of_nothing_changes_nothing(backend: Any, reach: int) -> None:
    heads, batch = (4, 2, 24), batch_of([50, 3])
    qkv = qkv_of(53, heads)
    with_bias = attention(backend, qkv, batch, heads, np.zeros((4, 2 * reach - 1), np.float32))
    np.testing.assert_allclose(with_bias, attention(backend, qkv, batch, heads, None), rtol=0, atol=2e-6)


@pytest.mark.parametrize("visible", VISIBLE)
def test_the_same_bits_in_any_batch_on_any_number_of_threads(ops: NativeOps, visible: Any) -> None:
    heads, lengths, bias = (2, 1, 32), [170, 3, 300, 40], normal(2, 41)
    compute = partial(attention, ops, heads=heads, bias=bias, **visible)
    assert_same_bits(ops, qkv_of(sum(lengths), heads), lengths, compute)


@pytest.mark.parametrize("reads", ["first", "last"])
@pytest.mark.parametrize("visible", VISIBLE)
def test_wanted_rows_have_the_bits_that_they_have_among_all(backend: Any, visible: Any, reads: Any) -> None:
    heads, items, bias = (4, 2, 8), items_of([5, 1, 40, 70], [0, 0, 0, 0]), normal(4, 21)
    batch = pack(items, reads)
    qkv = qkv_of(batch.num_tokens, heads)
    every, some = (attention(backend, qkv, x, heads, bias, **visible) for x in (pack(items), batch))
    expected = every[batch.wanted]
    if backend.name == "torch":
        np.testing.assert_allclose(some, expected, rtol=1e-5, atol=1e-5)
    else:
        np.testing.assert_array_equal(some, expected)


def test_behind_a_shared_prefix(backend: Any) -> None:
    heads, bias = (4, 2, 8), normal(4, 41)
    items = items_of([1, 20, 5, 70], [33, 33, 0, 33])
    whole, shared = pack(items, "last"), shared_pack(items)
    distinct = np.unique(whole.input_ids)
    values = qkv_of(len(distinct), heads)
    ours, expected = (
        attention(backend, rows_of(values, distinct, batch), batch, heads, bias, causal=True)
        for batch in (shared, whole)
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_in_parts_on_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the mask of a long sequence is made."""
    from rtp_llm.ops import torch_ops

    heads, batch, bias = (4, 2, 8), batch_of([50, 3]), normal(4, 41)
    qkv = qkv_of(53, heads)
    expected = attention(NumpyOps(), qkv, batch, heads, bias)
    monkeypatch.setattr(torch_ops, "_PART", 4 * 50 * 7)
    y = attention(torch_ops.TorchOps(), qkv, batch, heads, bias)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", [(4, 8), (3, 9), (9,)])
def test_a_table_of_another_shape_is_refused(ops: NativeOps, shape: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError, match="distance_bias is"):
        attention(ops, qkv_of(5, (4, 2, 8)), batch_of([5]), (4, 2, 8), normal(*shape))
