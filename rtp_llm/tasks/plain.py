"""What a user's code returns -> what JSON can hold, with arrays left as arrays."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtp_llm.errors import CustomModuleError

_SCALARS = (str, bool, int, float)
_INT_MIN, _INT_MAX = -(2**63), 2**64  # what JSON's writer takes


def plain(value: Any, place: str) -> Any:
    """None, bool, int, float, str, arrays (of a numpy array or a torch tensor), and lists and dicts of them.

    CustomModuleError names the place of what JSON cannot hold: NaN, infinity, a whole number of more than 64 bits, an
    object of another type.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int) and not _INT_MIN <= value < _INT_MAX:
        raise CustomModuleError(f"{place} is a whole number of {value.bit_length()} bits; JSON takes 64")
    if isinstance(value, float) and not math.isfinite(value):
        raise CustomModuleError(f"{place} is NaN or infinity")
    if value is None or isinstance(value, _SCALARS):
        return _without_class(value)
    if isinstance(value, Mapping):
        return {_key(key, place): plain(entry, f"{place}[{key!r}]") for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry, f"{place}[{index}]") for index, entry in enumerate(value)]
    if isinstance(value, np.ndarray) or hasattr(value, "detach"):
        array = as_array(value, place)
        return array if array.ndim else array.item()
    raise CustomModuleError(
        f"{place} is of type {type(value).__name__}; return numpy arrays, torch tensors, or what JSON can hold"
    )


def _without_class(value: Any) -> Any:
    """A scalar of a built-in type: a class of the user's own, as an Enum, is known in no other process."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float.__float__(value)
    return value if value is None or isinstance(value, bool) else int.__int__(value)


def as_array(value: Any, place: str) -> NDArray[Any]:
    """A finite array of bools or numbers, floats as fp32 or fp64; torch tensors by their own means, without torch."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # numpy has no bf16.
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    array = np.asarray(value, order="C")
    if array.dtype.kind not in "biuf":
        raise CustomModuleError(f"{place} is an array of {array.dtype}; numbers or bools are needed")
    if array.dtype.kind == "f":
        array = array.astype(np.float64 if array.dtype == np.float64 else np.float32, copy=False)
        if not np.isfinite(array).all():
            raise CustomModuleError(f"{place} has NaN or infinity")
    return array


def _key(key: Any, place: str) -> str:
    if isinstance(key, (str, int)):
        return str(key)
    raise CustomModuleError(f"{place} has a key of type {type(key).__name__}; JSON's keys are strings")
