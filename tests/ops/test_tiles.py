"""The list of tiles covers every query once, on any batch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtp_llm.core import Int32Array, pack
from rtp_llm.ops.tiles import FIELDS, PACKED_SEQS, PACKED_TOKENS, WANTED_ROWS, tile_rows, tiles, wanted_tiles
from tests.ops.data import batch_of
from tests.ops.test_shared_prefix import items_of, shared_pack

LENGTHS = st.lists(st.one_of(st.integers(1, 70), st.integers(1, 600)), min_size=1, max_size=40)


def rows_of(array: Int32Array) -> Int32Array:
    return array.reshape(-1, FIELDS)


def covered(array: Int32Array) -> list[int]:
    return sorted(row for first, end, *_ in rows_of(array).tolist() for row in range(first, end))


@given(LENGTHS)
def test_every_row_is_in_one_tile(lengths: list[int]) -> None:
    batch = batch_of(lengths)
    assert covered(tiles(batch)) == list(range(batch.num_tokens))


@given(LENGTHS, st.sampled_from(["first", "last"]))
def test_every_wanted_row_is_in_one_tile(lengths: list[int], reads: str) -> None:
    batch = pack(items_of(lengths, [0] * len(lengths)), reads)  # type: ignore[arg-type]
    found = wanted_tiles(batch)
    assert covered(found) == list(range(len(lengths)))
    assert all(count <= WANTED_ROWS for _, _, _, count, *_ in rows_of(found).tolist())


@given(LENGTHS)
def test_a_tile_has_the_rows_of_its_sequences(lengths: list[int]) -> None:
    batch = batch_of(lengths)
    limit = tile_rows(batch.num_tokens, batch.max_seqlen)
    for first, end, seq, count, *_ in rows_of(tiles(batch)).tolist():
        low, high = batch.cu_seqlens[seq], batch.cu_seqlens[seq + count]
        assert low <= first < end <= high and end - first <= limit
        assert count == 1 or (low, high) == (first, end) and end - first <= PACKED_TOKENS and count <= PACKED_SEQS


@given(LENGTHS)
def test_a_graph_has_room_for_any_batch_of_its_bucket(lengths: list[int]) -> None:
    batch = batch_of(lengths)
    fixed, rest = tiles(batch, fixed=True), tiles(batch)
    assert len(fixed) == FIELDS * (batch.num_tokens // tile_rows(batch.num_tokens, batch.max_seqlen) + len(lengths))
    np.testing.assert_array_equal(fixed[: len(rest)], rest)
    assert not fixed[len(rest) :].any()


def test_the_most_work_comes_first() -> None:
    found = rows_of(tiles(batch_of([3, 200, 5, 70])))
    lengths = found[:, 1] - found[:, 0]
    assert found[:, 2].tolist() == [1, 1, 1, 1, 3, 3, 2, 0] and lengths.tolist() == [8, 64, 64, 64, 6, 64, 5, 3]


def test_short_neighbours_share_a_tile() -> None:
    assert sorted(rows_of(tiles(batch_of([16] * 9)))[:, 3].tolist()) == [1, 4, 4]
    assert sorted(rows_of(tiles(batch_of([1] * 70)))[:, 3].tolist()) == [6, 32, 32]


def test_a_sequence_with_a_prefix_has_its_own_tiles() -> None:
    batch = shared_pack(items_of([3, 2, 5, 100], [7, 7, 0, 7]))
    found = sorted(rows_of(tiles(batch)).tolist())
    assert [(seq, count, start, length) for _, _, seq, count, start, length in found] == [
        (0, 1, 0, 0), (1, 1, 0, 7), (2, 1, 0, 7), (3, 1, 0, 0), (4, 1, 0, 7), (4, 1, 0, 7)
    ]  # fmt: skip


@pytest.mark.parametrize(("num_tokens", "longest", "rows"), [(4095, 4095, 64), (4096, 65, 128), (9999, 64, 64)])
def test_tile_rows(num_tokens: int, longest: int, rows: int) -> None:
    assert tile_rows(num_tokens, longest) == rows
