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
    """A weight [N, K] in 8 bits, w ~ scales * values; `ops/int8.py` says how it is made and multiplied."""

    values: Int8Array  # [N, K], in [-127, 127]
    scales: FloatArray  # [N]; of a row with NaN or infinity NaN
