"""What torch.save writes, read without torch and without running it.

A pickle is a program. Ours is read by an unpickler that knows only the handful of names a state dict is made of, each
an inert stand-in that records what it was given; any other name or opcode is refused. The tensors' bytes are then taken
from the mapped file, inside checked ranges.

Two layouts: a zip archive whose entries are stored uncompressed (`…/data.pkl`, `…/data/<key>`), and, before torch 1.6,
five pickles in a row followed by each storage's element count and bytes.
Source: torch/serialization.py, torch/_utils.py.
"""

import io
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from rtp_llm.checkpoint.tensors import DTYPES, MappedFile, TensorInfo
from rtp_llm.core import FloatArray, Int8Array
from rtp_llm.errors import CheckpointError

_MAX_PICKLE_BYTES = 256 << 20
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "DoubleStorage": "fp64", "FloatStorage": "fp32", "HalfStorage": "fp16", "BFloat16Storage": "bf16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool",
}  # fmt: skip
_OPCODES = frozenset(
    "PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE INT LONG LONG1 LONG4 BININT BININT1 BININT2 BINFLOAT "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINSTRING SHORT_BINSTRING EMPTY_LIST APPEND APPENDS LIST EMPTY_TUPLE TUPLE "
    "TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS GLOBAL STACK_GLOBAL REDUCE BUILD PUT BINPUT LONG_BINPUT "
    "MEMOIZE GET BINGET LONG_BINGET BINPERSID".split()
)


@dataclass(frozen=True, slots=True)
class _Storage:
    """A block of elements, by its key in the archive."""

    key: str
    dtype: str
    num_elements: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A view of a storage: offset and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TorchFile:
    """One .bin, .pt or .pth file that holds a dictionary of tensors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = MappedFile(path)
        try:
            read = _read_archive if self._file.bytes(0, min(4, self._file.size)) == b"PK\x03\x04" else _read_legacy
            entries, self._offsets = read(self._file)
        except _FOREIGN_ERRORS as error:
            raise CheckpointError(
                f"{path} is damaged or not a file of torch.save: {error}; download it again"
            ) from error
        self._tensors = {name: _checked(path, name, tensor) for name, tensor in entries.items()}
        for tensor in self._tensors.values():
            self._check_storage(tensor.storage)
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(tensor.storage.dtype, tensor.shape) for name, tensor in self._tensors.items()
        }

    def read(self, name: str) -> FloatArray:
        tensor = self._tensors[name]
        return self._read(tensor, tensor.offset, tensor.shape)

    def read_part(self, name: str, axis: int, start: int, stop: int) -> FloatArray:
        tensor = self._tensors[name]
        assert 0 <= start <= stop <= tensor.shape[axis], f"{start}:{stop} of axis {axis} of {name} {tensor.shape}"
        shape = (*tensor.shape[:axis], stop - start, *tensor.shape[axis + 1 :])
        return self._read(tensor, tensor.offset + start * tensor.strides[axis], shape)

    def _read(self, tensor: _Tensor, offset: int, shape: tuple[int, ...]) -> FloatArray:
        dtype, start = tensor.storage.dtype, self._offsets[tensor.storage.key][0]
        return self._file.read(dtype, shape, start + offset * np.dtype(DTYPES[dtype]).itemsize, tensor.strides)

    def read_int8(self, name: str) -> Int8Array:
        raise CheckpointError(f"{self.path}: weights in 8 bits are read from safetensors alone")

    def file(self, name: str) -> Path:
        return self.path

    def close(self) -> None:
        self._file.release()

    def _check_storage(self, storage: _Storage) -> None:
        """The storage lies in the file and is as long as it says."""
        if storage.key not in self._offsets:
            raise CheckpointError(f"{self.path}: storage {storage.key!r} is missing; download it again")
        start, num_bytes = self._offsets[storage.key]
        needed = storage.num_elements * np.dtype(DTYPES[storage.dtype]).itemsize
        if needed > num_bytes or start + needed > self._file.size:
            raise CheckpointError(f"{self.path}: storage {storage.key!r} is cut short; download it again")


_FOREIGN_ERRORS = (
    zipfile.BadZipFile, pickle.UnpicklingError, struct.error, ValueError, TypeError, KeyError, IndexError, EOFError,
    AttributeError, NotImplementedError, OverflowError, RecursionError, MemoryError,
)  # fmt: skip


def _read_archive(file: MappedFile) -> tuple[dict[str, _Tensor], dict[str, tuple[int, int]]]:
    """Tensors, and (offset in the file, bytes) of each storage of a zip archive."""
    with zipfile.ZipFile(file.path) as archive:
        entries = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in entries if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(pickles) != 1:
        _refuse(file.path, f"{len(pickles)} data.pkl in the archive")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in entries and _entry_bytes(file, entries[f"{root}byteorder"]) != b"little":
        _refuse(file.path, "a big-endian checkpoint")
    program = _entry_bytes(file, entries[pickles[0]])
    prefix = f"{root}data/"
    offsets = {
        name.removeprefix(prefix): (_entry_offset(file, info), info.file_size)
        for name, info in entries.items()
        if name.startswith(prefix)
    }
    return _state_dict(file.path, _run(file.path, program)), offsets


def _entry_offset(file: MappedFile, info: zipfile.ZipInfo) -> int:
    """Where the bytes of an uncompressed entry begin."""
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        _refuse(file.path, f"a compressed entry, {info.filename}; torch.save never compresses")
    signature, name_length, extra_length = struct.unpack(
        "<4s22xHH", file.bytes(info.header_offset, info.header_offset + 30)
    )
    if signature != b"PK\x03\x04":
        raise ValueError(f"no entry at byte {info.header_offset}")
    start = info.header_offset + 30 + int(name_length) + int(extra_length)
    if start + info.file_size > file.size:
        raise ValueError(f"entry {info.filename} is past the end")
    return start


def _entry_bytes(file: MappedFile, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > _MAX_PICKLE_BYTES:
        _refuse(file.path, f"{info.filename} of {info.file_size:,} bytes, the limit is {_MAX_PICKLE_BYTES:,}")
    start = _entry_offset(file, info)
    return file.bytes(start, start + info.file_size)


def _read_legacy(file: MappedFile) -> tuple[dict[str, _Tensor], dict[str, tuple[int, int]]]:
    """The same for the layout before torch 1.6."""
    values = []
    with file.path.open("rb") as stream:
        for _ in range(5):
            start = stream.tell()
            for _ in pickletools.genops(stream):
                pass
            if stream.tell() - start > _MAX_PICKLE_BYTES:
                _refuse(file.path, f"a pickle of {stream.tell() - start:,} bytes")
            values.append(_run(file.path, file.bytes(start, stream.tell())))
        position = stream.tell()
    magic, _, system, state, keys = values
    if magic != _LEGACY_MAGIC:
        raise ValueError("it does not begin with torch's magic number")
    if isinstance(system, dict) and system.get("little_endian") is not True:
        _refuse(file.path, "a big-endian checkpoint")
    entries = _state_dict(file.path, state)
    sizes = {tensor.storage.key: np.dtype(DTYPES[tensor.storage.dtype]).itemsize for tensor in entries.values()}
    offsets = {}
    for key in keys:
        (num_elements,) = struct.unpack("<q", file.bytes(position, position + 8))
        num_bytes = num_elements * sizes[key]
        if num_elements < 0 or position + 8 + num_bytes > file.size:
            raise ValueError(f"storage {key!r} is past the end")
        offsets[key] = (position + 8, num_bytes)
        position += 8 + num_bytes
    return entries, offsets


def _run(path: Path, program: bytes) -> Any:
    """What the pickle builds, of plain values and stand-ins only."""
    for opcode, argument, _ in pickletools.genops(program):
        if opcode.name not in _OPCODES:
            _refuse(path, f"pickle opcode {opcode.name}")
        # The memo is an array as long as the largest index: a few bytes could ask for gigabytes.
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(program):
            _refuse(path, f"pickle memo index {argument}")
    return _StateDictUnpickler(program, path).load()


class _Dict(dict[Any, Any]):
    """OrderedDict's stand-in; the attributes that a Module's state dict carries are dropped."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class _Function:
    """A stand-in that can be called and not altered."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __setstate__(self, state: object) -> NoReturn:
        raise ValueError(f"it sets attributes of {self._name}")

    def __call__(self, *arguments: Any) -> Any:
        if self._name == "OrderedDict":
            return _Dict(*arguments)
        if self._name == "_rebuild_tensor_v2":
            storage, offset, shape, strides = arguments[:4]
            return _Tensor(storage, offset, tuple(shape), tuple(strides))
        if self._name == "_rebuild_parameter":
            return arguments[0]
        return None


@dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: str


_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Function("OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"): _Function("_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"): _Function("_rebuild_parameter"),
    ("torch", "device"): _Function("device"),
    ("torch", "Size"): _Function("Size"),
    **{("torch", name): _StorageType(dtype) for name, dtype in _STORAGES.items()},
}


class _StateDictUnpickler(pickle.Unpickler):
    def __init__(self, program: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(program), encoding="utf-8")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NAMES[module, name]
        except KeyError:
            _refuse(self._path, f"the name {module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _, num_elements, *view = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType) or view not in ([], [None]):
            raise ValueError(f"an unknown kind of storage, {kind!r}")
        if not isinstance(key, str) or type(num_elements) is not int or num_elements < 0:
            raise ValueError(f"storage {key!r} of {num_elements!r} elements")
        return _Storage(key, storage_type.dtype, num_elements)


def _state_dict(path: Path, value: Any) -> dict[str, _Tensor]:
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, a dictionary of tensors is needed")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            raise CheckpointError(f"{path}: entry {name!r} is a {type(tensor).__name__}, tensors are needed")
    return value


def _checked(path: Path, name: str, tensor: _Tensor) -> _Tensor:
    """The tensor, if every element it addresses is in its storage and none is there twice."""
    numbers = (tensor.offset, *tensor.shape, *tensor.strides)
    if not isinstance(tensor.storage, _Storage) or not all(type(n) is int and n >= 0 for n in numbers):
        raise CheckpointError(f"{path}: tensor {name!r} is not made of a storage and sizes")
    if len(tensor.shape) != len(tensor.strides) or len(tensor.shape) > 8:
        raise CheckpointError(f"{path}: tensor {name!r} has shape {tensor.shape} and strides {tensor.strides}")
    info = TensorInfo(tensor.storage.dtype, tensor.shape)
    last = tensor.offset + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.strides, strict=True))
    if info.num_elements > 0 and (
        last >= tensor.storage.num_elements or info.num_elements > tensor.storage.num_elements
    ):
        raise CheckpointError(
            f"{path}: tensor {name!r} {list(tensor.shape)} reaches outside its storage of {tensor.storage.num_elements}"
        )
    return tensor


def _refuse(path: Path, what: str) -> NoReturn:
    raise CheckpointError(
        f"{path}: {what} is refused, since only plain tensors are read from a pickle; convert it to safetensors"
    )
