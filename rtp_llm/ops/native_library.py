"""The compiled kernels as ctypes sees them: which were built, which this CPU can run, and their C functions.

`record` calls keep Python's lock: they take about a microsecond. `compute` calls release it.
"""

import ctypes
import functools
import platform
from ctypes import POINTER, c_double, c_float, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

from rtp_llm.errors import ConfigError

INSTRUCTION_SETS = ("avx512", "avx2", "generic")  # the fastest first
ABI_VERSION = 1

_RECORD: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "abi_version": (c_int, ()),
    "cpu_supports_avx2": (c_int, ()),
    "cpu_supports_avx512": (c_int, ()),
    "num_cores": (c_int, ()),
    "max_lookups": (c_int, ()),
    "packed_size": (c_int64, (c_int64, c_int64)),
    "stream_new": (c_void_p, ()),
    "stream_delete": (None, (c_void_p,)),
    "alloc": (c_void_p, (c_void_p, c_int64)),
    "free": (None, (c_void_p, c_void_p)),
    "arena_capacity": (c_int64, (c_void_p,)),
    "begin": (c_int64, (c_void_p,)),
    "record_linear": (None, (c_void_p,) * 6 + (c_int64,) * 3 + (c_int,)),
    "record_norm": (None, (c_void_p,) * 3 + (c_int64,) * 2 + (c_void_p,) * 2 + (c_float, c_int)),
    "record_embed": (
        None,
        (c_void_p, c_void_p, c_int64, c_int64, c_int, POINTER(c_void_p), POINTER(c_void_p))
        + (c_void_p, c_void_p, c_float, c_int),
    ),
    "record_attention": (None, (c_void_p,) * 4 + (c_int64,) * 5 + (c_float, c_int, c_int64)),
    "record_pool": (None, (c_void_p,) * 5 + (c_int64, c_int64, c_int)),
    "record_copy_columns": (None, (c_void_p,) * 3 + (c_int64,) * 3),
    "record_normalize": (None, (c_void_p,) * 3 + (c_int64,) * 2),
}
_COMPUTE: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "pack_weight": (None, (c_void_p, c_int64, c_int64, c_void_p)),
    "run": (None, (c_void_p, c_int)),
    "peak": (c_double, (c_double,)),
}


class Library:
    """One compiled instruction set; its functions are attributes without their prefix `rtp_`."""

    def __init__(self, path: Path, instruction_set: str) -> None:
        self.instruction_set = instruction_set
        for dll, functions in ((ctypes.PyDLL(str(path)), _RECORD), (ctypes.CDLL(str(path)), _COMPUTE)):
            for name, (result, arguments) in functions.items():
                function = getattr(dll, f"rtp_{name}")
                function.restype, function.argtypes = result, arguments
                setattr(self, name, function)
        if self.abi_version() != ABI_VERSION:
            raise ConfigError(f"{path} is from another version of rtp_llm; build it again: pip install .")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the kernels have no function rtp_{name}")


def library_path(instruction_set: str) -> Path:
    """Where setup.py puts the kernels of an instruction set."""
    return Path(__file__).with_name(f"_native_{instruction_set}.so")


@functools.cache
def load(instruction_set: str) -> Library:
    """The kernels for `instruction_set`; ConfigError when they were not built or this CPU cannot run them."""
    if instruction_set not in usable():
        built = [name for name in INSTRUCTION_SETS if library_path(name).exists()]
        raise ConfigError(
            f"instruction_set: {instruction_set} cannot be used: built: {', '.join(built) or 'none'}; this CPU "
            f"({platform.machine()}) can run: {', '.join(usable()) or 'none of them'}. "
            "Choose one of these or auto, reinstall where a C++17 compiler is found (apt install g++), "
            "or use --backend numpy",
            param="instruction_set",
        )
    return Library(library_path(instruction_set), instruction_set)


@functools.cache
def usable() -> tuple[str, ...]:
    """Instruction sets that were built and that this CPU can run, the fastest first."""
    generic = library_path("generic")
    if not generic.exists():
        return ()
    probe = Library(generic, "generic")
    supported = {"avx512": probe.cpu_supports_avx512(), "avx2": probe.cpu_supports_avx2(), "generic": 1}
    return tuple(name for name in INSTRUCTION_SETS if supported[name] and library_path(name).exists())
