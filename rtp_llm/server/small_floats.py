"""fp32 numbers in fewer bits, to the nearest, of two as near the one with an even last bit; numpy has no such types.

bfloat16  the upper half of fp32
fp8_e4m3  1 sign, 4 exponent and 3 mantissa bits, no infinities: up to 448
fp8_e5m2  1 sign, 5 exponent and 2 mantissa bits: up to 57344

Source of the fp8 formats: Open Compute Project, OCP 8-bit Floating Point Specification. What is over the largest number
is the largest, where torch makes it NaN or infinity.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from rtp_llm.core import FloatArray

_NEGATIVE = np.uint8(0x80)


def bfloat16(rows: FloatArray) -> NDArray[np.uint16]:
    """The bits of each finite number, rounded."""
    bits = np.ascontiguousarray(rows, np.float32).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    largest = np.uint32(0x7F7F) | ((bits >> np.uint32(16)) & np.uint32(0x8000))
    return np.asarray(np.minimum(rounded, largest), np.uint16)


def fp8_e4m3(rows: FloatArray) -> NDArray[np.uint8]:
    """The bits of each finite number."""
    return _nearest(rows, mantissa_bits=3, bias=7, largest=0x7E)


def fp8_e5m2(rows: FloatArray) -> NDArray[np.uint8]:
    """The bits of each finite number."""
    return _nearest(rows, mantissa_bits=2, bias=15, largest=0x7B)


def _nearest(rows: FloatArray, mantissa_bits: int, bias: int, largest: int) -> NDArray[np.uint8]:
    middles = _middles(mantissa_bits, bias, largest)
    sizes = np.abs(np.asarray(rows, np.float64))
    below, above = (np.searchsorted(middles, sizes, side) for side in ("left", "right"))
    codes = np.where(below % 2 == 0, below, above).astype(np.uint8)  # they differ in the middle alone
    return np.where(np.signbit(rows), codes | _NEGATIVE, codes)


@cache
def _middles(mantissa_bits: int, bias: int, largest: int) -> NDArray[np.float64]:
    """Between the numbers of the codes 0 to `largest`, which ascend."""
    codes = np.arange(largest + 1)
    exponents, mantissas = codes >> mantissa_bits, codes & ((1 << mantissa_bits) - 1)
    steps = np.where(exponents > 0, mantissas + (1 << mantissa_bits), mantissas)
    numbers = np.ldexp(steps.astype(np.float64), np.maximum(exponents, 1) - bias - mantissa_bits)
    return np.asarray((numbers[:-1] + numbers[1:]) / 2)
