"""The arrays that go from floor to floor, under one name each."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Int32Array: TypeAlias = NDArray[np.int32]
FloatArray: TypeAlias = NDArray[np.float32]
Int8Array: TypeAlias = NDArray[np.int8]
# What a task computes for some inputs: a matrix with a row each, or a list with an array [tokens, ·] each.
Rows: TypeAlias = FloatArray | list[FloatArray]


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A weight [N, K] that a checkpoint holds in 8 bits, about scales * values; what it means is in `ops/int8.py`."""

    values: Int8Array  # [N, K]
    scales: FloatArray  # [N]
