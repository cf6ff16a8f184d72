"""The compiled kernels as ctypes sees them: which were built, which this CPU can run, their functions and weights."""

import contextlib
import ctypes
import functools
import mmap
import os
import platform
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_char_p, c_double, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtp_llm.core import FloatArray, QuantizedWeight
from rtp_llm.errors import ConfigError
from rtp_llm.ops import Quantization
from rtp_llm.ops.int8 import fit_pairs

# The fastest first.
INSTRUCTION_SETS = (
    "amx", "avx512_bf16", "avx512_vnni", "avx512", "avx2_vnni", "avx2", "neon_bf16", "neon_dotprod", "generic",
)  # fmt: skip
# Products of fewer bf16 parts than fp32's three that they have; the others compute in fp32.
FEWER_PARTS: dict[str, tuple[Quantization, ...]] = {
    "amx": ("fp16_products", "bf16_products"),
    "avx512_bf16": ("bf16_products",),
    "neon_bf16": ("bf16_products",),
}
# Those that add products of 8 bits in pairs of neighbours: `rtp_llm.ops.int8` has what these must fit into.
INT8_IN_PAIRS = ("avx512", "avx2")
ABI_VERSION = 24
_PANEL = 32  # columns that are computed together, or a multiple of them

_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "cpu_supports_avx2": (c_int, ()),
    "cpu_supports_avx2_vnni": (c_int, ()),
    "cpu_supports_avx512": (c_int, ()),
    "cpu_supports_avx512_vnni": (c_int, ()),
    "cpu_supports_avx512_bf16": (c_int, ()),
    "cpu_supports_amx": (c_int, ()),
    "cpu_supports_neon_bf16": (c_int, ()),
    "cpu_supports_neon_dotprod": (c_int, ()),
    "num_cores": (c_int, ()),
    "max_lookups": (c_int, ()),
    "packed_bytes": (c_int64, (c_int64, c_int64, c_int, c_int)),
    "is_bf16": (c_int, (c_void_p, c_int64)),
    "narrow": (None, (c_void_p, c_int64, c_void_p)),
    "pack_weight": (None, (c_void_p, c_int64, c_int64, c_void_p, c_int, c_int)),
    "grouped_weight_bytes": (c_int64, (c_int64, c_int64, c_int)),
    "pack_grouped": (None, (c_void_p, c_int64, c_int64, c_void_p, c_int)),
    "int8_weight_bytes": (c_int64, (c_int64, c_int64)),
    "pack_int8": (None, (c_void_p, c_int64, c_int64, c_void_p)),
    "pack_quantized": (None, (c_void_p, c_void_p, c_int64, c_int64, c_void_p)),
    "quantized_row_bytes": (c_int64, (c_int64,)),
    "stream_new": (c_void_p, ()),
    "stream_delete": (None, (c_void_p,)),
    "arena_capacity": (c_int64, (c_void_p,)),
    "run": (c_int, (c_void_p, c_char_p, c_int64, c_int)),
    "peak": (c_double, (c_double,)),
    "tile_peak": (c_double, (c_double,)),
    "read_rate": (c_double, (c_void_p, c_int64, c_double)),
}


class Library:
    """One compiled instruction set; its functions are attributes without their prefix `rtp_`."""

    def __init__(self, path: Path, instruction_set: str) -> None:
        self.instruction_set = instruction_set
        self.weights = WeightMemory()
        kernels = ctypes.CDLL(str(path))  # its calls release Python's lock
        if kernels.rtp_abi_version() != ABI_VERSION:
            raise ConfigError(f"{path} is from another version of rtp_llm; build it again: pip install .")
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(kernels, f"rtp_{name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the kernels have no function rtp_{name}")


def library_path(instruction_set: str) -> Path:
    """Where setup.py puts the kernels of an instruction set."""
    return Path(__file__).with_name(f"_native_{instruction_set}.so")


@functools.cache
def load(instruction_set: str) -> Library:
    """The kernels for `instruction_set`; ConfigError when they were not built or this CPU cannot run them."""
    if instruction_set not in usable():
        raise ConfigError(_unusable(instruction_set), param="instruction_set")
    return Library(library_path(instruction_set), instruction_set)


def _unusable(instruction_set: str) -> str:
    if not usable():
        return (
            "the native kernels were not built: reinstall rtp_llm where there is a C++17 compiler (apt install g++), "
            "or use --backend numpy"
        )
    built = ", ".join(name for name in INSTRUCTION_SETS if library_path(name).exists())
    return (
        f"instruction_set: {instruction_set} cannot be used: built are {built}; this CPU ({platform.machine()}) "
        f"runs {', '.join(usable())}. Choose one of these, or auto"
    )


@functools.cache
def usable() -> tuple[str, ...]:
    """Instruction sets that were built and that this CPU can run, the fastest first."""
    generic = library_path("generic")
    if not generic.exists():
        return ()
    probe = Library(generic, "generic")
    supported = {
        "amx": probe.cpu_supports_amx(),
        "avx512_bf16": probe.cpu_supports_avx512_bf16(),
        "avx512_vnni": probe.cpu_supports_avx512_vnni(),
        "avx512": probe.cpu_supports_avx512(),
        "avx2_vnni": probe.cpu_supports_avx2_vnni(),
        "avx2": probe.cpu_supports_avx2(),
        "neon_bf16": probe.cpu_supports_neon_bf16(),
        "neon_dotprod": probe.cpu_supports_neon_dotprod(),
        "generic": 1,
    }
    return tuple(name for name in INSTRUCTION_SETS if supported[name] and library_path(name).exists())


def best() -> str:
    """The fastest of the usable instruction sets; `load` says what to do where there is none."""
    return usable()[0] if usable() else "generic"


def release_free_memory() -> None:
    """Give back to the system what the C library keeps of freed memory (loading leaves a good deal); glibc can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def measure_peak(num_threads: int, seconds: float) -> float:
    """fp32 GFLOP/s of multiply-adds between registers, with the best instruction set, on so many cores at once."""
    return _on_cores(load(best()).peak, [seconds] * num_threads)


def measure_tile_peak(num_threads: int, seconds: float) -> float:
    """GFLOP/s of bf16 tile products (AMX) on so many cores at once; 0 where the best instruction set has none."""
    return _on_cores(load(best()).tile_peak, [seconds] * num_threads)


def measure_read_rate(num_threads: int, seconds: float, megabytes: int = 512) -> float:
    """GB/s of reading memory on so many cores at once, each its own `megabytes`, more than caches hold by default."""
    numbers = np.ones((num_threads, megabytes << 18), np.float32)
    read_rate = load(best()).read_rate
    return _on_cores(lambda part: read_rate(part.ctypes.data, part.size, seconds), [*numbers])


def _on_cores(measure: Callable[[Any], float], parts: Sequence[Any]) -> float:
    with ThreadPoolExecutor(len(parts)) as pool:
        return sum(pool.map(measure, parts))


class PackedWeight:
    """A linear layer's weight in panels of columns, as the kernels want it, in bf16 where that loses nothing.

    parts  how many bf16 parts of each number are multiplied: 3 make fp32
    """

    __slots__ = ("address", "in_features", "is_bf16", "memory", "out_features", "parts")

    def __init__(self, weight: FloatArray, library: Library, parts: int = 3) -> None:
        weight = np.ascontiguousarray(weight, dtype=np.float32)
        self.parts = parts
        self.out_features, self.in_features = weight.shape
        self.is_bf16 = bool(library.is_bf16(weight.ctypes.data, weight.size))
        num_bytes = library.packed_bytes(*weight.shape, self.is_bf16, parts)
        self.memory = library.weights.take(-(-num_bytes // 4))
        self.address: int = self.memory.ctypes.data
        library.pack_weight(weight.ctypes.data, *weight.shape, self.address, self.is_bf16, parts)


class Int8Weight:
    """A linear layer's weight in 8 bits, quantised as `rtp_llm.ops.int8` says, in panels of columns.

    parts  how many bf16 parts of each number attention on its results multiplies; its own products are of 8 bits
    """

    __slots__ = ("address", "in_features", "memory", "out_features", "parts")

    def __init__(self, weight: FloatArray, library: Library, parts: int = 3) -> None:
        weight = np.ascontiguousarray(weight, dtype=np.float32)
        self._reserve(weight.shape, library, parts)
        library.pack_int8(weight.ctypes.data, *weight.shape, self.address)

    @classmethod
    def of_quantized(cls, weight: QuantizedWeight, library: Library, parts: int = 3) -> "Int8Weight":
        """The same from numbers that are quantised already: another order of the same bytes, wherever it can be."""
        packed = object.__new__(cls)
        weight = fit_pairs(weight) if library.instruction_set in INT8_IN_PAIRS else weight
        packed._reserve(weight.values.shape, library, parts)
        values, scales = np.ascontiguousarray(weight.values), np.ascontiguousarray(weight.scales)
        library.pack_quantized(values.ctypes.data, scales.ctypes.data, *values.shape, packed.address)
        return packed

    def _reserve(self, shape: tuple[int, ...], library: Library, parts: int) -> None:
        self.out_features, self.in_features = shape
        self.parts = parts
        self.memory = library.weights.take(-(-library.int8_weight_bytes(*shape) // 4))
        self.address: int = self.memory.ctypes.data


class GroupedWeight:
    """A linear layer's weight in groups with a scale each, as `rtp_llm.ops.weight_only` says, in panels of columns.

    parts  how many bf16 parts of each number are multiplied: 3 make fp32, 1 rounds rows and what groups are widened to
    """

    __slots__ = ("address", "bits", "in_features", "memory", "out_features", "parts")

    def __init__(self, weight: FloatArray, bits: int, library: Library, parts: int = 3) -> None:
        weight = np.ascontiguousarray(weight, dtype=np.float32)
        self.out_features, self.in_features = weight.shape
        self.bits, self.parts = bits, parts
        self.memory = library.weights.take(-(-library.grouped_weight_bytes(*weight.shape, bits) // 4))
        self.address: int = self.memory.ctypes.data
        library.pack_grouped(weight.ctypes.data, *weight.shape, self.address, bits)


def fuses_gates(weight: PackedWeight | Int8Weight | GroupedWeight, instruction_set: str) -> bool:
    """Whether the kernels multiply by gates on a product's way out: both halves of its columns are whole panels."""
    # NOTE: on AMX tiles sums over more than 1024 columns of x wait in the result, which has no place for both halves.
    on_tiles = instruction_set == "amx" and not isinstance(weight, Int8Weight)
    return weight.out_features % (2 * _PANEL) == 0 and not on_tiles


class Table:
    """An embedding table [V, H]: fp32, perhaps a view of a mapped file, or bf16 where that loses nothing."""

    __slots__ = ("address", "is_bf16", "rows", "shape")

    def __init__(self, rows: FloatArray, library: Library) -> None:
        rows = np.ascontiguousarray(rows, dtype=np.float32)
        self.shape = rows.shape
        self.is_bf16 = bool(library.is_bf16(rows.ctypes.data, rows.size))
        self.rows: NDArray[Any] = rows
        if self.is_bf16:
            self.rows = np.empty(rows.shape, np.uint16)
            library.narrow(rows.ctypes.data, rows.size, self.rows.ctypes.data)
        self.address: int = self.rows.ctypes.data

    def widened(self) -> FloatArray:
        """[V, H] in fp32."""
        return (self.rows.astype(np.uint32) << np.uint32(16)).view(np.float32) if self.is_bf16 else self.rows


class WeightMemory:
    """Weights side by side on huge pages where the system has them: streamed from memory, they miss the TLB less."""

    _PAGE, _CHUNK = 2 << 20, 64 << 20  # bytes; of a chunk, only pages in use are resident

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rest = np.empty(0, dtype=np.float32)

    def take(self, num_floats: int) -> FloatArray:
        """Memory on a cache line's boundary; a chunk is freed with the last array taken from it."""
        padded = -(-num_floats // 16) * 16
        with self._lock:
            if padded > len(self._rest):
                self._rest = self._chunk(4 * padded)
            taken, self._rest = self._rest[:num_floats], self._rest[padded:]
        return taken

    def _chunk(self, num_bytes: int) -> FloatArray:
        # NOTE: private; Python's default is shared memory, which never gets huge pages.
        memory = mmap.mmap(-1, max(num_bytes, self._CHUNK) + self._PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without huge pages
                memory.madvise(mmap.MADV_HUGEPAGE)
        floats = np.frombuffer(memory, dtype=np.float32)
        return floats[-floats.ctypes.data % self._PAGE // 4 :]
