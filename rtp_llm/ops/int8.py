"""Linear layers in 8 bits: what `--quantization int8` means, in plain numpy; the kernels agree bit for bit.

Each row of activations has a scale and a zero of its own, found when it is computed, each row of a weight a scale found
at load. The range of a row leaves out one number, its outlier, which may take more than 8 bits: in a transformer's rows
one number is often several times any other, and without it the steps are that much finer. Products are summed as
integers, so no order of summation changes a result, and a row depends on nothing else.

Some kernels add the products of two neighbours in 16 bits (VPMADDUBSW). For them a weight's neighbours, the first and
the second of a row, the third and the fourth, add up to 128 at most, so that nothing saturates: the steps of a row
whose neighbours add up to more are that much coarser.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtp_llm.core import FloatArray, QuantizedWeight
from rtp_llm.errors import CheckpointError

# Products of 255 and 127, and an outlier's, whose sum fits into 32 bits; a wider weight stays fp32.
MAX_COLUMNS = 65536
_STEPS = np.float32(254)  # one less than 8 bits have, so that both ends may be rounded outwards
_OUTLIER = np.float32(128)  # a row may be so many times as wide with its outlier
_NEIGHBOURS = 128  # times 255 it is within 16 bits
_LEAST_WIDTH = np.float32(1e-30)  # a narrower range counts as none: its inverse would not be finite


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """x ~ scales * (values - zeros); a row with NaN or infinity has the scale NaN."""

    values: NDArray[np.int32]  # [M, K], in [0, 255] but for one number of each row
    scales: FloatArray  # [M, 1]
    zeros: NDArray[np.int32]  # [M, 1]


def multiply(x: FloatArray, weight: QuantizedWeight) -> FloatArray:
    """x [M, K] in 8 bits, times the weight's transpose [K, N] -> [M, N] in fp32."""
    rows = quantize_rows(x)
    # NOTE: in float64 BLAS multiplies, and sums of integers below 2^53 are exact.
    sums = (rows.values - rows.zeros).astype(np.float64) @ weight.values.T.astype(np.float64)
    return sums.astype(np.float32) * (rows.scales * weight.scales)


def quantizes(weight: FloatArray) -> bool:
    """Whether a weight [N, K] is computed in 8 bits where int8 is asked for."""
    return weight.shape[1] <= MAX_COLUMNS


def check_quantized(weight: QuantizedWeight) -> QuantizedWeight:
    """A checkpoint's weight; CheckpointError where it is too wide for sums of 32 bits."""
    if weight.values.shape[1] > MAX_COLUMNS:
        raise CheckpointError(
            f"a weight of {weight.values.shape[1]} columns in 8 bits; up to {MAX_COLUMNS} can be computed so"
        )
    return weight


def quantize_rows(x: FloatArray) -> QuantizedRows:
    """[M, K]: 254 steps over the range of 0 and of all numbers but the outlier, that without which it is narrowest."""
    low, lower, higher, high = np.sort(np.pad(x, ((0, 0), (0, 2))), axis=1)[:, [0, 1, -2, -1], None].swapaxes(0, 1)
    with np.errstate(invalid="ignore"):
        is_high = high - higher >= lower - low
        bottom = np.where(is_high, low, lower)
        width = np.maximum(np.where(is_high, higher, high) - bottom, (high - low) / _OUTLIER)
        some = width > _LEAST_WIDTH
        inverse = np.divide(_STEPS, width, out=np.zeros_like(width), where=some)
        zeros = _nearest(-bottom * inverse)
        values = _nearest(x * inverse) + zeros
        finite = np.where(np.isfinite(x).all(axis=1, keepdims=True), np.float32(0), np.float32(np.nan))
        scales = np.where(some, width / _STEPS, np.float32(0)) + finite
    return QuantizedRows(values, scales, zeros)


def quantize_weight(weight: FloatArray, fitting_pairs: bool = False) -> QuantizedWeight:
    """[N, K]: 127 steps each way from 0, up to the row's largest magnitude; or of its largest sum of two neighbours."""
    weight = np.asarray(weight, dtype=np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        largest = np.abs(weight).max(axis=1, keepdims=True, initial=0)
        if fitting_pairs:
            largest = np.maximum(largest, _most_of_pairs(weight)[:, None])
        some = largest > _LEAST_WIDTH
        inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=some)
        values = _nearest(weight * inverse).astype(np.int8)
        scales = np.where(some, largest / np.float32(127), np.float32(0))
    return QuantizedWeight(values, np.where(np.isfinite(largest), scales, np.float32(np.nan))[:, 0])


def fit_pairs(weight: QuantizedWeight) -> QuantizedWeight:
    """A weight that was quantised without regard to neighbours: rows where they add up to too much are rounded anew."""
    most = _most_of_pairs(weight.values.astype(np.int16))
    rows = np.flatnonzero(most > _NEIGHBOURS)
    if not rows.size:
        return weight
    values, scales, factors = weight.values.copy(), weight.scales.copy(), np.float32(127) / most[rows]
    values[rows] = np.rint(values[rows] * factors[:, None])
    scales[rows] /= factors
    return QuantizedWeight(values, scales)


def _most_of_pairs(weight: NDArray[Any]) -> NDArray[Any]:
    """Of [N, K]: the largest magnitude of a sum of two neighbours in each row."""
    pairs = weight[:, 0 : weight.shape[1] - 1 : 2] + weight[:, 1::2]
    return np.abs(pairs).max(axis=1, initial=0)


def _nearest(x: FloatArray) -> NDArray[Any]:
    """To int32, ties to even; NaN and infinity, whose row has the scale NaN, to 0."""
    return np.rint(np.nan_to_num(x, posinf=0, neginf=0)).astype(np.int32)
