"""8-bit floats (e4m3) by the row: what `--quantization fp8` means, and kernels that make such rows where they arise.

A row of activations and a row of a weight have a scale each, the largest magnitude becoming 448; products are summed in
fp32 and multiplied by both scales. Equal the torch functions here, which run anywhere.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from rtp_llm.ops import Norm
from rtp_llm.ops.torch_ops import ACTIVATION
from rtp_llm.ops.triton_gated import activated
from rtp_llm.ops.triton_norm import normalized, shape_of

LARGEST = 448.0  # of e4m3
_LARGEST = tl.constexpr(LARGEST)
_LEAST = tl.constexpr(1e-12)
# What torch._scaled_mm asks of rows and columns of a weight.
MULTIPLE = 16


@dataclass(frozen=True, slots=True)
class Rows8:
    """x ~ scales * values: values [T, K] in e4m3, scales [T, 1] in fp32; `wide` is x itself where it was made too."""

    values: torch.Tensor
    scales: torch.Tensor
    wide: torch.Tensor | None
    dtype: torch.dtype

    def widened(self) -> torch.Tensor:
        """As a tensor of the layers' dtype."""
        return (self.values.float() * self.scales).to(self.dtype) if self.wide is None else self.wide


@dataclass(frozen=True, slots=True)
class Matrix8:
    """w ~ scales * values: values [N, K] in e4m3, scales [N, 1] in fp32."""

    values: torch.Tensor
    scales: torch.Tensor


def quantize(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[M, K] -> e4m3 [M, K] and fp32 scales [M, 1]; NaN and infinity make their row's scale NaN."""
    x32 = x.float()
    largest = x32.abs().amax(dim=1, keepdim=True)
    scales = torch.where(torch.isfinite(largest), largest.clamp(min=1e-12) / LARGEST, torch.nan)
    return (x32 / scales).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scales


def rows_in_torch(x: torch.Tensor, activation: str = "", *, gated: bool = False) -> Rows8:
    """`rows` without a kernel."""
    dtype, x = x.dtype, x.float()
    gate, up = x.chunk(2, dim=1) if gated else (x, None)
    gate = ACTIVATION[activation](gate) if activation else gate
    return Rows8(*quantize(gate if up is None else gate * up), None, dtype)


def product(x: Rows8, weight: Matrix8, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """x @ weight.T + bias -> [T, N] in `dtype`; summed in fp32."""
    if x.values.device.type == "cuda":
        # NOTE: with scales by the row, torch's kernel takes and gives bf16 alone.
        y = torch._scaled_mm(
            x.values, weight.values.t(), scale_a=x.scales, scale_b=weight.scales.t(), out_dtype=torch.bfloat16
        )
    else:
        y = (x.values.float() @ weight.values.float().t()) * (x.scales * weight.scales.t())
    y = y if bias is None else y + bias
    return y.to(dtype)


@triton.jit
def _store_rows(values_ptr, scales_ptr, x, rows, live, offsets, mask):
    """x [ROWS, BLOCK] in fp32, zero beyond its columns."""
    largest = tl.max(tl.abs(x), axis=1)
    # tl.max may drop NaN: it is counted.
    spoilt = tl.sum(tl.where(tl.abs(x) < float("inf"), 0, 1), axis=1) > 0
    scales = tl.where(spoilt, float("nan"), tl.maximum(largest, _LEAST) / _LARGEST)
    y = tl.minimum(tl.maximum(x / scales[:, None], -_LARGEST), _LARGEST)
    tl.store(values_ptr + offsets, y.to(values_ptr.dtype.element_ty), mask=mask)
    tl.store(scales_ptr + rows, scales, mask=live)


@triton.jit(do_not_specialize=["num_rows"])
def norm_kernel(
    values_ptr, scales_ptr, out_ptr, sum_ptr, x_ptr, residual_ptr, weight_ptr, bias_ptr, num_rows, eps,
    size: tl.constexpr, RMS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, STORES_SUM: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """rtp_llm.ops.triton_norm.norm_kernel, whose result is stored in 8 bits too."""
    rows, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    live = rows < num_rows
    mask = live[:, None] & (columns < size)[None, :]
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
    _store_rows(values_ptr, scales_ptr, y, rows, live, offsets, mask)


@triton.jit(do_not_specialize=["num_rows"])
def rows_kernel(
    values_ptr, scales_ptr, x_ptr, num_rows, size: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """activation(x), ACTIVATION "": x itself, or, GATED, activation(x[:, :size]) * x[:, size:], in 8 bits."""
    rows, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    live = rows < num_rows
    mask = live[:, None] & (columns < size)[None, :]
    stride: tl.constexpr = 2 * size if GATED else size
    at = x_ptr + rows[:, None].to(tl.int64) * stride + columns[None, :]
    x = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    if ACTIVATION != "":
        x = activated(x, ACTIVATION)
    if GATED:
        x = x * tl.load(at + size, mask=mask, other=0.0).to(tl.float32)
    offsets = rows[:, None].to(tl.int64) * size + columns[None, :]
    _store_rows(values_ptr, scales_ptr, tl.where(mask, x, 0.0), rows, live, offsets, mask)


def _empty_rows(num_rows: int, size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.empty(num_rows, size, dtype=torch.float8_e4m3fn, device=device)
    return values, torch.empty(num_rows, 1, dtype=torch.float32, device=device)


def norm(
    x: torch.Tensor, norm: Norm, residual: torch.Tensor | None, *, stores_sum: bool
) -> tuple[Rows8, torch.Tensor | None]:
    """norm(x + residual) [T, H] in 8 bits and as it is, and the sum where it is wanted."""
    num_rows, size = x.shape
    values, scales = _empty_rows(num_rows, size, x.device)
    out, summed = torch.empty_like(x), torch.empty_like(x) if stores_sum else None
    shape: dict[str, Any] = shape_of(size)
    norm_kernel[(triton.cdiv(num_rows, shape["ROWS"]),)](
        values, scales, out, out if summed is None else summed, x, x if residual is None else residual, norm.weight,
        norm.weight if norm.bias is None else norm.bias, num_rows, norm.eps, size, norm.kind == "rms",
        norm.bias is not None, residual is not None, stores_sum, **shape,
    )  # fmt: skip
    return Rows8(values, scales, out, x.dtype), summed


def rows(x: torch.Tensor, activation: str = "", *, gated: bool = False) -> Rows8:
    """activation(x) or, gated, activation(x[:, :N]) * x[:, N:], in 8 bits alone."""
    num_rows, size = x.shape[0], x.shape[1] // (2 if gated else 1)
    values, scales = _empty_rows(num_rows, size, x.device)
    shape: dict[str, Any] = shape_of(size)
    rows_kernel[(triton.cdiv(num_rows, shape["ROWS"]),)](values, scales, x, num_rows, size, activation, gated, **shape)
    return Rows8(values, scales, None, x.dtype)
