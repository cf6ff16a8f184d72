"""Attention of some rows only, and of sequences that begin with the tokens of another one."""

from typing import Any

import numpy as np
import pytest

from rtp_llm.core import Batch, FloatArray, Int32Array, Item, KeptPrefix, Prefixes, pack
from rtp_llm.ops.native_ops import NativeOps
from rtp_llm.ops.numpy_ops import NumpyOps
from tests.ops.data import BUILT, normal, usable_or_skip

HEADS = [(1, 1, 3), (4, 2, 8), (6, 2, 40), (3, 3, 64), (2, 1, 128)]
VISIBLE: list[dict[str, Any]] = [{"causal": True}, {"causal": True, "window": 5}, {"causal": True, "window": 70}]


@pytest.fixture(params=["numpy", "torch", *BUILT])
def backend(request: pytest.FixtureRequest) -> Any:
    if request.param == "numpy":
        return NumpyOps()
    if request.param != "torch":
        return NativeOps(instruction_set=usable_or_skip(request.param))
    pytest.importorskip("torch")
    from rtp_llm.ops.torch_ops import TorchOps

    return TorchOps()


def attention(ops: Any, qkv: FloatArray, batch: Batch, heads: tuple[int, int, int], **visible: Any) -> FloatArray:
    num_heads, num_kv_heads, head_dim = heads
    batch = ops.upload(batch)
    y = ops.attention(
        ops.vector(qkv), batch, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, scale=0.3,
        rows=batch.wanted, **visible,
    )  # fmt: skip
    return np.asarray(ops.to_numpy(y))


def assert_same(ops: Any, ours: FloatArray, expected: FloatArray) -> None:
    """The same bits, but from torch, whose sums depend on the number of rows."""
    if ops.name == "torch":
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
    else:
        np.testing.assert_array_equal(ours, expected)


def qkv_of(num_tokens: int, heads: tuple[int, int, int]) -> FloatArray:
    return normal(num_tokens, (heads[0] + 2 * heads[1]) * heads[2])


def items_of(lengths: list[int], prefixes: list[int]) -> list[Item]:
    """Each begins with so many tokens of the numbers from 0 on, then counts its own."""
    rows = [np.r_[np.arange(shared), np.arange(length) + 1000 * (i + 1)] for i, (length, shared) in
            enumerate(zip(lengths, prefixes, strict=True))]  # fmt: skip
    return [
        Item(row.astype(np.int32), i, prefix=row[:shared].astype(np.int32).tobytes())
        for i, (row, shared) in enumerate(zip(rows, prefixes, strict=True))
    ]


def shared_pack(items: list[Item]) -> Batch:
    return pack(items, "last", Prefixes.find(items, {}))


def rows_of(values: FloatArray, ids: Int32Array, batch: Batch) -> FloatArray:
    """The same row of `values` for the same token of the same item wherever it is packed: ids tell the tokens apart."""
    places = {int(token): place for place, token in enumerate(ids)}
    return values[[places[int(token)] for token in batch.input_ids]]


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("reads", ["first", "last"])
@pytest.mark.parametrize("visible", [{}, {"window": 9}, *VISIBLE])
@pytest.mark.parametrize("heads", HEADS)
def test_wanted_rows(backend: Any, heads: tuple[int, int, int], visible: Any, reads: Any, num_threads: int) -> None:
    items = items_of([1, 33, 100, 2, 64], [0] * 5)
    whole, some = pack(items), pack(items, reads)
    qkv = qkv_of(whole.num_tokens, heads)
    backend.num_threads = num_threads
    assert some.wanted is not None and len(some.wanted) == len(items)
    expected = attention(backend, qkv, whole, heads, **visible)[some.wanted]
    assert_same(backend, attention(backend, qkv, some, heads, **visible), expected)


@pytest.mark.parametrize("prefix", [1, 7, 31, 32, 33, 64, 100])
@pytest.mark.parametrize("visible", VISIBLE)
@pytest.mark.parametrize("heads", HEADS)
def test_a_shared_prefix(backend: Any, heads: tuple[int, int, int], visible: Any, prefix: int) -> None:
    items = items_of([1, 20, 5, 40, 33], [prefix, prefix, 0, prefix, prefix])
    whole, shared = pack(items, "last"), shared_pack(items)
    assert shared.num_tokens == whole.num_tokens - 3 * prefix and shared.num_seqs == 6
    ids = np.unique(whole.input_ids)
    values = qkv_of(len(ids), heads)
    expected = attention(backend, rows_of(values, ids, whole), whole, heads, **visible)
    ours = attention(backend, rows_of(values, ids, shared), shared, heads, **visible)
    assert_same(backend, ours, expected)
    every_row = [Batch(**{**{f: getattr(b, f) for f in Batch.__slots__}, "wanted": None}) for b in (whole, shared)]
    all_rows, all_shared = (attention(backend, rows_of(values, ids, b), b, heads, **visible) for b in every_row)
    assert_same(backend, all_shared[-33:], all_rows[-33:])


@pytest.mark.parametrize("prefix", [1, 32, 45])
@pytest.mark.parametrize("heads", HEADS)
def test_a_kept_prefix(backend: Any, heads: tuple[int, int, int], prefix: int) -> None:
    """Beside one that is computed, one that comes from an earlier batch."""
    items = items_of([4, 20, 5], [prefix, prefix, 0])
    other = np.arange(500, 570, dtype=np.int32)
    items[1].input_ids = np.concatenate([other, items[1].input_ids[prefix:]])
    items[1].prefix = other.tobytes()
    whole = pack(items, "last")
    ids = np.unique(whole.input_ids)
    values = qkv_of(len(ids), heads)
    expected = attention(backend, rows_of(values, ids, whole), whole, heads, causal=True)
    own = values[np.searchsorted(ids, other)][:, heads[0] * heads[2] :]
    kept = KeptPrefix(other.tobytes(), [backend.vector(own)], own.nbytes)
    shared = pack(items, "last", Prefixes.find(items, {kept.key: kept}, least=1))
    assert shared.prefix_of is not None and shared.prefix_of.tolist() == [-1, 0, -2, -1]
    assert shared.num_tokens == whole.num_tokens - 70
    ours = attention(backend, rows_of(values, ids, shared), shared, heads, causal=True, kept=kept.layers)
    assert_same(backend, ours, expected)


def test_what_is_shared() -> None:
    items = items_of([3, 3, 3, 3], [4, 4, 2, 0])
    batch = shared_pack(items)
    assert batch.prefix_of is not None and batch.prefix_of.tolist() == [-1, 0, 0, -1, -1]
    assert batch.cu_seqlens.tolist() == [0, 4, 7, 10, 15, 18]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 0, 1, 2, 3, 4, 0, 1, 2]
    assert batch.wanted is not None and batch.wanted.tolist() == [6, 9, 14, 17]
    assert shared_pack(items[1:]).prefix_of is None


def test_a_prompt_is_shared_and_an_item_that_is_all_prefix_is_not() -> None:
    ids = np.arange(6, dtype=np.int32)
    items = [Item(ids, 0, prompt_length=4), Item(ids[:5], 1, prompt_length=4), Item(ids[:4], 2, prompt_length=4)]
    batch = shared_pack(items)
    assert batch.prefix_of is not None and batch.prefix_of.tolist() == [-1, 0, 0, -1]
    assert batch.num_tokens == 4 + 2 + 1 + 4


def test_wrong_prefixes_are_caught(ops: NativeOps) -> None:
    items = items_of([3, 3], [4, 4])
    batch = shared_pack(items)
    qkv = qkv_of(batch.num_tokens, (1, 1, 4))
    with pytest.raises(AssertionError, match="does not see"):
        attention(ops, qkv, batch, (1, 1, 4), causal=False)
    for wrong in ([-1, 1, 0], [-1, 0, 1], [-2, 0, 0]):
        with pytest.raises(AssertionError):
            fields = {name: getattr(batch, name) for name in Batch.__slots__}
            ops.upload(Batch(**{**fields, "prefix_of": np.array(wrong, np.int32)}))
