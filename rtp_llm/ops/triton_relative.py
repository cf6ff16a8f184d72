"""What positions say in attention, as DeBERTa's do: to the product of query i with key j they add q_i . keys[:, j - i]
and k_j . queries[:, i - j], of tables with a vector for each distance (rtp_llm.ops.Relative).

The queries of a tile and a block of keys are runs of rows, and so are the distances between them: both products are
made with the vectors of that whole run, and each query takes from them what stands at its own distances. Nothing of
that leaves the multiprocessor. The tables are read as rows of a head's numbers, one after another.
"""

import torch
import triton
import triton.language as tl

from rtp_llm.ops import Relative, relative_reach


@triton.jit
def place_products(q, k, first, origin, relative, HEAD_DIM: tl.constexpr, SPAN: tl.constexpr, RELATIVE: tl.constexpr):
    """What is added to the products of q [M, D], queries of the rows `origin`, with k [N, D], from row `first` on.

    relative  the least of those rows; vectors of keys and of queries, `stride` numbers apart; their reach
    SPAN      distances that are multiplied with; the queries stand in SPAN - N + 1 rows at most
    RELATIVE  which vectors there are: "keys", "queries", "both"
    """
    base, keys_ptr, queries_ptr, stride, reach = relative
    BLOCK_M: tl.constexpr = q.shape[0]
    BLOCK_N: tl.constexpr = k.shape[0]
    EXACT: tl.constexpr = "ieee" if q.dtype == tl.float32 else "tf32"
    d = tl.arange(0, q.shape[1])
    n = tl.arange(0, BLOCK_N)[None, :]
    m = tl.arange(0, BLOCK_M)[:, None]
    distance = first - base - (SPAN - BLOCK_N) + tl.arange(0, SPAN)
    distance = tl.minimum(tl.maximum(distance, 1 - reach), reach - 1)
    # Where a pair's distance stands in that run: n - row + SPAN - N; that of a row that is not the tile's is no matter.
    row = tl.minimum(tl.maximum(origin - base, 0), SPAN - BLOCK_N)[:, None]
    added = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if RELATIVE != "queries":
        vectors = _vectors(keys_ptr, distance + (reach - 1), stride, d, HEAD_DIM)
        products = tl.dot(q, tl.trans(vectors), input_precision=EXACT)
        added += _taken(products, m, n, row)
    if RELATIVE != "keys":
        vectors = _vectors(queries_ptr, (reach - 1) - distance, stride, d, HEAD_DIM)
        products = tl.dot(k, tl.trans(vectors), input_precision=EXACT)
        added += _taken(products, n, n, row)
    return added


@triton.jit
def _taken(products, line, n, row):
    """Of products [lines, SPAN], in each pair's line that of its distance.

    NOTE: along one axis of a matrix Triton would gather by shuffles, whose registers spill; so it goes through shared
    memory, in an order in which tensor cores' results are written and read with one lane a bank, or two: of a line's
    number the last three bits come last, before them the upper two of the column's last three.
    """
    LINES: tl.constexpr = products.shape[0]
    SPAN: tl.constexpr = products.shape[1]
    BLOCK_N: tl.constexpr = n.shape[1]
    flat = tl.permute(tl.reshape(products, [LINES // 8, 8, SPAN // 8, 4, 2]), (0, 2, 4, 3, 1))
    flat = tl.reshape(flat, [LINES * SPAN])
    # Bits apart, so that a thread's places differ by constants.
    last = n % 8 - row % 8
    eights = n // 8 - row // 8 + (SPAN - BLOCK_N) // 8 + (last >> 3)
    place = (line // 8 * (SPAN // 8) + eights) * 64 + (last & 1) * 32 + (last & 6) * 4 + line % 8
    taken = tl.gather(flat, tl.reshape(place, [place.shape[0] * place.shape[1]]), 0)
    return tl.reshape(taken, place.shape)


@triton.jit
def _vectors(table_ptr, places, stride, d, HEAD_DIM: tl.constexpr):
    block = table_ptr + places[:, None] * stride + d[None, :]
    # NOTE: behind a minimum Triton sees no run of addresses any more, and would load number by number.
    if HEAD_DIM % 8 == 0:
        block = tl.max_contiguous(tl.multiple_of(block, (1, 16)), (1, 8))
    if HEAD_DIM != d.shape[0]:
        vectors = tl.load(block, mask=(d < HEAD_DIM)[None, :], other=0.0)
    else:
        vectors = tl.load(block)
    return vectors


def as_rows(relative: Relative, num_rows: int) -> tuple[tuple[torch.Tensor | None, torch.Tensor | None], int]:
    """Tables of keys and of queries [num_rows, 2 * reach - 1] -> each [2 * reach - 1, num_rows], and the reach.

    Without a copy where a table's columns stand together, as those that `Ops.vector` makes of arrays that have them so.
    """
    keys, queries = (None if x is None else x.t().contiguous() for x in (relative.keys, relative.queries))
    return (keys, queries), relative_reach(relative, num_rows)
