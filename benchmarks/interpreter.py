"""Triton's interpreter, in which kernels run on the CPU in numpy: for dry runs and tests.

TRITON_INTERPRET=1 has to be there before anything imports triton.
"""

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
import triton.language as tl
import triton.runtime.interpreter as interpreter

_patch, _convert = interpreter._patch_lang_tensor, interpreter._convert_float
_patch_language, _launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
_block_type, _dtype_of = tl.core.block_type.__init__, interpreter._get_np_dtype
# Of the running launch: the modules of the language that are patched.
_patched: set[Any] = set()
# Of each shape of a tile: as a type has it, and how many elements.
_shapes: dict[tuple[Any, ...], tuple[Any, int]] = {}


def _patch_with_index(tensor: Any, scope: Any) -> None:
    """Triton 3.6 holds scalars as arrays of one element, of which numpy from 2.4 on makes no int for `range`."""
    _patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


def _convert_float(x: Any, from_type: Any, to_type: Any, rounding_mode: Any) -> Any:
    """Triton 3.6 loses the carry where a number is rounded up to the next power of two, which fp8 often is."""
    if str(to_type) != "fp8e4nv":
        return _convert(x, from_type, to_type, rounding_mode)
    return torch.from_numpy(x.astype("float32")).to(torch.float8_e4m3fn).view(torch.uint8).numpy()


def _patch_once(fn: Any) -> Any:
    """Triton patches its language at each call of a function in a kernel, which took a third of a kernel's time."""
    there = _languages(fn)
    if there <= _patched:
        return None  # who calls a function restores nothing; a launch is never here
    _patched.update(there)
    return _patch_language(fn)


@cache
def _languages(fn: Any) -> set[Any]:
    """The modules of the language that a function's own module names."""
    return {value for value in fn.__globals__.values() if value is tl or value is tl.core}


def _launch_patched(self: Any, *args: Any, **kwargs: Any) -> Any:
    _patched.clear()
    return _launch(self, *args, **kwargs)


def _type_of_tile(self: Any, element_ty: Any, shape: Any) -> None:
    """Each value of a kernel has a type of its own, of few shapes; to check and write out these took a fifth of it."""
    key = tuple(size.value if type(size) is tl.constexpr else size for size in shape)
    if key not in _shapes:
        _block_type(self, element_ty, shape)
        _shapes[key] = self.shape, self.numel
    self.element_ty = element_ty
    self.shape, self.numel = _shapes[key]
    self.name = f"<{key}, {element_ty}>"


def _tensor(self: Any, handle: Any, type: Any) -> None:
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.shape, self.numel = _sizes(*(type.shape if type.is_block() else ()))


@cache
def _sizes(*shape: int) -> tuple[Any, Any]:
    """A tensor's shape and number of elements."""
    return tl.tuple([tl.constexpr(size) for size in shape]), tl.constexpr(math.prod(shape))


def _numpy_dtype(of: Any) -> Any:
    scalar = of.scalar
    return np.dtype(np.uint64) if isinstance(scalar, tl.pointer_type) else _scalar_dtype(scalar)


@cache
def _scalar_dtype(of: Any) -> Any:
    return _dtype_of(of)


def mend() -> None:
    """Around what is wrong in it, and slow.

    Its types, tensors and numpy's dtypes are made anew for each value: what is the same of all of a shape is kept.
    Sums of 32-bit numbers are computed in 64 bits as well, to find those that overflow: as long as all else, for what
    the offsets of a test's few tokens cannot do.
    """
    interpreter._patch_lang_tensor = _patch_with_index
    interpreter._convert_float = _convert_float
    interpreter._patch_lang = _patch_once
    interpreter.GridExecutor.__call__ = _launch_patched
    interpreter._get_np_dtype = _numpy_dtype
    tl.core.block_type.__init__ = _type_of_tile
    tl.core.tensor.__init__ = _tensor
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)
