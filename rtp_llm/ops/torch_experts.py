"""A mixture of experts in torch: the rows of an expert are gathered and multiplied together."""

from collections.abc import Callable
from typing import Any

import torch

from rtp_llm.ops import Experts


def route(x: torch.Tensor, experts: Experts) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, H] -> the experts of each row, ascending, and their probabilities in fp32, [T, top_k] both."""
    scores = x.float() @ experts.router.float().t()
    chosen = (-scores).argsort(dim=1, stable=True)[:, : experts.top_k].sort(dim=1).values
    return chosen, scores.softmax(-1).gather(1, chosen)


def mix(x: torch.Tensor, experts: Experts, linear: Callable[..., Any]) -> torch.Tensor:
    """`Ops.experts` of x [T, H] without a residual, by `Ops.linear`; routed and added up in fp32."""
    chosen, weights = route(x, experts)
    grouped = chosen.flatten().argsort(stable=True)
    counts = chosen.flatten().bincount(minlength=len(experts.up)).tolist()
    parts = x.new_empty(grouped.shape[0], x.shape[1])
    groups = torch.split(grouped, counts)
    for places, up, down in zip(groups, experts.up, experts.down, strict=True):
        if len(places):
            rows = x[places.div(experts.top_k, rounding_mode="floor")]
            parts[places] = linear(linear(rows, up, None, experts.activation), down)
    by_row = parts.view(*chosen.shape, x.shape[1]).float() * weights[:, :, None]
    total = by_row[:, 0]
    for place in range(1, experts.top_k):
        total = total + by_row[:, place]
    total = total if experts.bias is None else total + experts.bias
    return total.to(x.dtype)
