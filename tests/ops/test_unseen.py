"""Tokens that see and are not seen: the definition against torch in fp64, the others against it."""

from typing import Any

import numpy as np
import pytest

from rtp_llm.core import Batch, FloatArray, Item, pack
from rtp_llm.ops import Relative
from rtp_llm.ops.native_ops import NativeOps
from rtp_llm.ops.numpy_ops import NumpyOps
from tests.ops.data import assert_as_exact, normal
from tests.ops.test_distance_bias import VISIBLE, Heads, qkv_of, split_heads
from tests.ops.test_numpy_ops import tensors
from tests.ops.test_shared_prefix import backend as backend

torch = pytest.importorskip("torch")
F = torch.nn.functional
# Tokens of each sequence, and how many at its end are not seen.
SEQUENCES = [[(5, 4)], [(7, 0), (32, 25), (1, 0), (32, 1)], [(70, 40), (300, 10), (33, 32)]]


def batch_of(sequences: list[tuple[int, int]]) -> Batch:
    return pack([Item(np.zeros(length, np.int32), 0, num_unseen=unseen) for length, unseen in sequences])


def attention(ops: Any, qkv: FloatArray, batch: Batch, heads: Heads, **options: Any) -> FloatArray:
    batch = ops.upload(batch)
    y = ops.attention(
        ops.vector(qkv), batch, num_heads=heads[0], num_kv_heads=heads[1], head_dim=heads[2], scale=0.3, **options
    )
    return np.asarray(ops.to_numpy(y))


def sdpa(qkv: Any, sequences: list[tuple[int, int]], heads: Heads, causal: bool, window: int | None) -> Any:
    outputs = []
    for part, (length, unseen) in zip(qkv.split([length for length, _ in sequences]), sequences, strict=True):
        q, k, v = split_heads(part, heads)
        distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
        mask = (torch.arange(length) < length - unseen).expand(length, length)
        mask = mask & (distance >= 0) if causal else mask
        mask = mask if window is None else mask & (distance.abs() < window)
        outputs.append(F.scaled_dot_product_attention(q, k, v, mask, scale=0.3).transpose(0, 1).flatten(1))
    return torch.cat(outputs)


@pytest.mark.parametrize("visible", VISIBLE)
@pytest.mark.parametrize("heads", [(4, 2, 8), (2, 2, 32)])
@pytest.mark.parametrize("sequences", SEQUENCES)
def test_the_definition(sequences: list[tuple[int, int]], heads: Heads, visible: Any) -> None:
    qkv = qkv_of(sum(length for length, _ in sequences), heads)
    options = {"causal": False, "window": None, **visible}
    results = [sdpa(x, sequences, heads, **options).numpy() for (x,) in zip(*tensors(qkv), strict=True)]
    assert_as_exact(attention(NumpyOps(), qkv, batch_of(sequences), heads, **visible), *results)


@pytest.mark.parametrize("visible", VISIBLE)
@pytest.mark.parametrize("heads", [(1, 1, 3), (4, 2, 8), (2, 2, 64)])
@pytest.mark.parametrize("sequences", SEQUENCES)
def test_every_backend(backend: Any, sequences: list[tuple[int, int]], heads: Heads, visible: Any) -> None:
    qkv, batch = qkv_of(sum(length for length, _ in sequences), heads), batch_of(sequences)
    y, expected = (attention(ops, qkv, batch, heads, **visible) for ops in (backend, NumpyOps()))
    np.testing.assert_allclose(y, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


@pytest.mark.parametrize("sequences", SEQUENCES)
def test_with_a_bias_and_vectors_of_distances(backend: Any, sequences: list[tuple[int, int]]) -> None:
    heads, batch = (2, 2, 8), batch_of(sequences)
    qkv = qkv_of(batch.num_tokens, heads)

    def run(ops: Any) -> FloatArray:
        tables = Relative(*(ops.vector(normal(16, 17, seed=seed)) for seed in (1, 2)))
        return attention(ops, qkv, batch, heads, distance_bias=ops.vector(normal(2, 21)), relative=tables)

    expected = run(NumpyOps())
    np.testing.assert_allclose(run(backend), expected, rtol=0, atol=3e-6 * np.abs(expected).max())


@pytest.mark.parametrize("visible", VISIBLE)
def test_the_same_bits_in_any_batch_on_any_number_of_threads(ops: NativeOps, visible: Any) -> None:
    heads, sequences = (2, 2, 32), SEQUENCES[2]
    qkv = qkv_of(sum(length for length, _ in sequences), heads)
    together, start = attention(ops, qkv, batch_of(sequences), heads, **visible), 0
    ops.num_threads = 3
    np.testing.assert_array_equal(attention(ops, qkv, batch_of(sequences), heads, **visible), together)
    for length, unseen in sequences:
        alone = attention(ops, qkv[start : start + length], batch_of([(length, unseen)]), heads, **visible)
        np.testing.assert_array_equal(alone, together[start : start + length])
        start += length


def test_a_query_that_sees_nothing_yields_zeros(backend: Any) -> None:
    y = attention(backend, qkv_of(32, (2, 2, 8)), batch_of([(32, 27)]), (2, 2, 8), window=4)
    assert (y[8:] == 0).all() and (np.abs(y[:8]).max(axis=1) > 0).all()


@pytest.mark.parametrize("seen", [[0], [6], [3, 3]])
def test_lengths_are_checked(ops: NativeOps, seen: list[int]) -> None:
    batch = batch_of([(5, 1)])
    object.__setattr__(batch, "seen_lens", np.array(seen, np.int32))
    with pytest.raises(AssertionError):
        attention(ops, qkv_of(5, (2, 2, 8)), batch, (2, 2, 8))
