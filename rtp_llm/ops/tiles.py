"""The work of an attention kernel as a flat list of tiles, made on the host when a batch is uploaded.

A tile is some consecutive queries that one program takes together, for one head. Short sequences that stand next to
each other share a tile. The most work comes first, so that no long tile is left alone at the end.
"""

from bisect import bisect_right

import numpy as np

from rtp_llm.core import Batch, Int32Array

# int32s of a tile: its queries from `first` to before `last` (rows of the batch, or places in `wanted`), its first
# sequence, how many it has, and what stands before it: first row among the prefixes, and tokens.
FIELDS = 6
PACKED_TOKENS = 64  # keys of sequences that share a tile
PACKED_SEQS = 32
WANTED_ROWS = 16  # queries of a tile of wanted rows: the least that a matrix multiplication takes
_SMALL, _LARGE = 64, 128
_LARGE_BATCH = 4096  # from here on there are more large tiles than multiprocessors


def tile_rows(num_tokens: int, max_seqlen: int) -> int:
    """Queries of a tile. Below 4096 tokens the number of tokens alone decides, as CUDA graphs need it."""
    return _LARGE if num_tokens >= _LARGE_BATCH and max_seqlen > PACKED_TOKENS else _SMALL


def prefix_sources(batch: Batch) -> list[int]:
    """The values of `prefix_of` in the order in which their keys are laid end to end."""
    return [] if batch.prefix_of is None else sorted({int(source) for source in batch.prefix_of} - {-1})


def tiles(batch: Batch, *, fixed: bool = False) -> Int32Array:
    """Tiles [n * FIELDS] of every row. `fixed`: as many as any batch of so many tokens and sequences may need."""
    rows = tile_rows(batch.num_tokens, batch.max_seqlen)
    cu_seqlens, prefixes = batch.cu_seqlens.tolist(), _prefixes(batch)
    found: list[tuple[int, ...]] = []
    seq, num_seqs = 0, batch.num_seqs
    while seq < num_seqs:
        start, end = cu_seqlens[seq], cu_seqlens[seq + 1]
        count = 1 if prefixes[seq][1] else _shared(cu_seqlens, seq, prefixes)
        if count > 1:
            found.append((start, cu_seqlens[seq + count], seq, count, 0, 0))
        else:
            found += [(row, min(row + rows, end), seq, 1, *prefixes[seq]) for row in range(start, end, rows)]
        seq += count
    return _sorted(found, cu_seqlens, batch.num_tokens // rows + num_seqs if fixed else len(found))


def wanted_tiles(batch: Batch, *, fixed: bool = False) -> Int32Array:
    """Tiles [n * FIELDS] of the wanted rows, which belong to the last sequences, one each."""
    assert batch.wanted is not None
    cu_seqlens, prefixes, num_rows = batch.cu_seqlens.tolist(), _prefixes(batch), len(batch.wanted)
    found: list[tuple[int, ...]] = []
    row, before = 0, batch.num_seqs - num_rows
    while row < num_rows:
        seq = before + row
        count = 1 if prefixes[seq][1] else min(_shared(cu_seqlens, seq, prefixes), WANTED_ROWS)
        found.append((row, row + count, seq, count, *(prefixes[seq] if count == 1 else (0, 0))))
        row += count
    return _sorted(found, cu_seqlens, num_rows if fixed else len(found))


def _prefixes(batch: Batch) -> list[tuple[int, int]]:
    """First row among the prefixes laid end to end, and tokens, for each sequence."""
    places, end = {-1: (0, 0)}, 0
    for source in prefix_sources(batch):
        length = int(batch.cu_seqlens[source + 1] - batch.cu_seqlens[source]) if source >= 0 else (
            batch.kept[-2 - source].num_tokens
        )  # fmt: skip
        places[source] = (end, length)
        end += length
    if batch.prefix_of is None:
        return [(0, 0)] * batch.num_seqs
    return [places[source] for source in batch.prefix_of.tolist()]


def _shared(cu_seqlens: list[int], seq: int, prefixes: list[tuple[int, int]]) -> int:
    """How many sequences from `seq` on fit into one tile, at least 1."""
    end = bisect_right(cu_seqlens, cu_seqlens[seq] + PACKED_TOKENS, seq) - 1
    end = min(end, seq + PACKED_SEQS, len(cu_seqlens) - 1)
    return max(next((i for i in range(seq, end) if prefixes[i][1]), end) - seq, 1)


def _sorted(found: list[tuple[int, ...]], cu_seqlens: list[int], size: int) -> Int32Array:
    """Longest sequences first, and in one the last rows first, which see the most where attention is causal."""
    array = np.zeros((size, FIELDS), np.int32)
    if found:
        some = np.array(found, np.int32)
        starts = np.array(cu_seqlens, np.int32)
        keys = np.where(some[:, 3] > 1, 0, starts[some[:, 2] + 1] - starts[some[:, 2]] + some[:, 5])
        array[: len(some)] = some[np.lexsort((-some[:, 0], -keys))]
    return array.reshape(-1)
