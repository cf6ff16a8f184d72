"""Vectors of distances, and tokens that are not seen, in the attention kernel: interpreted, or on a GPU."""

from typing import Any

import numpy as np
import pytest

from rtp_llm.core import Batch, FloatArray, Item, pack
from rtp_llm.ops import Relative
from rtp_llm.ops.numpy_ops import NumpyOps
from tests.ops.data import batch_of, normal
from tests.ops.interpreter import DEVICE
from tests.ops.test_shared_prefix import items_of, shared_pack
from tests.ops.test_triton_ops import VISIBLE, Heads, assert_close, qkv_of, rounded
from tests.ops.test_triton_ops import dtype as dtype

torch = pytest.importorskip("torch")

from rtp_llm.ops.torch_ops import TorchOps  # noqa: E402
from rtp_llm.ops.triton_ops import TritonOps  # noqa: E402
from rtp_llm.ops.triton_relative import as_rows  # noqa: E402

Tables = tuple[FloatArray | None, FloatArray | None]
# Sequences that share a tile, such that need several, and lone ones.
LENGTHS = [[1], [64, 1, 63, 65, 2, *[3] * 12], [130, 7, 7]]


def tables_of(heads: Heads, reach: int, dtype: str, kinds: str = "both") -> Tables:
    """Of keys, of queries, or both; `by columns`, both as a model hands them over."""
    keys, queries = (rounded(normal(heads[0] * heads[2], 2 * reach - 1, seed=seed), dtype) for seed in (1, 2))
    if kinds == "by columns":
        return np.asfortranarray(keys), np.asfortranarray(queries)
    return None if kinds == "queries" else keys, None if kinds == "keys" else queries


def attention(
    qkv: FloatArray,
    batch: Batch,
    heads: Heads,
    tables: Tables | None = None,
    bias: FloatArray | None = None,
    **more: Any,
) -> Any:
    num_heads, num_kv_heads, head_dim = heads

    def run(ops: Any) -> Any:
        there = ops.upload(batch)
        relative = tables and Relative(*(None if table is None else ops.vector(table) for table in tables))
        return ops.attention(
            ops.vector(qkv), there, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim,
            scale=(3 * head_dim) ** -0.5, rows=there.wanted, relative=relative,
            distance_bias=None if bias is None else ops.vector(bias), **more,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("kinds", ["both", "by columns", "keys", "queries"])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_vectors_of_distances(lengths: list[int], kinds: str, dtype: str) -> None:
    batch, heads = batch_of(lengths), (4, 2, 32)
    tables = tables_of(heads, 33, dtype, kinds)
    assert_close(attention(qkv_of(batch.num_tokens, heads, dtype), batch, heads, tables), dtype)


@pytest.mark.parametrize("reach", [1, 2, 64, 65, 300])
@pytest.mark.parametrize("visible", VISIBLE)
def test_vectors_of_any_reach_and_what_is_visible(visible: dict[str, Any], reach: int) -> None:
    batch, heads = batch_of([70, 5, 3, 150]), (1, 1, 32)
    tables = tables_of(heads, reach, "fp16")
    assert_close(attention(qkv_of(batch.num_tokens, heads, "fp16"), batch, heads, tables, **visible), "fp16")


@pytest.mark.parametrize("heads", [(1, 1, 2), (3, 1, 40), (2, 2, 64), (1, 1, 80), (1, 1, 96), (2, 1, 128)])
def test_vectors_of_any_head_dim(heads: Heads) -> None:
    batch = batch_of([70, 5, 20])
    qkv, tables = qkv_of(batch.num_tokens, heads, "fp16"), tables_of(heads, 21, "fp16")
    assert_close(attention(qkv, batch, heads, tables), "fp16")


def test_larger_heads_are_left_to_torch() -> None:
    batch, heads = batch_of([7, 5]), (1, 1, 160)
    run = attention(qkv_of(12, heads, "fp16"), batch, heads, tables_of(heads, 5, "fp16"))
    assert torch.equal(run(TritonOps(DEVICE, "fp16")), run(TorchOps(DEVICE, "fp16")))


@pytest.mark.parametrize("reach", [9, 100])
def test_in_large_tiles(reach: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtp_llm.ops.tiles._LARGE_BATCH", 100)
    batch, heads = batch_of([200, 3, 5, 66]), (1, 1, 32)
    qkv, tables = qkv_of(batch.num_tokens, heads, "fp16"), tables_of(heads, reach, "fp16")
    for visible in VISIBLE:
        assert_close(attention(qkv, batch, heads, tables, **visible), "fp16")


@pytest.mark.parametrize("reads", ["first", "last"])
@pytest.mark.parametrize("reach", [9, 100])
def test_of_wanted_rows(reach: int, reads: Any) -> None:
    batch, heads = pack(items_of([1, 33, 100, 2, 64, 61, 3, *[2] * 20], [0] * 27), reads), (2, 1, 32)
    tables = tables_of(heads, reach, "fp16")
    assert_close(attention(qkv_of(batch.num_tokens, heads, "fp16"), batch, heads, tables), "fp16")


@pytest.mark.parametrize("visible", VISIBLE)
def test_with_a_bias_beside(visible: dict[str, Any], dtype: str) -> None:
    batch, heads = batch_of([5, 1, 90]), (4, 2, 32)
    tables, bias = tables_of(heads, 33, dtype), rounded(normal(4, 21), dtype)
    assert_close(attention(qkv_of(batch.num_tokens, heads, dtype), batch, heads, tables, bias, **visible), dtype)


def test_sums_beyond_the_largest_number_in_16_bits() -> None:
    """Of three terms each of which may not fit: torch, which rounds them, has infinities instead."""
    batch, heads = batch_of([70, 5]), (1, 1, 64)
    qkv = rounded(80 * qkv_of(75, heads, "fp16"), "fp16")
    keys, queries = (rounded(50 * table, "fp16") for table in tables_of(heads, 9, "fp16") if table is not None)
    run = attention(qkv, batch, heads, (keys, queries))
    ops = TritonOps(DEVICE, "fp16")
    ours, expected = ops.to_numpy(run(ops)), run(NumpyOps())
    assert (qkv[:, :64] @ keys).max() > 65504
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2**-10 * np.abs(expected).max())


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_is_not_a_number_stays_in_its_sequence(poison: float) -> None:
    batch, heads = batch_of([5, 3, 4, 70]), (2, 1, 32)
    qkv, tables, ops = qkv_of(batch.num_tokens, heads, "fp16"), tables_of(heads, 9, "fp16"), TritonOps(DEVICE, "fp16")
    expected = ops.to_numpy(attention(qkv, batch, heads, tables)(ops))
    qkv[6] = poison
    ours = ops.to_numpy(attention(qkv, batch, heads, tables)(ops))
    assert np.isnan(ours[5:8]).all()
    np.testing.assert_array_equal(np.delete(ours, range(5, 8), 0), np.delete(expected, range(5, 8), 0))


def test_tables_by_columns_are_not_copied() -> None:
    """As DeBERTa hands them over; what it hands over in rows is the same."""
    ops, tables = TritonOps(DEVICE, "fp16"), tables_of((2, 1, 32), 9, "fp16", "by columns")
    relative = Relative(*(ops.vector(table) for table in tables if table is not None))
    turned, reach = as_rows(relative, 64)
    assert reach == 9
    for rows, table, given in zip(turned, relative.tables, tables, strict=True):
        assert rows is not None and given is not None
        assert rows.shape == (17, 64) and rows.data_ptr() == table.data_ptr()
        np.testing.assert_array_equal(ops.to_numpy(table), rounded(given, "fp16"))


def test_behind_a_prefix_they_are_refused() -> None:
    heads, batch = (4, 4, 8), shared_pack(items_of([1, 20], [33, 33]))
    run = attention(qkv_of(batch.num_tokens, heads, "fp16"), batch, heads, tables_of(heads, 5, "fp16"), causal=True)
    with pytest.raises(AssertionError, match="nor distances"):
        run(TritonOps(DEVICE, "fp16"))


# Tokens of each sequence, and how many at its end are not seen.
SEQUENCES = [[(5, 4)], [(7, 0), (32, 25), (1, 0), (20, 1), (4, 4)], [(70, 40), (130, 10), (33, 32), (66, 66)]]


def unseen_batch(sequences: list[tuple[int, int]], reads: Any = "all") -> Batch:
    return pack([Item(np.zeros(n, np.int32), i, num_unseen=unseen) for i, (n, unseen) in enumerate(sequences)], reads)


@pytest.mark.parametrize("visible", VISIBLE)
@pytest.mark.parametrize("sequences", SEQUENCES)
def test_tokens_that_are_not_seen(sequences: list[tuple[int, int]], visible: dict[str, Any], dtype: str) -> None:
    batch, heads = unseen_batch(sequences), (4, 2, 32)
    assert_close(attention(qkv_of(batch.num_tokens, heads, dtype), batch, heads, **visible), dtype)


@pytest.mark.parametrize("reads", ["all", "first", "last"])
@pytest.mark.parametrize("sequences", SEQUENCES)
def test_tokens_that_are_not_seen_among_distances(sequences: list[tuple[int, int]], reads: Any) -> None:
    batch, heads = unseen_batch(sequences, reads), (2, 2, 32)
    tables, bias = tables_of(heads, 9, "fp16"), rounded(normal(2, 21), "fp16")
    assert_close(attention(qkv_of(batch.num_tokens, heads, "fp16"), batch, heads, tables, bias), "fp16")


def test_tokens_that_are_not_seen_in_large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtp_llm.ops.tiles._LARGE_BATCH", 100)
    batch, heads = unseen_batch([(200, 70), (3, 1), (150, 149), (66, 0)]), (1, 1, 32)
    for visible in VISIBLE:
        assert_close(attention(qkv_of(batch.num_tokens, heads, "fp16"), batch, heads, **visible), "fp16")


def test_tokens_that_are_not_seen_behind_a_prefix() -> None:
    items, heads = items_of([1, 20, 5, 70], [33, 33, 0, 33]), (2, 1, 32)
    items[1].num_unseen, items[3].num_unseen = 7, 69
    batch = shared_pack(items)
    assert batch.seen_lens is not None and batch.prefix_of is not None
    assert_close(attention(qkv_of(batch.num_tokens, heads, "fp16"), batch, heads, causal=True), "fp16")


def test_a_query_that_sees_nothing_yields_zeros() -> None:
    batch, heads = unseen_batch([(32, 27), (3, 3), (70, 60)]), (2, 2, 32)
    ops = TritonOps(DEVICE, "fp16")
    y = ops.to_numpy(attention(qkv_of(105, heads, "fp16"), batch, heads, window=4)(ops))
    blind = np.r_[8:35, 48:105]
    assert (y[blind] == 0).all() and (np.abs(np.delete(y, blind, 0)).max(axis=1) > 0).all()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_keys_that_are_not_seen_are_not_read() -> None:
    batch, heads = unseen_batch([(9, 4), (7, 0), (70, 65)]), (1, 1, 32)
    qkv, ops = qkv_of(86, heads, "fp16"), TritonOps(DEVICE, "fp16")
    expected = ops.to_numpy(attention(qkv, batch, heads)(ops))
    for row in (*range(5, 9), *range(21, 86)):
        qkv[row, 32:] = np.nan
    np.testing.assert_array_equal(ops.to_numpy(attention(qkv, batch, heads)(ops)), expected)
