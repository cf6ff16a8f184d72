"""A mixture of experts whose rows are counted on the device, and never on the host: nothing waits for them, and a CUDA
graph serves any choice. Equals torch_experts.mix.

Rows are sorted by expert, and a tile is some of one expert's. How many tiles there are is not known where kernels are
launched: there are programs for the most that so many rows can need, and those without a tile end at once.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from rtp_llm.ops import Experts
from rtp_llm.ops.torch_experts import route
from rtp_llm.ops.triton_gated import activated
from rtp_llm.ops.triton_launch import shared_memory
from rtp_llm.ops.triton_norm import shape_of

# int64s of a tile: its expert, its first row in the order of experts, the one after its last.
FIELDS = 3
_FIELDS = tl.constexpr(FIELDS)
_MANY_ROWS = 4096  # from here on experts have enough for large tiles


class Config(NamedTuple):
    """How the products are compiled: rows, columns and numbers between that are multiplied at once, warps, stages."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def config_of(num_rows: int, itemsize: int, memory: int) -> Config:
    """For so many rows of all experts together, and so many bytes of shared memory."""
    block_m, block_n, block_k, stages = 128 if num_rows >= _MANY_ROWS else 32, 128, 128 // itemsize, 4
    while stages > 1 and stages * (block_m + block_n) * block_k * itemsize > memory:
        stages -= 1
    return Config(block_m, block_n, block_k, 8 if block_m == 128 else 4, stages)


@triton.jit
def product_kernel(
    out_ptr, x_ptr, addresses, places_ptr, tiles_ptr,
    N: tl.constexpr, K: tl.constexpr, TOP_K: tl.constexpr, GATHERS: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Each sorted row times its expert's weight [N, K], which stands at the expert's address.

    GATHERS: x has a row for TOP_K places, and out is sorted; else x is, and out has a row for each place.
    """
    BLOCKS: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    EXACT: tl.constexpr = "ieee" if x_ptr.dtype.element_ty == tl.float32 else "tf32"
    tile = tiles_ptr + tl.program_id(0) // BLOCKS * _FIELDS
    first, last = tl.load(tile + 1), tl.load(tile + 2)
    if first < last:
        sorted_rows = first + tl.arange(0, BLOCK_M)
        live = sorted_rows < last
        places = tl.load(places_ptr + sorted_rows, mask=live, other=0)
        rows = places // TOP_K if GATHERS else sorted_rows
        columns = tl.program_id(0) % BLOCKS * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = columns < N
        weight = tl.load(addresses + tl.load(tile)).to(tl.pointer_type(x_ptr.dtype.element_ty))
        k = tl.arange(0, BLOCK_K)
        x_block = x_ptr + rows[:, None] * K + k[None, :]
        w_block = weight + columns[:, None] * K + k[None, :]
        # NOTE: behind a number that is loaded Triton sees no aligned addresses any more.
        if K % 8 == 0:
            w_block = tl.max_contiguous(tl.multiple_of(w_block, (1, 16)), (1, 8))
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for start in range(0, K, BLOCK_K):
            if K % BLOCK_K == 0:
                x = tl.load(x_block, mask=live[:, None], other=0.0)
                w = tl.load(w_block, mask=inside[:, None], other=0.0)
            else:
                x = tl.load(x_block, mask=live[:, None] & (k < K - start)[None, :], other=0.0)
                w = tl.load(w_block, mask=inside[:, None] & (k < K - start)[None, :], other=0.0)
            acc = tl.dot(x, tl.trans(w), acc, input_precision=EXACT)
            x_block += BLOCK_K
            w_block += BLOCK_K
        if ACTIVATION != "":
            acc = activated(acc, ACTIVATION)
        targets = sorted_rows if GATHERS else places
        to = out_ptr + targets[:, None] * N + columns[None, :]
        tl.store(to, acc.to(out_ptr.dtype.element_ty), mask=live[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["num_rows"])
def sum_kernel(
    out_ptr, parts_ptr, weights_ptr, bias_ptr, num_rows,
    size: tl.constexpr, TOP_K: tl.constexpr, HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out [T, size]: the TOP_K parts of each row, weighted, added up in the order of the experts, and the bias."""
    rows, columns = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64), tl.arange(0, BLOCK)
    live, inside = rows < num_rows, columns < size
    mask = live[:, None] & inside[None, :]
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for place in tl.static_range(TOP_K):
        weight = tl.load(weights_ptr + rows * TOP_K + place, mask=live, other=0.0)
        part = tl.load(parts_ptr + (rows * TOP_K + place)[:, None] * size + columns[None, :], mask=mask, other=0.0)
        total += part.to(tl.float32) * weight[:, None]
    if HAS_BIAS:
        total += tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    tl.store(out_ptr + rows[:, None] * size + columns[None, :], total.to(out_ptr.dtype.element_ty), mask=mask)


def tiles_of(chosen: torch.Tensor, num_experts: int, block_m: int) -> tuple[torch.Tensor, torch.Tensor]:
    """chosen [T, top_k] -> its places in the order of experts [T * top_k], tiles [n, FIELDS]; int64 both."""
    flat = chosen.flatten()
    counts = (flat[:, None] == torch.arange(num_experts, device=flat.device)).sum(0)
    ends, needed = counts.cumsum(0), (counts + (block_m - 1)) // block_m
    tile_ends = needed.cumsum(0)
    tile = torch.arange(len(flat) // block_m + num_experts, device=flat.device)
    found = torch.searchsorted(tile_ends, tile, right=True)
    expert = found.clamp(max=num_experts - 1)
    first = (ends - counts)[expert] + (tile - (tile_ends - needed)[expert]) * block_m
    last = torch.where(found < num_experts, (first + block_m).minimum(ends[expert]), first)
    return flat.argsort(stable=True), torch.stack([expert, first, last], dim=1)


def fits(x: torch.Tensor, experts: Experts) -> bool:
    """Whether the kernels take these weights: tensors of x's dtype, without gaps."""
    weights = (*experts.up, *experts.down)
    return all(isinstance(one, torch.Tensor) and one.dtype == x.dtype and one.is_contiguous() for one in weights)


def mix(
    x: torch.Tensor, experts: Experts, activation: str, addresses: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """`Ops.experts` of x [T, H] without a residual; one of triton_gated.ACTIVATIONS.

    addresses  `addresses_of` the weights
    """
    x = x.contiguous()
    (num_rows, size), wide, top_k = x.shape, len(experts.up[0]), experts.top_k
    chosen, weights = route(x, experts)
    config = config_of(num_rows * top_k, x.element_size(), shared_memory(x.device))
    places, tiles = tiles_of(chosen, len(experts.up), config.block_m)
    between, parts, out = x.new_empty(len(places), wide), x.new_empty(len(places), size), torch.empty_like(x)
    blocks: dict[str, Any] = {
        "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k,
        "num_warps": config.num_warps, "num_stages": config.num_stages,
    }  # fmt: skip
    for to, rows, table, n, k, gathers in (
        (between, x, addresses[0], wide, size, True), (parts, between, addresses[1], size, wide, False),
    ):  # fmt: skip
        product_kernel[(len(tiles) * triton.cdiv(n, config.block_n),)](
            to, rows, table, places, tiles, n, k, top_k, gathers, activation if gathers else "", **blocks
        )
    shape: dict[str, Any] = shape_of(size)
    sum_kernel[(triton.cdiv(num_rows, shape["ROWS"]),)](
        out, parts, weights, weights if experts.bias is None else experts.bias, num_rows, size, top_k,
        experts.bias is not None, **shape,
    )  # fmt: skip
    return out


def addresses_of(experts: Experts) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the weights of each expert stand, [E] int64 on their device, for `up` and for `down`."""
    device = experts.router.device
    up, down = (torch.tensor([w.data_ptr() for w in weights], device=device) for weights in (experts.up, experts.down))
    return up, down
