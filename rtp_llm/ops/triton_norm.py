"""LayerNorm and RMSNorm in one pass over rows that fit into registers, statistics in fp32.

What comes before the norm is read with it: a residual that is added, or rows of embedding tables. Equals TorchOps.norm,
TorchOps.embed.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from rtp_llm.ops import Norm

MAX_COLUMNS = 16384
MAX_TABLES = 3


@triton.jit
def normalized(x, columns, weight_ptr, bias_ptr, eps, size: tl.constexpr, RMS: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Rows x [ROWS, BLOCK] in fp32, zero beyond `size` columns -> normed, scaled and shifted."""
    inside = columns < size
    if not RMS:
        x = tl.where(inside[None, :], x - (tl.sum(x, axis=1) / size)[:, None], 0.0)
    x = x * (1.0 / tl.sqrt(tl.sum(x * x, axis=1) / size + eps))[:, None]
    y = x * tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        y += tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    return y


@triton.jit(do_not_specialize=["num_rows"])
def norm_kernel(
    out_ptr, sum_ptr, x_ptr, residual_ptr, weight_ptr, bias_ptr, num_rows, eps,
    size: tl.constexpr, RMS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, STORES_SUM: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out = norm(x + residual), and that sum, [num_rows, size] all."""
    rows, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    mask = (rows < num_rows)[:, None] & (columns < size)[None, :]
    offsets = rows[:, None].to(tl.int64) * size + columns[None, :]
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        x += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    if STORES_SUM:
        x = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + offsets, x, mask=mask)
        x = x.to(tl.float32)
    y = normalized(x, columns, weight_ptr, bias_ptr, eps, size, RMS, HAS_BIAS)
    tl.store(out_ptr + offsets, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def embed_kernel(
    out_ptr, table0, ids0, table1, ids1, table2, ids2, weight_ptr, bias_ptr, num_rows, eps, scale,
    size: tl.constexpr, TABLES: tl.constexpr, HAS_NORM: tl.constexpr, RMS: tl.constexpr, HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sum of one row of each table, scaled and normed, [num_rows, size]."""
    rows, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    live = rows < num_rows
    mask = live[:, None] & (columns < size)[None, :]
    x = _gathered(table0, ids0, rows, live, columns, mask, size)
    if TABLES > 1:
        x += _gathered(table1, ids1, rows, live, columns, mask, size)
    if TABLES > 2:
        x += _gathered(table2, ids2, rows, live, columns, mask, size)
    x *= scale
    if HAS_NORM:
        x = normalized(x, columns, weight_ptr, bias_ptr, eps, size, RMS, HAS_BIAS)
    offsets = rows[:, None].to(tl.int64) * size + columns[None, :]
    tl.store(out_ptr + offsets, x.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gathered(table, ids_ptr, rows, live, columns, mask, size: tl.constexpr):
    ids = tl.load(ids_ptr + rows, mask=live, other=0).to(tl.int64)
    return tl.load(table + ids[:, None] * size + columns[None, :], mask=mask, other=0.0).to(tl.float32)


def shape_of(size: int) -> dict[str, int]:
    """Rows and columns of a program, so that it has some thousand numbers, and its warps."""
    block = triton.next_power_of_2(size)
    rows = max(1, min(8, 2048 // block))
    return {"ROWS": rows, "BLOCK": block, "num_warps": max(1, min(16, rows * block // 512))}


def norm(
    x: torch.Tensor, norm: Norm, residual: torch.Tensor | None = None, *, stores_sum: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """norm(x + residual) [T, H], and the sum where it is wanted; contiguous, H <= MAX_COLUMNS."""
    out, size = torch.empty_like(x), x.shape[-1]
    summed = torch.empty_like(x) if stores_sum else None
    shape, num_rows = shape_of(size), x.numel() // size
    norm_kernel[(triton.cdiv(num_rows, shape["ROWS"]),)](
        out, out if summed is None else summed, x, x if residual is None else residual, norm.weight,
        norm.weight if norm.bias is None else norm.bias, num_rows, norm.eps, size, norm.kind == "rms",
        norm.bias is not None, residual is not None, stores_sum, **shape,
    )  # fmt: skip
    return out, summed


def embed(lookups: Sequence[tuple[torch.Tensor, Any]], norm: Norm | None, scale: float) -> torch.Tensor:
    """The tables' rows, added in fp32, scaled and normed -> [T, H]; at most MAX_TABLES, H <= MAX_COLUMNS."""
    table, ids = lookups[0]
    num_rows, size = len(ids), table.shape[1]
    out = torch.empty(num_rows, size, dtype=table.dtype, device=table.device)
    shape = shape_of(size)
    pairs = [pair for lookup in (*lookups, *[lookups[0]] * (MAX_TABLES - len(lookups))) for pair in lookup]
    weight = table if norm is None else norm.weight
    bias = weight if norm is None or norm.bias is None else norm.bias
    embed_kernel[(triton.cdiv(num_rows, shape["ROWS"]),)](
        out, *pairs, weight, bias, num_rows, 0.0 if norm is None else norm.eps, float(scale), size, len(lookups),
        norm is not None, norm is not None and norm.kind == "rms", norm is not None and norm.bias is not None, **shape,
    )  # fmt: skip
    return out
