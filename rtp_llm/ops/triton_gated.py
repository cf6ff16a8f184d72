"""activation(gate) * up of the two halves of a row, computed in fp32. Equals TorchOps.gated."""

import torch
import triton
import triton.language as tl

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "sigmoid")
_BLOCK = 1024


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    """x in fp32."""
    if ACTIVATION == "silu":
        return x * tl.sigmoid(x)
    elif ACTIVATION == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # 0.5 * (1 + tanh(z)) is sigmoid(2 * z).
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif ACTIVATION == "relu":
        return tl.where(x < 0, 0.0, x)
    else:
        tl.static_assert(ACTIVATION == "sigmoid")
        return tl.sigmoid(x)


@triton.jit
def gated_kernel(out_ptr, x_ptr, size, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    """x [T, 2 * size] -> out [T, size]."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < size
    gate = tl.load(x_ptr + row * 2 * size + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * 2 * size + size + columns, mask=mask, other=0.0)
    # As torch, which leaves the activation in x's dtype before it multiplies.
    y = activated(gate, ACTIVATION).to(x_ptr.dtype.element_ty).to(tl.float32) * up.to(tl.float32)
    tl.store(out_ptr + row * size + columns, y.to(out_ptr.dtype.element_ty), mask=mask)


def gated(x: torch.Tensor, activation: str) -> torch.Tensor:
    """[T, 2 * N] -> [T, N]; one of ACTIVATIONS."""
    num_rows, size = x.shape[0], x.shape[1] // 2
    out = torch.empty(num_rows, size, dtype=x.dtype, device=x.device)
    gated_kernel[(num_rows, triton.cdiv(size, _BLOCK))](out, x, size, activation, _BLOCK, num_warps=4)
    return out
