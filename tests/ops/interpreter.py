"""Triton's interpreter, which tests/conftest.py has asked for: kernels run on the CPU, in numpy."""

from typing import Any

import pytest

pytest.importorskip("torch")
interpreter: Any = pytest.importorskip("triton.runtime.interpreter", reason="triton is not installed")
_patch = interpreter._patch_lang_tensor


def _patch_with_index(tensor: Any, scope: Any) -> None:
    """Triton 3.6 holds scalars as arrays of one element, of which numpy from 2.4 on makes no int for `range`."""
    _patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


interpreter._patch_lang_tensor = _patch_with_index
