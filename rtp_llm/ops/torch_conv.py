"""LFM2's gated short convolution in torch: what TorchOps and TritonOps share."""

from typing import Any

import torch


def convolve(x: torch.Tensor, weight: torch.Tensor, batch: Any, *, causal: bool, masked: bool) -> torch.Tensor:
    """`Ops.short_conv`; nothing waits for the device, nor depends on its numbers in shape."""
    assert batch.prefix_of is None, "a convolution does not see the tokens of a prefix"
    before, after, values = x.chunk(3, dim=-1)
    inputs, y = before * values, torch.zeros(values.shape, device=x.device)
    row, starts, ends = torch.arange(len(x), device=x.device), batch.cu_seqlens[:-1], batch.cu_seqlens[1:]
    segment = torch.searchsorted(ends.long(), row, right=True)
    ends = starts + batch.seen_lens if masked and batch.seen_lens is not None else ends
    start, end = starts[segment], ends[segment]
    first = 1 - len(weight) if causal else -(len(weight) // 2)
    for shift, taps in enumerate(weight, first):
        place = row + shift
        inside = (place >= start) & (place < end) & (row < end)
        read = inputs[place.clamp(0, len(x) - 1)].float() * taps.float()
        y = y + read.masked_fill(~inside[:, None], 0.0)
    return after * y.to(x.dtype)
