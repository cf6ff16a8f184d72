"""A device without a GPU: copies that happen late, memory that ends, graphs that cannot be captured; graph-safe ops."""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
from rtp_llm.ops.torch_ops import TorchOps  # noqa: E402
from rtp_llm.runtime.torch_device import CpuDevice, Event, Recorded  # noqa: E402


class LateEvent:
    """Its copy is made when somebody waits for it, and not before."""

    def __init__(self, copy: Callable[[], Any]) -> None:
        self._copy: Callable[[], Any] | None = copy
        self._lock = threading.Lock()

    def synchronize(self) -> None:
        with self._lock:
            copy, self._copy = self._copy, None
        if copy is not None:
            copy()


class StandIn(CpuDevice):
    """Whoever reads what has not been waited for reads poison.

    memory     int32s of a batch that fit; more is out of memory
    captures   whether graphs can be captured
    gain       how many times as fast they are
    in_flight  the most batches that were computing or waiting at once
    """

    num_slots = 2

    def __init__(self) -> None:
        super().__init__()
        self.memory = 1 << 30
        self.captures = True
        self.gain = 2.0
        self.failed = False
        self.in_flight = self.most_in_flight = self.caches_emptied = 0

    def copy_in(self, target: Any, source: Any) -> Event:
        if len(source) > self.memory:
            raise torch.OutOfMemoryError("no more")
        target.fill_(-(10**9))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        return LateEvent(lambda: target.copy_(source))

    def copy_out(self, target: Any, source: Any, *, in_order: bool) -> Event:
        self.in_flight -= 1
        if in_order:
            target.copy_(source)
            return LateEvent(lambda: None)
        target.fill_(torch.nan)
        return LateEvent(lambda: target.copy_(source))

    def capture(self, compute: Callable[[], Any]) -> Recorded:
        if not self.captures:
            try:
                raise RuntimeError("operation not permitted when stream is capturing")
            finally:  # as torch does, which ends the recording
                raise RuntimeError("operation failed due to a previous error during capture")
        return super().capture(compute)._replace(gain=self.gain)

    def empty_cache(self) -> None:
        self.caches_emptied += 1

    def synchronize(self) -> None:
        assert self.launch.locked(), "another thread may record a graph"
        if self.failed:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        with suppress(ValueError):
            self.in_flight = 0


class MaskedOps(TorchOps):
    """Attention as one masked product over the whole batch: slow, and without any number of the host's."""

    graph_safe = True

    def attention(
        self,
        qkv: Any,
        batch: Any,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        scale: float,
        causal: bool = False,
        window: int | None = None,
        rows: Any | None = None,
        kept: Sequence[Any] = (),
        softcap: float | None = None,
        distance_bias: Any | None = None,
        relative: Any | None = None,
    ) -> Any:
        assert window is None and not kept and softcap is None and distance_bias is None and relative is None
        row = torch.arange(len(qkv))
        sequence = torch.searchsorted(batch.cu_seqlens[1:], row.int(), right=True)
        visible = sequence[:, None] == sequence[None]
        if causal:
            visible &= row[:, None] >= row[None]
        if batch.seen_lens is not None:
            visible &= (row - batch.cu_seqlens[sequence] < batch.seen_lens[sequence])[None]
        heads = qkv.view(len(qkv), -1, head_dim).transpose(0, 1)[None]
        q, k, v = torch.split(heads, [num_heads, num_kv_heads, num_kv_heads], dim=1)
        context = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, scale=scale, enable_gqa=num_heads != num_kv_heads
        )
        context = context[0].transpose(0, 1).reshape(len(qkv), -1)
        return context if rows is None else context[rows]
