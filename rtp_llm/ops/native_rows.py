"""The CPU backend's ops that are of single rows, or of single numbers: they sum nothing over a batch."""

import itertools
from abc import abstractmethod
from collections.abc import Callable, Sequence

import numpy as np

from rtp_llm.core import FloatArray, Int32Array
from rtp_llm.ops.native_checks import check_ids, int32
from rtp_llm.ops.native_stream import ACTIVATE, COPY_COLUMNS, FUSED, NORMALIZE, TAKE_ROWS, Stream, Tensor, hosted
from rtp_llm.ops.numpy_ops import NumpyOps


class RowOps:
    """A part of NativeOps, on its stream."""

    _stream: Stream
    _new: Callable[[int, int], Tensor]
    _record: Callable[[bytes], None]
    _operand: Callable[[Tensor | None], int]

    @abstractmethod
    def to_numpy(self, x: Tensor) -> FloatArray:
        """As Ops has it."""

    def rows(self, x: Tensor, index: Int32Array) -> Tensor:
        index = int32(index)
        check_ids(index, x.shape[0])
        self._stream.bounds.append((index, x.shape[0]))
        y = self._new(len(index), x.shape[1])
        self._take(y, x, index, x.shape[1])
        return y

    def only(self, x: Tensor, groups: Int32Array, number: int, blocks: int = 1) -> Tensor:
        num_rows, size = x.shape
        assert groups.shape == (num_rows,) and size % blocks == 0, (
            f"groups {groups.shape}, x {x.shape}, {blocks} blocks"
        )
        own = groups[:, None] == np.arange(number, number + blocks)
        places = np.arange(num_rows * blocks, dtype=np.int32).reshape(num_rows, blocks)
        y = self._new(num_rows, size)
        self._take(y, x, np.where(own, places, np.int32(-1)).ravel(), size // blocks)
        return y

    def _take(self, y: Tensor, x: Tensor, index: Int32Array, size: int) -> None:
        """Into y the pieces of x, of so many numbers each, by their places; zeros where a place is -1."""
        if len(index):
            self._stream.kept.append(index)
            self._record(TAKE_ROWS(
                y.reference, len(index) * size, self._operand(x), index.ctypes.data, len(index), size
            ))  # fmt: skip

    def concat(self, tensors: Sequence[Tensor]) -> Tensor:
        num_rows, columns = tensors[0].shape[0], [x.shape[1] for x in tensors]
        assert all(x.shape[0] == num_rows for x in tensors), [x.shape for x in tensors]
        y = self._new(num_rows, sum(columns))
        starts = itertools.accumulate(columns, initial=0)
        for x, start in zip(tensors, starts, strict=False) if num_rows else ():
            size = 0 if start else num_rows * sum(columns)
            self._record(COPY_COLUMNS(
                y.reference, size, start, self._operand(x), num_rows, x.shape[1], sum(columns)
            ))  # fmt: skip
        return y

    def activate(self, x: Tensor, activation: str) -> Tensor:
        if activation not in FUSED:
            return hosted(NumpyOps().activate(self.to_numpy(x), activation))
        y = x if x.host is None else self.concat([x])
        if x.shape[0]:
            self._record(ACTIVATE(self._operand(y), 0, self._operand(y), *x.shape, FUSED[activation]))
        return y

    def l2_normalize(self, x: Tensor) -> Tensor:
        num_rows, size = x.shape
        y = self._new(num_rows, size)
        if num_rows:
            self._record(NORMALIZE(y.reference, num_rows * size, self._operand(x), num_rows, size))
        return y
