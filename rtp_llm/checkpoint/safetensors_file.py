"""The safetensors format: 8 bytes of header length, a JSON header, then the tensors end to end.

Source: the format section of https://github.com/huggingface/safetensors. Read by hand rather than through the library,
so that bf16 needs no further package, fp32 is not copied, and every malformed file is refused by name.
"""

import math
import struct
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from rtp_llm.checkpoint.tensors import DTYPES, MappedFile, TensorInfo, loads
from rtp_llm.core import FloatArray, Int8Array
from rtp_llm.errors import CheckpointError

_MAX_HEADER_BYTES = 100_000_000  # the library's own limit
_DTYPES = {
    "F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16", "I64": "int64", "I32": "int32", "I16": "int16",
    "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
    "F8_E4M3": "fp8_e4m3", "F8_E5M2": "fp8_e5m2",
}  # fmt: skip


class SafetensorsFile:
    """One .safetensors file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = MappedFile(path)
        header, data_start = _header(self._file)
        entries = {name: _entry(path, name, entry) for name, entry in header.items() if name != "__metadata__"}
        _check_layout(
            path, {name: (start, stop) for name, (_, start, stop) in entries.items()}, self._file.size - data_start
        )
        self.tensors = {name: info for name, (info, _, _) in entries.items()}
        self._offsets = {name: data_start + start for name, (_, start, _) in entries.items()}

    def read(self, name: str) -> FloatArray:
        info = self.tensors[name]
        return self._file.read(info.dtype, info.shape, self._offsets[name])

    def read_int8(self, name: str) -> Int8Array:
        assert self.tensors[name].dtype == "int8", self.tensors[name]
        return self._file.read_int8(self.tensors[name].shape, self._offsets[name])

    def read_part(self, name: str, axis: int, start: int, stop: int) -> FloatArray:
        info = self.tensors[name]
        assert 0 <= start <= stop <= info.shape[axis], f"{start}:{stop} of axis {axis} of {name} {info.shape}"
        strides = [math.prod(info.shape[place + 1 :]) for place in range(len(info.shape))]
        shape = (*info.shape[:axis], stop - start, *info.shape[axis + 1 :])
        offset = self._offsets[name] + start * strides[axis] * np.dtype(DTYPES[info.dtype]).itemsize
        return self._file.read(info.dtype, shape, offset, strides)

    def file(self, name: str) -> Path:
        return self.path

    def close(self) -> None:
        self._file.release()


def _header(file: MappedFile) -> tuple[dict[str, Any], int]:
    """The header and where the data begins."""
    (num_bytes,) = struct.unpack("<Q", file.bytes(0, 8))
    if num_bytes > min(_MAX_HEADER_BYTES, file.size - 8):
        raise CheckpointError(
            f"{file.path}: a header of {num_bytes:,} bytes in a file of {file.size:,}; "
            "it is not safetensors or was cut short, download it again"
        )
    header = loads(file.bytes(8, 8 + num_bytes), file.path)
    if not isinstance(header, dict):
        raise CheckpointError(f"{file.path}: its header is not a JSON object; download it again")
    return header, 8 + num_bytes


def _entry(path: Path, name: str, entry: Any) -> tuple[TensorInfo, int, int]:
    """Type and byte range of one tensor of the header, which agree."""
    fields = entry if isinstance(entry, dict) else {}
    shape, offsets = fields.get("shape"), fields.get("data_offsets")
    if not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{path}: tensor {name!r} has no valid shape and data_offsets; download it again")
    dtype = _DTYPES.get(str(fields.get("dtype")))
    if dtype is None:
        raise CheckpointError(
            f"{path}: tensor {name!r} has dtype {fields.get('dtype')!r}; known are {', '.join(_DTYPES)}"
        )
    info = TensorInfo(dtype, tuple(shape))
    start, stop = offsets
    num_bytes = info.num_elements * np.dtype(DTYPES[dtype]).itemsize
    if stop - start != num_bytes:
        raise CheckpointError(f"{path}: tensor {name!r} {shape} needs {num_bytes} bytes and has {stop - start}")
    return info, start, stop


def _is_sizes(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_layout(path: Path, ranges: dict[str, tuple[int, int]], num_bytes: int) -> None:
    """The tensors fill the data exactly: no overlap, no hole, nothing after the end."""
    position = 0
    for name, (start, stop) in sorted(ranges.items(), key=lambda item: item[1]):
        if stop > num_bytes:
            raise CheckpointError(
                f"{path} is cut short: tensor {name!r} ends at {stop:,} of {num_bytes:,} bytes; download it again"
            )
        if start != position:
            raise CheckpointError(
                f"{path}: tensor {name!r} begins at {start}, not at {position}, where the last one ends"
            )
        position = stop
    if position != num_bytes:
        raise CheckpointError(f"{path}: {num_bytes - position} bytes after the last tensor; download it again")
