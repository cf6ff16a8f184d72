"""A mixture of experts as commands: rows choose, are grouped by expert, multiplied group by group, and added up."""

from collections.abc import Sequence

import numpy as np

from rtp_llm.ops import Experts, Weight
from rtp_llm.ops.native_library import GroupedWeight, Int8Weight, PackedWeight
from rtp_llm.ops.native_stream import EXPERT_PRODUCTS, FUSED, GATHER, GROUP_ROWS, MIX_EXPERTS, ROUTE, Stream, Tensor

# A routing: its tensor, rows, experts, experts a row.
_Routing = tuple[int, int, int, int]


def record_experts(stream: Stream, x: Tensor, experts: Experts, residual: Tensor | None) -> Tensor:
    """`Ops.experts`, with an activation that is fused."""
    (num_rows, size), (num_experts, columns) = x.shape, experts.router.shape
    assert columns == size, f"x is {x.shape}, the router {experts.router.shape}"
    assert residual is None or residual.shape == x.shape, f"residual is {residual.shape}, x {x.shape}"
    given = len(experts.up), len(experts.down)
    assert given == (num_experts, num_experts), f"{given} weights, the router has {num_experts} experts"
    assert 1 <= experts.top_k <= num_experts, f"{experts.top_k} of {num_experts} experts"
    assert experts.bias is None or experts.bias.shape == (size,), f"bias is {experts.bias.shape}"
    y = stream.new(num_rows, size)
    if num_rows == 0:
        return y
    counts, num_pairs = (num_rows, num_experts, experts.top_k), num_rows * experts.top_k
    # Scores; of each pair its weight, its expert, its place and the row that is there; where experts begin.
    memory = stream.new(1, num_rows * num_experts + 4 * num_pairs + num_experts + 1)
    stream.record(ROUTE(
        memory.reference, memory.shape[1], *counts, stream.operand(x), stream.operand(experts.router), size
    ))  # fmt: skip
    stream.record(GROUP_ROWS(memory.reference, 0, *counts))
    routing = memory.reference, *counts
    parts = _gathered(stream, x, routing)
    parts = _products(stream, parts, experts.up, experts.activation, routing)
    parts = _products(stream, parts, experts.down, None, routing)
    stream.record(MIX_EXPERTS(
        y.reference, num_rows * size, parts.reference, stream.operand(experts.bias), stream.operand(residual), size,
        *routing,
    ))  # fmt: skip
    return y


def _gathered(stream: Stream, x: Tensor, routing: _Routing) -> Tensor:
    """The rows of x at the places of their pairs."""
    size = x.shape[1]
    y = stream.new(routing[1] * routing[3], size)
    stream.record(GATHER(y.reference, y.shape[0] * size, stream.operand(x), size, *routing))
    return y


def _products(
    stream: Stream, x: Tensor, weights: Sequence[Weight], activation: str | None, routing: _Routing
) -> Tensor:
    """activation(x @ weight.T), of each row with the weight of the expert whose place it is at."""
    shapes = {(*_kind(weight), weight.out_features, weight.in_features) for weight in weights}
    (kind, parts, n, k), *others = shapes
    assert not others and x.shape[1] == k, f"x is {x.shape}, the weights {shapes}"
    addresses = np.array([weight.address + (kind == 0 and weight.is_bf16) for weight in weights], np.int64)
    stream.kept += (*weights, addresses)
    y = stream.new(x.shape[0], n)
    rows = stream.quantized(x) if kind == 1 else x
    stream.record(EXPERT_PRODUCTS(
        y.reference, x.shape[0] * n, kind, parts, rows.reference, addresses.ctypes.data, n, k, FUSED[activation],
        *routing,
    ))  # fmt: skip
    return y


def _kind(weight: PackedWeight | Int8Weight | GroupedWeight) -> tuple[int, int]:
    """As the kernels count them, and the parts that are multiplied."""
    if isinstance(weight, GroupedWeight):
        return weight.bits, weight.parts
    return (1, 0) if isinstance(weight, Int8Weight) else (0, weight.parts)
