"""The norm of each query and key head and its rotation, in place in the fused queries, keys and values.

Equals TorchOps.rotary.
"""

import torch
import triton
import triton.language as tl

from rtp_llm.ops import Norm

_HEADS = 8  # heads of one token that a program turns


@triton.jit
def rotary_kernel(
    qkv_ptr, cos_sin_ptr, q_weight, k_weight, stride, q_eps, k_eps,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HALF: tl.constexpr, NORMS_Q: tl.constexpr,
    NORMS_K: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """qkv [T, stride], cos_sin [T, 2 * HALF]; statistics and angles in fp32."""
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    d = tl.arange(0, BLOCK)
    inside = d < HALF
    mask = (heads < NUM_HEADS + NUM_KV_HEADS)[:, None] & inside[None, :]
    at = qkv_ptr + token * stride + heads[:, None] * (2 * HALF) + d[None, :]
    first = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=mask, other=0.0).to(tl.float32)
    is_query = heads < NUM_HEADS
    if NORMS_Q or NORMS_K:
        eps = tl.where(is_query, q_eps, k_eps)
        inverse = 1.0 / tl.sqrt((tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)) / (2 * HALF) + eps)
        normed = tl.where(is_query, NORMS_Q, NORMS_K)[:, None]
        first = tl.where(normed, _scaled(first, inverse, is_query, q_weight, k_weight, d, inside), first)
        second = tl.where(
            normed, _scaled(second, inverse, is_query, q_weight + HALF, k_weight + HALF, d, inside), second
        )
    cos = tl.load(cos_sin_ptr + token * (2 * HALF) + d, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(cos_sin_ptr + token * (2 * HALF) + HALF + d, mask=inside, other=0.0).to(tl.float32)[None, :]
    tl.store(at, (first * cos - second * sin).to(qkv_ptr.dtype.element_ty), mask=mask)
    tl.store(at + HALF, (second * cos + first * sin).to(qkv_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _scaled(x, inverse, is_query, q_weight, k_weight, d, inside):
    q = tl.load(q_weight + d, mask=inside, other=0.0).to(tl.float32)
    k = tl.load(k_weight + d, mask=inside, other=0.0).to(tl.float32)
    return x * inverse[:, None] * tl.where(is_query[:, None], q[None, :], k[None, :])


def rotary(
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    q_norm: Norm | None,
    k_norm: Norm | None,
) -> torch.Tensor:
    """qkv [T, (num_heads + 2 * num_kv_heads) * head_dim] itself, its queries and keys normed and turned."""
    grid = (len(qkv), triton.cdiv(num_heads + num_kv_heads, _HEADS))
    rotary_kernel[grid](
        qkv, cos_sin, qkv if q_norm is None else q_norm.weight, qkv if k_norm is None else k_norm.weight, qkv.stride(0),
        1.0 if q_norm is None else q_norm.eps, 1.0 if k_norm is None else k_norm.eps, num_heads, num_kv_heads,
        head_dim // 2, q_norm is not None, k_norm is not None, _HEADS, triton.next_power_of_2(head_dim // 2),
        num_warps=4 if head_dim > 64 else 2,
    )  # fmt: skip
    return qkv
