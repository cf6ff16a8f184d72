"""One interface over the weight formats, names and shapes first, fp32 arrays on demand; the mapped file below it."""

import json
import math
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rtp_llm.core import FloatArray, Int8Array
from rtp_llm.errors import CheckpointError

# Name in our messages -> numpy's, little-endian; bf16 has none and is widened by hand.
DTYPES = {
    "fp64": "<f8", "fp32": "<f4", "fp16": "<f2", "bf16": "<u2", "int64": "<i8", "int32": "<i4", "int16": "<i2",
    "int8": "i1", "uint64": "<u8", "uint32": "<u4", "uint16": "<u2", "uint8": "u1", "bool": "?", "fp8_e4m3": "u1",
    "fp8_e5m2": "u1",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What is known of a tensor without reading it; `dtype` is a key of `DTYPES`."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


class TensorSource(Protocol):
    """Named tensors of one or several files, which `path` stands for in messages."""

    path: Path

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Name -> dtype and shape, known without reading any data."""

    def read(self, name: str) -> FloatArray:
        """fp32, C-contiguous; fp32 in the file: a read-only view of the mapped file, else a converted copy."""

    def read_int8(self, name: str) -> Int8Array:
        """A tensor of dtype int8 as it is: a read-only view of the mapped file."""

    def read_part(self, name: str, axis: int, start: int, stop: int) -> FloatArray:
        """`read(name)` from `start` to `stop` along an axis, without reading the rest."""

    def file(self, name: str) -> Path:
        """Where the tensor is."""

    def close(self) -> None:
        """Let the file's pages go; arrays that still view them stay valid and read them again when touched."""


class MappedFile:
    """A file mapped read-only; every range is checked before it is touched, since a page past the end is a SIGBUS."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                if self.size == 0:
                    raise CheckpointError(f"{path} is empty; download it again")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error

    def bytes(self, start: int, stop: int) -> bytes:
        """A copy of the range; CheckpointError where the file is shorter."""
        if not 0 <= start <= stop <= self.size:
            raise CheckpointError(f"{self.path} is cut short: bytes {start}:{stop} of {self.size}; download it again")
        return self._map[start:stop]

    def read(self, dtype: str, shape: Sequence[int], offset: int, strides: Sequence[int] | None = None) -> FloatArray:
        """fp32, C-contiguous and aligned; a read-only view where the file's bytes already are.

        `strides` in elements. The caller has checked the range; numpy checks it once more.
        """
        if dtype.startswith("fp8"):
            raise CheckpointError(f"{self.path}: {dtype} weights are not read; use an fp32, fp16 or bf16 checkpoint")
        if math.prod(shape) == 0:
            return np.zeros(tuple(shape), np.float32)
        kind = np.dtype(DTYPES[dtype])
        steps = None if strides is None else tuple(step * kind.itemsize for step in strides)
        stored: np.ndarray[Any, Any] = np.ndarray(tuple(shape), kind, buffer=self._map, offset=offset, strides=steps)
        values = to_float32(stored, dtype)
        if dtype != "fp32":
            self.release()
        return values

    def read_int8(self, shape: Sequence[int], offset: int) -> Int8Array:
        """A read-only view; the caller has checked the range."""
        if math.prod(shape) == 0:
            return np.zeros(tuple(shape), np.int8)
        values: Int8Array = np.ndarray(tuple(shape), np.int8, buffer=self._map, offset=offset)
        return values

    def release(self) -> None:
        """Drop the pages that were read; views read them again from the file when touched."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def to_float32(values: "np.ndarray[Any, Any]", dtype: str) -> FloatArray:
    """[...] of a dtype of `DTYPES` -> fp32, C-contiguous, aligned; no copy where it is that already."""
    if dtype != "bf16":
        with np.errstate(over="ignore"):
            return np.require(values, np.float32, ["C_CONTIGUOUS", "ALIGNED"])
    # bf16 is the upper half of an fp32.
    widened = values.astype(np.uint32, order="C")
    widened <<= np.uint32(16)
    return widened.view(np.float32)


def loads(text: bytes, path: Path) -> Any:
    """JSON of a header, without repeated keys."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            raise ValueError("a name occurs twice")
        return entries

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its header is not JSON: {error}; download it again") from error
