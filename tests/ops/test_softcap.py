"""Attention with capped scores: the definition against torch, the others against it, with and without a bias."""

from functools import partial
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import Batch, FloatArray, pack
from rtp_llm.ops.native_ops import NativeOps
from rtp_llm.ops.numpy_ops import NumpyOps
from tests.ops.data import assert_as_exact, batch_of, normal
from tests.ops.test_distance_bias import HEADS, LENGTHS, VISIBLE, Heads, assert_same_bits, qkv_of, split_heads
from tests.ops.test_numpy_ops import tensors
from tests.ops.test_shared_prefix import backend as backend
from tests.ops.test_shared_prefix import items_of, rows_of, shared_pack

torch = pytest.importorskip("torch")


def attention(
    ops: Any, qkv: FloatArray, batch: Batch, heads: Heads, softcap: float | None, bias: Any = None, **visible: Any
) -> FloatArray:
    batch = ops.upload(batch)
    y = ops.attention(
        ops.vector(qkv), batch, num_heads=heads[0], num_kv_heads=heads[1], head_dim=heads[2], scale=0.3,
        rows=batch.wanted, softcap=softcap, distance_bias=None if bias is None else ops.vector(bias), **visible,
    )  # fmt: skip
    return np.asarray(ops.to_numpy(y))


def by_hand(qkv: Any, lengths: list[int], heads: Heads, softcap: float, causal: bool, window: int | None) -> Any:
    """As transformers' eager attention of Gemma 2, one sequence at a time."""
    outputs = []
    for part in qkv.split(lengths):
        q, k, v = split_heads(part, heads)
        scores = torch.tanh(q @ k.transpose(1, 2) * 0.3 / softcap) * softcap
        distance = torch.arange(len(part))[:, None] - torch.arange(len(part))[None, :]
        hidden = (distance < 0) & causal | (distance.abs() >= (window or len(part)))
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        outputs.append((weights @ v).transpose(0, 1).flatten(1))
    return torch.cat(outputs)


@pytest.mark.parametrize("visible", VISIBLE)
@pytest.mark.parametrize("softcap", [0.25, 5.0, 50.0])
@pytest.mark.parametrize(("lengths", "heads"), [([7, 1, 20], (4, 2, 5)), ([30], (3, 3, 8))])
def test_the_definition(lengths: list[int], heads: Heads, softcap: float, visible: Any) -> None:
    qkv, options = 3 * qkv_of(sum(lengths), heads), {"causal": False, "window": None, **visible}
    results = [by_hand(x, lengths, heads, softcap, **options).numpy() for (x,) in zip(*tensors(qkv), strict=True)]
    assert_as_exact(attention(NumpyOps(), qkv, batch_of(lengths), heads, softcap, **visible), *results)


def by_numpy(lengths: list[int], heads: Heads, visible: Any, softcap: float, with_bias: bool) -> tuple[Any, ...]:
    """Queries, keys and values, a bias or None, and what the definition makes of them."""
    qkv, bias = qkv_of(sum(lengths), heads), 3 * normal(heads[0], 17) if with_bias else None
    return qkv, bias, attention(NumpyOps(), qkv, batch_of(lengths), heads, softcap, bias, **visible)


@pytest.mark.parametrize("softcap", [0.25, 5.0, 50.0])
@pytest.mark.parametrize("visible", VISIBLE)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_every_backend(backend: Any, lengths: list[int], heads: Heads, visible: Any, softcap: float, kept: Any) -> None:
    for with_bias in (False, True):
        qkv, bias, expected = kept(by_numpy, lengths, heads, visible, softcap, with_bias)
        y = attention(backend, qkv, batch_of(lengths), heads, softcap, bias, **visible)
        np.testing.assert_allclose(y, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


def test_a_high_cap_changes_nothing(backend: Any) -> None:
    heads, batch = (4, 2, 24), batch_of([50, 3, 170])
    qkv = qkv_of(223, heads)
    capped = attention(backend, qkv, batch, heads, 1e4)
    np.testing.assert_allclose(capped, attention(backend, qkv, batch, heads, None), rtol=0, atol=2e-5)


@pytest.mark.parametrize("visible", VISIBLE)
def test_the_same_bits_in_any_batch_on_any_number_of_threads(ops: NativeOps, visible: Any) -> None:
    heads, lengths = (2, 1, 32), [170, 3, 300, 40]
    compute = partial(attention, ops, heads=heads, softcap=5.0, **visible)
    assert_same_bits(ops, qkv_of(sum(lengths), heads), lengths, compute)


def test_behind_a_shared_prefix(backend: Any) -> None:
    heads, items = (4, 2, 32), items_of([1, 20, 5, 70, 190], [33, 33, 0, 33, 33])
    whole, shared = pack(items, "last"), shared_pack(items)
    distinct = np.unique(whole.input_ids)
    values = qkv_of(len(distinct), heads)
    ours, expected = (
        attention(backend, rows_of(values, distinct, batch), batch, heads, 2.0, causal=True)
        for batch in (shared, whole)
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("softcap", [0.0, -1.0])
def test_a_cap_is_positive(ops: NativeOps, softcap: float) -> None:
    with pytest.raises(AssertionError, match="softcap is"):
        attention(ops, qkv_of(5, (4, 2, 8)), batch_of([5]), (4, 2, 8), softcap)
