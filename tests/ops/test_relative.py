"""Attention that reads vectors of distances: the definition against torch in fp64, the others against it."""

from functools import partial
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import Batch, FloatArray, pack
from rtp_llm.ops import Relative
from rtp_llm.ops.native_fallback import ThroughNumpy
from rtp_llm.ops.native_ops import NativeOps
from rtp_llm.ops.numpy_ops import NumpyOps
from tests.ops.data import assert_as_exact, batch_of, normal
from tests.ops.test_distance_bias import VISIBLE, Heads, assert_same_bits, qkv_of, split_heads
from tests.ops.test_numpy_ops import tensors
from tests.ops.test_shared_prefix import backend as backend
from tests.ops.test_shared_prefix import items_of, shared_pack

torch = pytest.importorskip("torch")
F = torch.nn.functional
Tables = tuple[FloatArray | None, FloatArray | None]
HEADS = [(1, 1, 3), (4, 2, 8), (3, 3, 40), (2, 2, 64)]
LENGTHS = [[1], [2, 1, 13, 70], [230, 33]]


def tables_of(heads: Heads, reach: int, kinds: str = "both") -> Tables:
    """Of keys, of queries, or both."""
    keys, queries = (normal(heads[0] * heads[2], 2 * reach - 1, seed=seed) for seed in (1, 2))
    return None if kinds == "queries" else keys, None if kinds == "keys" else queries


def attention(
    ops: Any,
    qkv: FloatArray,
    batch: Batch,
    heads: Heads,
    tables: Tables,
    bias: FloatArray | None = None,
    **visible: Any,
) -> FloatArray:
    batch = ops.upload(batch)
    y = ops.attention(
        ops.vector(qkv), batch, num_heads=heads[0], num_kv_heads=heads[1], head_dim=heads[2],
        scale=(3 * heads[2]) ** -0.5, rows=batch.wanted, distance_bias=None if bias is None else ops.vector(bias),
        relative=Relative(*(None if table is None else ops.vector(table) for table in tables)), **visible,
    )  # fmt: skip
    return np.asarray(ops.to_numpy(y))


def written_out(
    qkv: Any, keys: Any, queries: Any, lengths: list[int], heads: Heads, causal: bool, window: int | None
) -> Any:
    """One sequence, query and key at a time."""
    outputs, end = [], keys.shape[1] // 2
    seen, seeing = (table.view(heads[0], heads[2], -1) for table in (keys, queries))
    for part in qkv.split(lengths):
        q, k, v = split_heads(part, heads)
        scores = torch.full((heads[0], len(part), len(part)), -torch.inf, dtype=qkv.dtype)
        for i in range(len(part)):
            for j in range(len(part)):
                if (j <= i or not causal) and (window is None or abs(i - j) < window):
                    to_key, to_query = (min(max(distance, -end), end) + end for distance in (j - i, i - j))
                    read = k[:, j] + seen[:, :, to_key], seeing[:, :, to_query]
                    scores[:, i, j] = (q[:, i] * read[0]).sum(-1) + (k[:, j] * read[1]).sum(-1)
        weights = (scores * (3 * heads[2]) ** -0.5).softmax(-1)
        outputs.append((weights @ v).transpose(0, 1).flatten(1))
    return torch.cat(outputs)


@pytest.mark.parametrize("visible", VISIBLE)
@pytest.mark.parametrize(("lengths", "heads", "reach"), [([7, 1, 20], (4, 2, 5), 4), ([23], (3, 3, 8), 30)])
def test_the_definition(lengths: list[int], heads: Heads, reach: int, visible: Any) -> None:
    qkv, tables = qkv_of(sum(lengths), heads), tables_of(heads, reach)
    options = {"causal": False, "window": None, **visible}
    pairs = zip(*tensors(qkv, *(table for table in tables if table is not None)), strict=True)
    results = [written_out(x, keys, queries, lengths, heads, **options).numpy() for x, keys, queries in pairs]
    assert_as_exact(attention(NumpyOps(), qkv, batch_of(lengths), heads, tables, **visible), *results)


def by_numpy(lengths: list[int], heads: Heads, reach: int, kinds: str) -> tuple[Any, ...]:
    """Queries, keys and values, the tables, and what the definition makes of them."""
    qkv, tables = qkv_of(sum(lengths), heads), tables_of(heads, reach, kinds)
    return qkv, tables, attention(NumpyOps(), qkv, batch_of(lengths), heads, tables)


@pytest.mark.parametrize(("reach", "kinds"), [(2, "both"), (9, "keys"), (9, "queries"), (129, "both")])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_every_backend(backend: Any, lengths: list[int], heads: Heads, reach: int, kinds: str, kept: Any) -> None:
    qkv, tables, expected = kept(by_numpy, lengths, heads, reach, kinds)
    y = attention(backend, qkv, batch_of(lengths), heads, tables)
    np.testing.assert_allclose(y, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


@pytest.mark.parametrize("visible", VISIBLE)
def test_what_is_visible_and_a_bias_beside(backend: Any, visible: Any) -> None:
    heads, lengths = (4, 2, 8), [5, 1, 90, 230]
    qkv, tables, bias = qkv_of(sum(lengths), heads), tables_of(heads, 33), normal(4, 21)
    batch, exact = batch_of(lengths), NumpyOps()
    y, expected = (attention(ops, qkv, batch, heads, tables, bias, **visible) for ops in (backend, exact))
    np.testing.assert_allclose(y, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


@pytest.mark.parametrize("visible", VISIBLE)
def test_the_same_bits_in_any_batch_on_any_number_of_threads(ops: NativeOps, visible: Any) -> None:
    heads, lengths = (2, 2, 32), [170, 3, 430, 40]
    compute = partial(attention, ops, heads=heads, tables=tables_of(heads, 41), **visible)
    assert_same_bits(ops, qkv_of(sum(lengths), heads), lengths, compute)


@pytest.mark.parametrize("reads", ["first", "last"])
@pytest.mark.parametrize("kinds", ["both", "queries"])
def test_wanted_rows_have_the_bits_that_they_have_among_all(backend: Any, kinds: str, reads: Any) -> None:
    heads, items = (4, 4, 8), items_of([5, 1, 40, 270], [0, 0, 0, 0])
    tables, batch = tables_of(heads, 21, kinds), pack(items, reads)
    qkv = qkv_of(batch.num_tokens, heads)
    every, some = (attention(backend, qkv, x, heads, tables) for x in (pack(items), batch))
    if backend.name == "torch":
        np.testing.assert_allclose(some, every[batch.wanted], rtol=1e-5, atol=1e-5)
    else:
        np.testing.assert_array_equal(some, every[batch.wanted])


def test_in_parts_on_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the scores of a long sequence are made."""
    from rtp_llm.ops import torch_ops

    heads, batch = (4, 2, 8), batch_of([50, 3])
    qkv, tables = qkv_of(53, heads), tables_of(heads, 21)
    expected = attention(NumpyOps(), qkv, batch, heads, tables)
    monkeypatch.setattr(torch_ops, "_PART", 4 * 50 * 7)
    y = attention(torch_ops.TorchOps(), qkv, batch, heads, tables)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6)


def test_numpy_in_the_place_of_a_broken_kernel(ops: NativeOps, monkeypatch: pytest.MonkeyPatch) -> None:
    heads, batch = (4, 2, 8), batch_of([50, 3])
    qkv, tables = qkv_of(53, heads), tables_of(heads, 21)
    monkeypatch.setattr(ops, "attention", ThroughNumpy(ops.to_numpy, "attention"))
    y, expected = (attention(backend, qkv, batch, heads, tables) for backend in (ops, NumpyOps()))
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("shape", [(32, 8), (31, 9), (9,)])
def test_a_table_of_another_shape_is_refused(ops: NativeOps, shape: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError, match="relative is"):
        attention(ops, qkv_of(5, (4, 2, 8)), batch_of([5]), (4, 2, 8), (normal(*shape), None))


def test_tables_of_two_shapes_are_refused(ops: NativeOps) -> None:
    with pytest.raises(AssertionError, match="relative has tables of"):
        attention(ops, qkv_of(5, (4, 2, 8)), batch_of([5]), (4, 2, 8), (normal(32, 9), normal(32, 11)))


def test_behind_a_prefix_it_is_refused(backend: Any) -> None:
    heads, batch = (4, 4, 8), shared_pack(items_of([1, 20], [33, 33]))
    with pytest.raises(AssertionError, match="nor distances"):
        attention(backend, qkv_of(batch.num_tokens, heads), batch, heads, tables_of(heads, 5), causal=True)
