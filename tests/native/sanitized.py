"""A pytest plugin of .ci/sanitize: packed weights end where red zones begin, and its kernels count as usable.

SANITIZED_SETS names the instruction sets that count as usable, the first of which `auto` takes.
"""

import ctypes
import os
import weakref
from ctypes import c_float, c_size_t, c_void_p

import numpy as np

from rtp_llm.core import FloatArray
from rtp_llm.ops import native_library

_C = ctypes.CDLL(None)
_C.memalign.restype, _C.memalign.argtypes = c_void_p, (c_size_t, c_size_t)
_C.free.argtypes = (c_void_p,)


def take(memory: native_library.WeightMemory, num_floats: int) -> FloatArray:
    """Instead of a part of a chunk, which an address sanitizer takes for one piece."""
    address = _C.memalign(64, 4 * num_floats)
    floats = (c_float * num_floats).from_address(address)
    weakref.finalize(floats, _C.free, address)
    return np.ctypeslib.as_array(floats)


def usable() -> tuple[str, ...]:
    return tuple(os.environ["SANITIZED_SETS"].split())


setattr(native_library.WeightMemory, "take", take)  # noqa: B010
setattr(native_library, "usable", usable)  # noqa: B010
