"""Triton's interpreter, in which kernels run on the CPU in numpy: for dry runs and tests.

TRITON_INTERPRET=1 has to be there before anything imports triton.
"""

from typing import Any

import torch
import triton.runtime.interpreter as interpreter

_patch, _convert = interpreter._patch_lang_tensor, interpreter._convert_float


def _patch_with_index(tensor: Any, scope: Any) -> None:
    """Triton 3.6 holds scalars as arrays of one element, of which numpy from 2.4 on makes no int for `range`."""
    _patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


def _convert_float(x: Any, from_type: Any, to_type: Any, rounding_mode: Any) -> Any:
    """Triton 3.6 loses the carry where a number is rounded up to the next power of two, which fp8 often is."""
    if str(to_type) != "fp8e4nv":
        return _convert(x, from_type, to_type, rounding_mode)
    return torch.from_numpy(x.astype("float32")).to(torch.float8_e4m3fn).view(torch.uint8).numpy()


def mend() -> None:
    """Around what is wrong in it."""
    interpreter._patch_lang_tensor = _patch_with_index
    interpreter._convert_float = _convert_float
