"""Triton's interpreter, in which kernels run on the CPU in numpy: for dry runs and tests.

TRITON_INTERPRET=1 has to be there before anything imports triton.
"""

from dataclasses import replace
from typing import Any

import torch
import triton.language as tl
import triton.runtime.interpreter as interpreter

_patch, _convert = interpreter._patch_lang_tensor, interpreter._convert_float
_patch_language, _launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
# Of the running launch: the modules of the language that are patched.
_patched: set[Any] = set()


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
    names = fn.__globals__.values()
    there = {module for module in (tl, tl.core) if any(value is module for value in names)}
    if there <= _patched:
        return None  # who calls a function restores nothing; a launch is never here
    _patched.update(there)
    return _patch_language(fn)


def _launch_patched(self: Any, *args: Any, **kwargs: Any) -> Any:
    _patched.clear()
    return _launch(self, *args, **kwargs)


def mend() -> None:
    """Around what is wrong in it, and slow.

    Sums of 32-bit numbers are computed in 64 bits as well, to find those that overflow: as long as all else, for what
    the offsets of a test's few tokens cannot do.
    """
    interpreter._patch_lang_tensor = _patch_with_index
    interpreter._convert_float = _convert_float
    interpreter._patch_lang = _patch_once
    interpreter.GridExecutor.__call__ = _launch_patched
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)
