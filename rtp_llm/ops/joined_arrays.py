"""The arrays of a batch in one buffer, which a device gets in one copy."""

from collections.abc import Iterable, Sequence

from rtp_llm.core import Int32Array

_ALIGNMENT = 16  # int32s: kernels load faster from addresses that are multiples of 64 bytes


def offsets_of(arrays: Iterable[Int32Array]) -> tuple[list[int], int]:
    """Where each array stands in one buffer, and the buffer's length."""
    offsets, end = [], 0
    for array in arrays:
        offsets.append(end)
        end += -(-len(array) // _ALIGNMENT) * _ALIGNMENT
    return offsets, end


def write(buffer: Int32Array, arrays: Iterable[Int32Array], offsets: Sequence[int]) -> None:
    """Put the arrays where `offsets_of` says."""
    for array, offset in zip(arrays, offsets, strict=True):
        buffer[offset : offset + len(array)] = array
