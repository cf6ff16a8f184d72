"""Vectors on the wire: JSON numbers, base64 or raw bytes, of seven types.

float, float32  as computed
float16         rounded to half precision, and cut at its largest number, 65504
int8            of the unit vector, round(127 * x / min(1, 8 / sqrt(d))), cut at ±127: one scale for all vectors of d
                dimensions, so that cosine, dot product and distance stay comparable, whatever else is in the request
uint8           int8 + 128
ubinary         a bit a dimension, x > 0, the first in the highest bit of the first byte
binary          ubinary - 128, as signed bytes

Both binary types equal sentence_transformers' quantize_embeddings; its int8 depends on the texts it is calibrated with.
"""

import math
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any, Literal, TypeAlias, get_args

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from rtp_llm.core import FloatArray
from rtp_llm.errors import EngineFailure, InvalidRequest

_bytes_encoder = msgspec.json.Encoder()
VectorType: TypeAlias = Literal["float", "float32", "float16", "int8", "uint8", "binary", "ubinary"]
VECTOR_TYPES: tuple[str, ...] = get_args(VectorType)
SCALED: tuple[str, ...] = ("int8", "uint8")  # made of unit vectors
# A JSON number of fp32 with its comma, and one in base64 or of a narrower type: no less than most take.
NUMBER_BYTES, PACKED_BYTES = 12, 6
# Vectors that are written between two turns of the event loop's others: 0.7 ms of floats at 384 dimensions.
VECTORS_A_PIECE = 64
_LARGEST_HALF = np.float32(65504)
_RANGE = 8.0  # standard deviations of a unit vector's components that int8 covers


def converted(rows: FloatArray, kind: str) -> NDArray[Any]:
    """[…, d] fp32 -> the same as `kind`, little-endian; the binary kinds have a byte for eight dimensions."""
    if kind in ("float", "float32"):
        return np.ascontiguousarray(rows, "<f4")
    if kind == "float16":
        return np.ascontiguousarray(np.clip(rows, -_LARGEST_HALF, _LARGEST_HALF), "<f2")
    if kind in SCALED:
        scale = 127 * np.sqrt(rows.shape[-1]) / _RANGE
        levels = np.clip(np.rint(rows * np.float32(max(scale, 127))), -127, 127)
        return np.asarray(levels, np.int8) if kind == "int8" else np.asarray(levels + 128, np.uint8)
    packed = np.packbits(rows > 0, axis=-1)
    return packed if kind == "ubinary" else np.asarray((packed ^ np.uint8(128)).view(np.int8))


def encoder(kind: str, encoding_format: str | None) -> Callable[[FloatArray], bytes]:
    """One vector -> its JSON: an array of numbers, or with base64 a string."""
    encode = as_base64 if encoding_format == "base64" else as_numbers
    if kind == "float" or kind == "float32":
        return encode
    return lambda row: encode(converted(row, kind))


def finite(row: FloatArray, index: int) -> FloatArray:
    """`row`, the numbers of one input; EngineFailure where one is none.

    JSON has no NaN: it would leave as null, and a client would store it.
    """
    # NOTE: the dot product costs a request 4 us less than isfinite; it may overflow on numbers that are in order.
    if not math.isfinite(np.vdot(row, row)) and not np.isfinite(row).all():
        raise EngineFailure(f"the vector of input[{index}] is not finite (NaN or Inf)", param=f"input[{index}]")
    return row


def check_finite(rows: FloatArray, start: int) -> None:
    """`finite` of the numbers [n, d] of the inputs from `start` on, at once where all are in order."""
    if not math.isfinite(np.vdot(rows, rows)):  # flattens them
        for index, row in enumerate(rows, start):
            finite(row, index)


def as_base64(row: NDArray[Any]) -> bytes:
    """A JSON string: the row, which is little-endian and contiguous, in base64."""
    return _bytes_encoder.encode(row.tobytes())  # NOTE: binascii takes half as long again


def as_numbers(row: NDArray[Any]) -> bytes:
    """A JSON array, each number in the shortest form that gives the same value back."""
    return orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)


def arrays(rows: FloatArray, encode: Callable[[FloatArray], bytes] = as_numbers) -> Iterator[bytes]:
    """[n, d] fp32 -> a JSON array of what `encode` makes of each row, some rows at a time; EngineFailure: `finite`."""
    rows, opening = np.ascontiguousarray(rows, "<f4"), b"["
    for start in range(0, len(rows), VECTORS_A_PIECE):
        piece = rows[start : start + VECTORS_A_PIECE]
        check_finite(piece, start)
        yield opening + b",".join([encode(row) for row in piece])
        opening = b","
    yield b"]" if len(rows) else b"[]"


def raw_bytes(rows: FloatArray, kind: str) -> Iterator[bytes]:
    """The rows end to end."""
    yield converted(rows, kind).tobytes()


def npy_file(rows: FloatArray, kind: str) -> Iterator[bytes]:
    """A file for numpy.load: [n, ·]."""
    file = BytesIO()
    np.save(file, converted(rows, kind), allow_pickle=False)
    yield file.getvalue()


def check_type(kind: str, normalize: bool | None, param: str) -> None:
    """InvalidRequest for an unknown type, or for a scaled one of vectors that are not to be normalised."""
    if kind not in VECTOR_TYPES:
        raise InvalidRequest(f"{param}: {kind!r:.100} is not one of {', '.join(VECTOR_TYPES)}", param=param)
    if kind in SCALED and normalize is False:
        raise InvalidRequest(f"{param}: {kind} is made of unit vectors; leave normalize out", param=param)
