"""Attention of packed sequences, read in place from the fused queries, keys and values; softmax statistics in fp32.

One program computes one tile (rtp_llm.ops.tiles) of one head. Its keys are walked in blocks: those that some query does
not see are masked, those between are not. Equals TorchOps.attention.
"""

from dataclasses import dataclass
from functools import partial

import torch
import triton
import triton.language as tl

from rtp_llm.ops import Relative, reach_of, tiles
from rtp_llm.ops.triton_launch import is_hip, shared_memory
from rtp_llm.ops.triton_relative import as_rows, place_products

_FIELDS = tl.constexpr(tiles.FIELDS)
_SEQS = tl.constexpr(tiles.PACKED_SEQS)
# NOTE: from sm_90 on, and only there, there is more, and there are tensor cores that read keys from shared memory.
_MUCH_MEMORY = 200 << 10
# Which of its tables a `Relative` has -> what the kernel calls that.
_KINDS = {(False, False): "", (True, False): "keys", (False, True): "queries", (True, True): "both"}


@dataclass(frozen=True, slots=True)
class Config:
    """How a kernel is compiled: queries and keys that are multiplied at once, warps, stages of the pipeline."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def config_of(rows: int, block_d: int, itemsize: int, memory: int, hip: bool = False, biased: bool = False) -> Config:
    """For tiles of so many queries, heads padded to block_d, so many bytes of shared memory; `biased`: with a bias.

    Chosen so that what a program holds fits into registers: see tests/ops/test_triton_compiled.py.
    """
    reads_shared = memory > _MUCH_MEMORY
    # A bias takes registers for the places in its table of all scores at once.
    wide = block_d > (64 if biased else 128)
    block_m = min(rows, 64) if wide else rows
    small_keys = wide or itemsize > 2 or not (reads_shared or hip or (block_d <= 64 and rows == 128))
    block_n = 32 if small_keys or (biased and block_d <= 32) else 64
    num_warps = 8 if wide or rows == 128 else 4
    stages = 1 if hip else 3 if itemsize == 2 else 2
    while stages > 1 and (block_m + 2 * stages * block_n) * block_d * itemsize > memory:
        stages -= 1
    return Config(block_m, block_n, num_warps, stages)


def relative_config_of(rows: int, block_d: int, itemsize: int, memory: int, hip: bool = False) -> Config:
    """As `config_of`, with what positions say: products with about twice as many distances as there are keys.

    NOTE: mma.sync and mfma have the operand with the distances in registers, whole; the larger one spills.
    """
    if hip:
        block_m, block_n = (rows, 16) if rows < 64 else (64, 64)
    else:
        large = memory > _MUCH_MEMORY and block_d <= 64 and itemsize == 2
        block_m, block_n = (min(rows, 64), 64) if large else (min(rows, 32), 32)
    return Config(block_m, block_n, 4, 1)


def span_of(config: Config, has_wanted: bool) -> int:
    """Distances between the queries of a tile, wanted rows of sequences that share it, and a block of keys."""
    rows = tiles.PACKED_TOKENS if has_wanted else config.block_m
    return triton.next_power_of_2(rows + config.block_n - 1)


@triton.jit
def _sequence_of(rows, cu_seqlens, seen_lens, first_seq, num_seqs, HAS_SEEN: tl.constexpr):
    """First row of each row's sequence, and the row after the last that it sees of it."""
    if num_seqs == 1:
        start = tl.load(cu_seqlens + first_seq) + tl.zeros_like(rows)
        if HAS_SEEN:
            end = start + tl.load(seen_lens + first_seq)
        else:
            end = tl.load(cu_seqlens + first_seq + 1) + tl.zeros_like(rows)
    else:
        seqs = tl.arange(0, _SEQS)
        starts = tl.load(cu_seqlens + first_seq + seqs, mask=seqs < num_seqs, other=0)
        ends = tl.load(cu_seqlens + first_seq + seqs + 1, mask=seqs < num_seqs, other=0)
        here = (starts[None, :] <= rows[:, None]) & (rows[:, None] < ends[None, :])
        start = tl.sum(tl.where(here, starts[None, :], 0), axis=1)
        if HAS_SEEN:
            ends = starts + tl.load(seen_lens + first_seq + seqs, mask=seqs < num_seqs, other=0)
        end = tl.sum(tl.where(here, ends[None, :], 0), axis=1)
    return start, end


@triton.jit
def _adjusted(
    scores, keys, cap, bias_ptr, origin, reach, HAS_CAP: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Capped, with the bias of the distance from its query's `origin`, which stands around `bias_ptr`, added.

    HAS_CAP: `scores` are by the cap, and `cap` is the cap.
    """
    if HAS_CAP:  # its tanh is in [-1, 1] whatever the score
        scores = cap - 2 * cap / (tl.exp2(2 * 1.4426950408889634 * scores) + 1)
    if HAS_BIAS:
        distance = keys[None, :] - origin[:, None]
        distance = tl.minimum(tl.maximum(distance, 1 - reach), reach - 1)
        scores += tl.load(bias_ptr + distance).to(tl.float32) * 1.4426950408889634
    return scores


@triton.jit
def _attend(
    acc, total, top, q, keys_ptr, values_offset, stride, first, last, low, high, scale, cap, bias_ptr, origin, reach,
    relative, HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr, HAS_CAP: tl.constexpr, HAS_BIAS: tl.constexpr,
    RELATIVE: tl.constexpr, SPAN: tl.constexpr, MASKED: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Online softmax over the keys from `first` to before `last`; a query sees those from its low to before its high.

    HAS_CAP, HAS_BIAS: see `_adjusted`. RELATIVE: with `place_products` of `relative`.
    SHARED: some keys are another sequence's, whose NaN must not come near (0 * NaN is NaN).
    """
    BLOCK_D: tl.constexpr = acc.shape[1]
    EXACT: tl.constexpr = "ieee" if q.dtype == tl.float32 else "tf32"
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    block = keys_ptr + first.to(tl.int64) * stride + n[:, None] * stride + d[None, :]
    for start in range(first, last, BLOCK_N):
        if MASKED:
            inside = (start + n < last)[:, None] & (d < HEAD_DIM)[None, :]
            k = tl.load(block, mask=inside, other=0.0)
            v = tl.load(block + values_offset, mask=inside, other=0.0)
        elif HEAD_DIM != BLOCK_D:
            k = tl.load(block, mask=(d < HEAD_DIM)[None, :], other=0.0)
            v = tl.load(block + values_offset, mask=(d < HEAD_DIM)[None, :], other=0.0)
        else:
            k = tl.load(block)
            v = tl.load(block + values_offset)
        scores = tl.dot(q, tl.trans(k), input_precision=EXACT)
        if RELATIVE != "":
            scores += place_products(q, k, start, origin, relative, HEAD_DIM, SPAN, RELATIVE)
        scores *= scale
        scores = _adjusted(scores, start + n, cap, bias_ptr, origin, reach, HAS_CAP, HAS_BIAS)
        if MASKED:
            visible = (start + n[None, :] >= low[:, None]) & (start + n[None, :] < high[:, None])
            scores = tl.where(visible, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        # A query that has seen nothing yet has no maximum.
        safe = tl.where(new_top == float("-inf"), 0.0, new_top) if MASKED else new_top
        weights = tl.exp2(scores - safe[:, None])
        shrink = tl.exp2(top - safe)
        total = total * shrink + tl.sum(weights, axis=1)
        if SHARED:
            finite = tl.abs(v) < float("inf")
            spoilt = tl.max(tl.where(finite, 0, 1), axis=1)
            v = tl.where(finite, v, 0.0).to(q.dtype)
            mine = tl.max(tl.where(visible, spoilt[None, :], 0), axis=1)
            total = tl.where(mine > 0, float("nan"), total)
        acc = tl.dot(weights.to(q.dtype), v, acc * shrink[:, None], input_precision=EXACT)
        top = new_top
        block += BLOCK_N * stride
    return acc, total, top


@triton.jit
def attention_kernel(
    out_ptr, qkv_ptr, prefix_ptr, tiles_ptr, cu_seqlens, seen_lens, wanted_ptr, bias_ptr, keys_ptr, queries_ptr, stride,
    reach, relative_reach, scale, cap,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr, HAS_PREFIX: tl.constexpr, HAS_SEEN: tl.constexpr, HAS_WANTED: tl.constexpr,
    HAS_CAP: tl.constexpr, HAS_BIAS: tl.constexpr, RELATIVE: tl.constexpr, SPAN: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out [rows, heads * D] of qkv [T, stride]; WINDOW 0: none; PARTS programs a tile.

    There is log2(e) in `scale`, or with a cap in that. `keys_ptr`, `queries_ptr`: of `relative`, as RELATIVE says.
    """
    tile = tiles_ptr + (tl.program_id(0) // (NUM_HEADS * PARTS)) * _FIELDS
    head = tl.program_id(0) // PARTS % NUM_HEADS
    place, end_place = tl.load(tile) + tl.program_id(0) % PARTS * BLOCK_M, tl.load(tile + 1)
    first_seq, num_seqs = tl.load(tile + 2), tl.load(tile + 3)
    if place < end_place:
        places = place + tl.arange(0, BLOCK_M)
        live = places < end_place
        rows = tl.load(wanted_ptr + places, mask=live, other=0) if HAS_WANTED else places
        start, end = _sequence_of(rows, cu_seqlens, seen_lens, first_seq, num_seqs, HAS_SEEN)
        low = tl.maximum(start, rows - WINDOW + 1) if WINDOW > 0 else start
        high = tl.minimum(end, rows + WINDOW) if WINDOW > 0 else end
        high = tl.minimum(end, rows + 1) if CAUSAL else high
        d = tl.arange(0, BLOCK_D)
        mask = live[:, None] & (d < HEAD_DIM)[None, :]
        q = tl.load(qkv_ptr + rows[:, None].to(tl.int64) * stride + head * HEAD_DIM + d[None, :], mask=mask, other=0.0)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        top = tl.full([BLOCK_M], float("-inf"), tl.float32)
        kv_head = head // (NUM_HEADS // NUM_KV_HEADS)
        bias_ptr += head * (2 * reach - 1) + reach - 1
        base = tl.min(tl.where(live, rows, 0x7FFFFFFF)) if HAS_WANTED else place
        vectors = head * HEAD_DIM
        relative = (base, keys_ptr + vectors, queries_ptr + vectors, NUM_HEADS * HEAD_DIM, relative_reach)
        if HAS_PREFIX:
            acc, total, top = _before(
                acc, total, top, q, prefix_ptr, tile, kv_head, rows - start, scale, cap, bias_ptr, reach,
                NUM_KV_HEADS, HEAD_DIM, WINDOW, BLOCK_N, HAS_CAP, HAS_BIAS,
            )  # fmt: skip
        acc, total = _own(
            acc, total, top, q, qkv_ptr + (NUM_HEADS + kv_head) * HEAD_DIM, stride, live, low, high, num_seqs, scale,
            cap, bias_ptr, rows, reach, relative, NUM_KV_HEADS, HEAD_DIM, BLOCK_N, HAS_CAP, HAS_BIAS, RELATIVE, SPAN,
        )  # fmt: skip
        # A query that sees no key yields 0.
        y = acc / tl.where(live & (total != 0.0), total, 1.0)[:, None]
        to = out_ptr + places[:, None].to(tl.int64) * (NUM_HEADS * HEAD_DIM) + head * HEAD_DIM + d[None, :]
        tl.store(to, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _before(
    acc, total, top, q, prefix_ptr, tile, kv_head, position, scale, cap, bias_ptr, reach,
    NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_CAP: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """The tokens that stand before the sequence, [tokens, 2 * kv_heads * D]; `position` counts without them."""
    first, length = tl.load(tile + 4), tl.load(tile + 5)
    stride: tl.constexpr = 2 * NUM_KV_HEADS * HEAD_DIM
    seen_from = first + tl.maximum(length + position - WINDOW + 1, 0) if WINDOW > 0 else first + position * 0
    return _attend(
        acc, total, top, q, prefix_ptr + kv_head * HEAD_DIM, NUM_KV_HEADS * HEAD_DIM, stride, first, first + length,
        seen_from, first + length + position * 0, scale, cap, bias_ptr, first + length + position, reach, (),
        HEAD_DIM, BLOCK_N, HAS_CAP, HAS_BIAS, "", 0, True, False,
    )  # fmt: skip


@triton.jit
def _own(
    acc, total, top, q, keys_ptr, stride, live, low, high, num_seqs, scale, cap, bias_ptr, rows, reach, relative,
    NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr, HAS_CAP: tl.constexpr,
    HAS_BIAS: tl.constexpr, RELATIVE: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """The keys of the tile's own sequences: masked blocks, those that all queries see whole, masked blocks."""
    values: tl.constexpr = NUM_KV_HEADS * HEAD_DIM
    first = tl.min(tl.where(live, low, 0x7FFFFFFF))
    last = tl.max(tl.where(live, high, 0))
    if num_seqs > 1:
        acc, total, top = _attend(
            acc, total, top, q, keys_ptr, values, stride, first, last, low, high, scale, cap, bias_ptr, rows, reach,
            relative, HEAD_DIM, BLOCK_N, HAS_CAP, HAS_BIAS, RELATIVE, SPAN, True, True,
        )  # fmt: skip
    else:
        all_from = tl.max(tl.where(live, low, 0))
        all_to = tl.min(tl.where(live, high, 0x7FFFFFFF))
        middle = first + tl.cdiv(all_from - first, BLOCK_N) * BLOCK_N
        end = tl.maximum(middle, first + (all_to - first) // BLOCK_N * BLOCK_N)
        middle, end = tl.minimum(middle, last), tl.minimum(end, last)
        acc, total, top = _attend(
            acc, total, top, q, keys_ptr, values, stride, first, middle, low, high, scale, cap, bias_ptr, rows, reach,
            relative, HEAD_DIM, BLOCK_N, HAS_CAP, HAS_BIAS, RELATIVE, SPAN, True, False,
        )  # fmt: skip
        acc, total, top = _attend(
            acc, total, top, q, keys_ptr, values, stride, middle, end, low, high, scale, cap, bias_ptr, rows, reach,
            relative, HEAD_DIM, BLOCK_N, HAS_CAP, HAS_BIAS, RELATIVE, SPAN, False, False,
        )  # fmt: skip
        acc, total, top = _attend(
            acc, total, top, q, keys_ptr, values, stride, end, last, low, high, scale, cap, bias_ptr, rows, reach,
            relative, HEAD_DIM, BLOCK_N, HAS_CAP, HAS_BIAS, RELATIVE, SPAN, True, False,
        )  # fmt: skip
    return acc, total


def attention(
    qkv: torch.Tensor,
    tile_list: torch.Tensor,
    cu_seqlens: torch.Tensor,
    *,
    rows: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    scale: float,
    causal: bool,
    window: int | None,
    wanted: torch.Tensor | None = None,
    prefix: torch.Tensor | None = None,
    softcap: float | None = None,
    distance_bias: torch.Tensor | None = None,
    relative: Relative | None = None,
    seen_lens: torch.Tensor | None = None,
) -> torch.Tensor:
    """qkv [T, (num_heads + 2 * num_kv_heads) * head_dim] -> [T, or rows of `wanted`, num_heads * head_dim].

    tile_list  [n * FIELDS] of `tiles`, or of `wanted_tiles` where `wanted` is given
    rows       queries of a tile
    distance_bias  [num_heads, 2 * reach - 1]
    relative   not with a prefix
    seen_lens  [sequences]
    prefix     [tokens, 2 * num_kv_heads * head_dim]: keys and values of `prefix_sources`, end to end
    """
    assert relative is None or prefix is None, "a prefix does not see what follows, nor distances"
    num_rows = len(qkv) if wanted is None else len(wanted)
    out = torch.empty(num_rows, num_heads * head_dim, dtype=qkv.dtype, device=qkv.device)
    tables, relative_reach = as_rows(relative or Relative(None, None), num_heads * head_dim)
    kinds = _KINDS[tables[0] is not None, tables[1] is not None]
    block_d = max(triton.next_power_of_2(head_dim), 16)
    choose = relative_config_of if kinds else partial(config_of, biased=distance_bias is not None)
    config = choose(rows, block_d, qkv.element_size(), shared_memory(qkv.device), is_hip())
    parts = rows // config.block_m
    log2_e = 1.4426950408889634
    scale, cap = (scale * log2_e, 0.0) if softcap is None else (scale / softcap, softcap * log2_e)
    # What a kernel is without, some tensor stands for.
    before, bias, keys, queries = (qkv if x is None else x for x in (prefix, distance_bias, *tables))
    seen, places = (cu_seqlens if x is None else x for x in (seen_lens, wanted))
    attention_kernel[len(tile_list) // tiles.FIELDS * num_heads * parts,](
        out, qkv, before, tile_list, cu_seqlens, seen, places, bias, keys, queries, qkv.stride(0),
        0 if distance_bias is None else reach_of(distance_bias.shape, num_heads), relative_reach, scale, cap,
        num_heads, num_kv_heads, head_dim, causal, window or 0, prefix is not None, seen_lens is not None,
        wanted is not None, softcap is not None, distance_bias is not None, kinds,
        span_of(config, wanted is not None) if kinds else 0, parts, config.block_m, config.block_n, block_d,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    return out
