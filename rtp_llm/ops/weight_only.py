"""Weights in fewer bits: what int8_weights, int4_weights, weight_dtype bf16 and act_type bf16 mean, in numpy.

A weight is cut into groups of 32 neighbours along K. A group has a scale, a bf16, and its numbers are whole multiples
of it: of -127..127 in 8 bits, of -8..7 in 4, where the scale has the sign that lets the largest number be -8 of it. So
a weight takes 8.5 or 4.5 bits. `linear` computes with the multiples as fp32, as with any other weight.

`bf16_products` rounds rows to bf16 too, just before they are multiplied, and adds up in fp32: what AMX tiles and dot
products of pairs do, but that those take denormal numbers as zero. Beside weights in 8 or 4 bits, parts=1 of `Ops.fork`
rounds rows and the multiples alike. `fp16_products` rounds nothing: a factor is the sum of its first two bf16 parts, 15
bits or more where fp16 has 11; its definition is fp32, from which each product is less than 2^-13 of it away, and
mostly 2^-16.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rtp_llm.core import FloatArray, Int8Array
from rtp_llm.ops import Quantization

GROUP = 32
Bits = Literal[4, 8]
BITS: dict[Quantization, Bits] = {"int8_weights": 8, "int4_weights": 4}
ROUNDED: tuple[Quantization, ...] = ("bf16", "bf16_products")  # weights and tables are
PARTS: dict[Quantization, int] = {"fp16_products": 2, "bf16_products": 1}  # bf16 parts of a factor; fp32 has three
_LEAST_SCALE = np.float32(1e-30)  # a smaller one counts as none: its inverse would not be finite


@dataclass(frozen=True, slots=True)
class GroupedWeight:
    """w[:, k] ~ scales[:, k // GROUP] * values[:, k]."""

    values: Int8Array  # [N, K]
    scales: FloatArray  # [N, ceil(K / GROUP)], numbers of bf16

    def dequantized(self) -> FloatArray:
        """[N, K], the weight that is computed with."""
        scales = np.repeat(self.scales, GROUP, axis=1)[:, : self.values.shape[1]]
        return self.values.astype(np.float32) * scales


@dataclass(frozen=True, slots=True)
class Bf16Weight:
    """A weight whose rows are rounded too."""

    values: FloatArray  # [N, K], numbers of bf16


def quantize_groups(weight: FloatArray, bits: Bits) -> GroupedWeight:
    """[N, K], to the nearest multiples, ties to even."""
    rows, columns = weight.shape
    padded = np.pad(np.asarray(weight, np.float32), ((0, 0), (0, -columns % GROUP)))
    groups = padded.reshape(rows, -1, GROUP)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=2, keepdims=True), axis=2)
    scales = to_bf16(np.abs(largest) / np.float32(127) if bits == 8 else largest / np.float32(-8))
    some = np.abs(scales) > _LEAST_SCALE
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=some)
    low, high = (-127, 127) if bits == 8 else (-8, 7)
    values = np.clip(np.rint(groups * inverse), low, high).astype(np.int8)
    return GroupedWeight(values.reshape(rows, -1)[:, :columns], np.where(some, scales, np.float32(0))[:, :, 0])


def to_bf16(values: FloatArray) -> FloatArray:
    """The nearest numbers of bf16, ties to even, as fp32; what is no number stays none."""
    bits: NDArray[np.uint32] = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(values), np.float32(np.nan), rounded.view(np.float32))
