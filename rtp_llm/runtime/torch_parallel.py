"""Tensor parallel: several processes hold a part of the model each and work on every batch together.

Rank 0 has the engine; it announces each batch, in the order in which it computes them, and the others follow. All run
the same ops; where a weight is one of several parts of a sum, `linear` adds up over the ranks. A rank that ends, or
does not answer in time, is the end of all: nothing waits for ever.
"""

import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.distributed as dist

from rtp_llm.checkpoint import TensorSource
from rtp_llm.core import Batch, Int32Array
from rtp_llm.errors import DeviceLost
from rtp_llm.models import Model, load_model
from rtp_llm.ops import Tensor, Weight
from rtp_llm.ops.torch_ops import TorchOps
from rtp_llm.runtime.rank_weights import RankSource, config_of_rank
from rtp_llm.runtime.ranks import Ranks
from rtp_llm.runtime.torch_device import Device, Event
from rtp_llm.runtime.torch_slot import Slot

# The slowest a sum over the ranks may be; a follower's wait for the next batch has no limit.
_TIMEOUT = timedelta(seconds=120)
_NO_TIMEOUT = timedelta(days=365)
_ARRAYS = (
    "input_ids", "position_ids", "token_type_ids", "cu_seqlens", "prompt_lens", "prefix_of", "seen_lens", "wanted"
)  # fmt: skip
_ABSENT, _END = -1, -2


class Group:
    """The processes: one group for sums on the devices, one on the host for announcements."""

    def __init__(self, rank: int, size: int, rendezvous: str, device: torch.device) -> None:
        # The ranks are on one machine: they meet over its loopback, whatever its name resolves to.
        if any(name == "lo" for _, name in socket.if_nameindex()):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        self._is_nccl = device.type == "cuda"
        dist.init_process_group(
            "nccl" if self._is_nccl else "gloo",
            init_method=f"file://{rendezvous}",
            rank=rank,
            world_size=size,
            timeout=_TIMEOUT,
        )
        self._announcements = dist.new_group(backend="gloo", timeout=_NO_TIMEOUT)

    def add_up(self, x: torch.Tensor) -> None:
        """Replace x by its sum over the ranks."""
        dist.all_reduce(x)

    def announce(self, batch: Batch | None) -> None:
        """Tell the followers the next batch, as it is before `Model.prepare`; None: that there is none."""
        arrays = [] if batch is None else [getattr(batch, name) for name in _ARRAYS]
        sizes = [_ABSENT if array is None else len(array) for array in arrays] or [_END] * len(_ARRAYS)
        header = torch.tensor([*sizes, 0 if batch is None else batch.max_seqlen], dtype=torch.int64)
        dist.broadcast(header, 0, group=self._announcements)
        if batch is not None:
            joined = np.concatenate([array for array in arrays if array is not None])
            dist.broadcast(torch.from_numpy(joined), 0, group=self._announcements)

    def next_batch(self) -> Batch | None:
        """What rank 0 announces; RuntimeError when it has ended."""
        header = torch.empty(len(_ARRAYS) + 1, dtype=torch.int64)
        dist.broadcast(header, 0, group=self._announcements)
        *sizes, max_seqlen = header.tolist()
        if sizes[0] == _END:
            return None
        joined = torch.empty(sum(size for size in sizes if size != _ABSENT), dtype=torch.int32)
        dist.broadcast(joined, 0, group=self._announcements)
        return Batch(**_split(joined.numpy(), sizes), max_seqlen=max_seqlen)

    def close(self, *, lost: bool = False) -> None:
        """Leave the groups; `lost`: a sum on the devices may wait for ever, and is left to the end of the process."""
        if not (lost and self._is_nccl):
            dist.destroy_process_group()


def _split(joined: Int32Array, sizes: Sequence[int]) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    start = 0
    for name, size in zip(_ARRAYS, sizes, strict=True):
        if size == _ABSENT:
            arrays[name] = None
        else:
            arrays[name] = joined[start : start + size]
            start += size
    return arrays


class Leader:
    """Rank 0's side: announces what it computes, and ends the others."""

    def __init__(self, group: Group, ranks: Ranks) -> None:
        self._group, self._ranks = group, ranks

    def announce(self, batch: Batch) -> None:
        """The others compute it too, from now on."""
        self._group.announce(batch)

    def on_lost(self, call: Callable[[DeviceLost], None]) -> None:
        """Be told when one of the others has ended."""
        self._ranks.on_lost(call)

    def close(self) -> None:
        """End the others."""
        with suppress(RuntimeError):  # of one that has ended
            if not self._ranks.lost:
                self._group.announce(None)
            self._group.close(lost=self._ranks.lost)
        self._ranks.close()


class Part(NamedTuple):
    """Columns of a weight: what it makes of a rank's columns is a part of the sum."""

    weight: Weight


class RankOps:
    """Ops of one rank: as they are, but that `linear` adds up over the ranks where the weight is a `Part`."""

    def __init__(self, ops: TorchOps, group: Group) -> None:
        self._ops, self._group = ops, group

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def linear(
        self,
        x: Tensor,
        weight: Weight,
        bias: Tensor | None = None,
        activation: str | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        if not isinstance(weight, Part):
            return self._ops.linear(x, weight, bias, activation, residual)
        assert activation is None, "an activation of a part is not a part of the activation"
        y = self._ops.linear(x, weight.weight)
        self._group.add_up(y)
        y = y if bias is None else y + bias
        return y if residual is None else self._ops.plus(y, residual)


def load_rank(
    model_type: str, hf: dict[str, Any], source: TensorSource, ops: TorchOps, group: Group, rank: int, size: int
) -> tuple[Model, TorchOps]:
    """This rank's part of the model, and the ops that run it."""
    model: Any = load_model(model_type, config_of_rank(model_type, hf, size), RankSource(source, rank, size), ops)
    model.layers = [replace(layer, out=Part(layer.out), down=Part(layer.down)) for layer in model.layers]
    return model, cast(TorchOps, RankOps(ops, group))


def follow(model: Model, ops: TorchOps, device: Device, group: Group) -> None:
    """Compute what rank 0 announces until it says that there is no more; the rows are rank 0's to read."""
    flights: list[tuple[Slot, Event | None]] = [(Slot(device), None) for _ in range(2)]
    with torch.inference_mode():
        while (batch := group.next_batch()) is not None:
            slot, done = flights.pop(0)
            if done is not None:
                done.synchronize()
            packed = model.prepare(batch)
            staged = slot.stage(ops, [packed])
            with device.computing():
                device.wait(staged.ready)
                placed = ops.place(packed, staged.arrays[0], staged.offsets[0], staged.joined)
                hidden_states = model(ops, placed)
                # One number, for the event that comes after it.
                done = device.copy_out(slot.output(1), hidden_states.reshape(-1)[:1].float(), in_order=True)
            flights.append((slot, done))
