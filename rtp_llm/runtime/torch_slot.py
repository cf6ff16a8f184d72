"""The buffers of one batch in flight: what its kernels read, in one copy to the device, and its rows, in one back."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from rtp_llm.core import Batch, FloatArray, Int32Array
from rtp_llm.ops.joined_arrays import offsets_of, write
from rtp_llm.ops.torch_ops import TorchOps
from rtp_llm.runtime.torch_device import Device, Event

_LEAST = 4096  # elements of a buffer


class Staged(NamedTuple):
    """Arrays of a batch on the device once `ready`; `joined` holds them all, the offsets are those within it."""

    joined: torch.Tensor
    arrays: Sequence[Mapping[str, Int32Array]]
    offsets: Sequence[Sequence[int]]
    ready: Event


class Slot:
    """Grows to the largest batch it has seen. Used by one batch at a time, until that batch's rows are read."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._host_in = device.host_buffer(_LEAST, torch.int32)
        self._device_in = device.copied_buffer(_LEAST)
        self._host_out = device.host_buffer(_LEAST, torch.float32)

    def stage(self, ops: TorchOps, batches: Sequence[Batch], *, fixed: bool = False) -> Staged:
        """Begin to copy all arrays of the batches, together."""
        arrays = [ops.arrays(batch, fixed=fixed) for batch in batches]
        every = [array for named in arrays for array in named.values()]
        flat_offsets, size = offsets_of(every)
        if size > len(self._host_in):
            self._host_in = self._device.host_buffer(2 * size, torch.int32)
            self._device_in = self._device.copied_buffer(2 * size)
        write(self._host_in.numpy(), every, flat_offsets)
        joined = self._device_in[:size]
        ready = self._device.copy_in(joined, self._host_in[:size])
        rest = iter(flat_offsets)
        return Staged(joined, arrays, [[next(rest) for _ in named] for named in arrays], ready)

    def output(self, size: int) -> torch.Tensor:
        """Room for so many numbers on the host."""
        if size > len(self._host_out):
            self._host_out = self._device.host_buffer(2 * size, torch.float32)
        return self._host_out[:size]

    def read(self, shapes: Sequence[tuple[int, ...]]) -> list[FloatArray]:
        """Arrays of these shapes, as they follow each other in `output`; copies, since the next batch writes there."""
        values, arrays, start = self._host_out.numpy(), [], 0
        for shape in shapes:
            size = int(np.prod(shape))
            arrays.append(values[start : start + size].reshape(shape).copy())
            start += size
        return arrays
