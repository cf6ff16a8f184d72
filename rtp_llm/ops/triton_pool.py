"""Pooling of packed sequences and L2 normalisation, in fp32. Equal TorchOps.pool, TorchOps.l2_normalize."""

import torch
import triton
import triton.language as tl

from rtp_llm.ops import PoolMode

_ROWS, _COLUMNS = 32, 64


@triton.jit
def pool_kernel(
    out_ptr, x_ptr, cu_seqlens, prompt_lens, size, MODE: tl.constexpr, SKIPS: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """x [T, size] -> out [B, size]; one program a sequence and COLUMNS columns, rows always added in the same order."""
    seq = tl.program_id(0)
    start, end = tl.load(cu_seqlens + seq), tl.load(cu_seqlens + seq + 1)
    first = tl.minimum(start + tl.load(prompt_lens + seq), end) if SKIPS else start
    if MODE == "lasttoken":
        # Of a sequence that is all prompt no row is left, and no sum is more than 0.
        first = tl.where(first < end, end - 1, end)
    elif MODE == "cls":
        first = tl.where(first < end, first, start)
        end = first + 1
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < size
    acc = tl.full([ROWS, COLUMNS], float("-inf") if MODE == "max" else 0.0, tl.float32)
    for row in range(first, end, ROWS):
        rows = row + tl.arange(0, ROWS)
        mask = (rows < end)[:, None] & inside[None, :]
        at = x_ptr + rows[:, None].to(tl.int64) * size + columns[None, :]
        if MODE == "max":
            acc = tl.maximum(
                acc, tl.load(at, mask=mask, other=float("-inf")).to(tl.float32), propagate_nan=tl.PropagateNan.ALL
            )
        elif MODE == "weightedmean":
            acc += tl.load(at, mask=mask, other=0.0).to(tl.float32) * (rows - start + 1).to(tl.float32)[:, None]
        else:
            acc += tl.load(at, mask=mask, other=0.0).to(tl.float32)
    y = _reduced(acc, first, end, start, MODE)
    tl.store(out_ptr + seq.to(tl.int64) * size + columns, y, mask=inside)


@triton.jit
def _reduced(acc, first, end, start, MODE: tl.constexpr):
    count = (end - first).to(tl.float32)
    if MODE == "max":
        # tl.max has no say in what becomes of NaN: it is counted.
        spoilt = tl.sum(tl.where(acc == acc, 0, 1), axis=0) > 0
        y = tl.where(spoilt, float("nan"), tl.max(acc, axis=0))
        return tl.where(count > 0, y, 0.0)
    y = tl.sum(acc, axis=0)
    if MODE == "mean":
        y = y / tl.maximum(count, 1.0)
    elif MODE == "mean_sqrt_len_tokens":
        y = y / tl.sqrt(tl.maximum(count, 1.0))
    elif MODE == "weightedmean":
        low, high = (first - start).to(tl.float32), (end - start).to(tl.float32)
        y = y / tl.maximum((low + 1.0 + high) * count * 0.5, 1.0)
    return y


@triton.jit
def l2_kernel(out_ptr, x_ptr, stride, size, BLOCK: tl.constexpr):
    """Rows [size] of x [B, stride] divided by max(their norm, 1e-12)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < size
    x = tl.load(x_ptr + row * stride + columns, mask=mask, other=0.0).to(tl.float32)
    y = x / tl.maximum(tl.sqrt(tl.sum(x * x)), 1e-12)
    tl.store(out_ptr + row * size + columns, y.to(out_ptr.dtype.element_ty), mask=mask)


def pool(
    x: torch.Tensor, cu_seqlens: torch.Tensor, prompt_lens: torch.Tensor, mode: PoolMode, *, skip_prompt: bool
) -> torch.Tensor:
    """[T, H] -> [B, H] in fp32."""
    num_seqs, size = len(cu_seqlens) - 1, x.shape[1]
    out = torch.empty(num_seqs, size, dtype=torch.float32, device=x.device)
    pool_kernel[(num_seqs, triton.cdiv(size, _COLUMNS))](
        out, x, cu_seqlens, prompt_lens, size, mode, skip_prompt, _ROWS, _COLUMNS, num_warps=4
    )
    return out


def l2_normalize(x: torch.Tensor, size: int | None = None, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[B, H], its first `size` columns (Matryoshka) normalised -> [B, size] in `dtype`; the norm in fp32."""
    size = size or x.shape[1]
    out = torch.empty(len(x), size, dtype=dtype, device=x.device)
    block = triton.next_power_of_2(size)
    l2_kernel[(len(x),)](out, x, x.stride(0), size, block, num_warps=max(1, min(8, block // 256)))
    return out
