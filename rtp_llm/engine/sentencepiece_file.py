"""A sentencepiece file (`*.model`) -> its pieces, and what it says of how they are found.

Of sentencepiece_model.proto, a protobuf message, nine fields matter. They are read here by the few rules of its wire
format: protobuf and sentencepiece would be dependencies of every installation for a file that few folders have alone.
Nothing of a damaged file is believed: lengths end where the data does, and a charsmap is walked before it is used.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rtp_llm.engine.charsmap import check_charsmap
from rtp_llm.errors import CheckpointError

# The largest that exist are of a quarter of a million pieces, in 5 MB.
_MAX_BYTES = 64 << 20
_NUMBER, _BYTES, _SIZES = 0, 2, {1: 8, 5: 4}  # wire types; of the others, how many bytes they have
_FLOAT = struct.Struct("<f")
# Number of a field << 3 | its wire type: of the message, of a piece, of the trainer's and the normalizer's settings.
_PIECES, _TRAINER, _NORMALIZER = 0x0A, 0x12, 0x1A
_TEXT, _SCORE, _KIND = 0x0A, 0x15, 0x18
_MODEL_TYPE, _UNK_ID = 0x18, 40 << 3
_CHARSMAP = 0x12
UNIGRAM, NORMAL, CONTROL, USER_DEFINED = 1, 1, 3, 4


class Piece(NamedTuple):
    """A token, the logarithm of its probability, and its kind: NORMAL, CONTROL, USER_DEFINED or others."""

    text: str
    score: float
    kind: int


class Pieces(NamedTuple):
    """All tokens by their ids; `model_type` is UNIGRAM or another; `charsmap` is b"" where characters stay."""

    pieces: list[Piece]
    model_type: int
    unk_id: int
    charsmap: bytes


def read_pieces(path: Path) -> Pieces:
    """What a sentencepiece file says; CheckpointError where it is damaged, or none at all."""
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise CheckpointError(f"{path}: {size:,} bytes is too large, the limit is {_MAX_BYTES:,}")
        found = _message(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not a sentencepiece file: {error}; download it again") from error
    return found


def _message(data: bytes) -> Pieces:
    pieces: list[Piece] = []
    seen: set[int] = set()
    model_type, unk_id, charsmap = UNIGRAM, 0, b""  # where the file does not say
    for tag, _, value in _fields(data):
        seen.add(tag)
        if tag == _PIECES:
            pieces.append(_piece(value))
        elif tag == _TRAINER:
            settings = {key: number for key, number, _ in _fields(value)}
            model_type, unk_id = settings.get(_MODEL_TYPE, model_type), settings.get(_UNK_ID, unk_id)
        elif tag == _NORMALIZER:
            charsmap = {key: content for key, _, content in _fields(value)}.get(_CHARSMAP, charsmap)
    if not pieces:
        raise ValueError("it has no pieces")
    if charsmap:
        check_charsmap(charsmap)
    if not seen.issuperset((_TRAINER, _NORMALIZER)):  # as where it was cut between two fields
        raise ValueError("it has not both of its settings, the trainer's and the normalizer's")
    return Pieces(pieces, model_type, unk_id, charsmap)


def _piece(data: bytes) -> Piece:
    text, score, kind = "", 0.0, NORMAL
    for tag, number, value in _fields(data):
        if tag == _TEXT:
            text = value.decode("utf-8")
        elif tag == _SCORE:
            score = _FLOAT.unpack(value)[0]
        elif tag == _KIND:
            kind = number
    if not text or not math.isfinite(score):
        raise ValueError(f"a piece is {text!r:.80} with a score of {score}")
    return Piece(text, score, kind)


def _fields(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Tag, and value as a number or as bytes, of each field of a message. ValueError where it is damaged.

    Source: protobuf.dev, "Encoding".
    """
    place, end = 0, len(data)
    while place < end:
        tag, place = _number(data, place)
        wire_type, number, size = tag & 7, 0, 0
        if wire_type == _NUMBER:
            number, place = _number(data, place)
        elif wire_type == _BYTES:
            size, place = _number(data, place)
        elif wire_type in _SIZES:
            size = _SIZES[wire_type]
        else:
            raise ValueError(f"a field is of wire type {wire_type}, which sentencepiece does not write")
        if not 0 <= size <= end - place or tag < 8:
            raise ValueError("a field has no number, or ends behind the end")
        yield tag, number, data[place : place + size]
        place += size


def _number(data: bytes, place: int) -> tuple[int, int]:
    """The number of 64 bits with a sign that begins at `place`, and where it has ended.

    It has seven bits a byte, the lowest first; its last byte alone is below 128, and it has at most ten.
    """
    if place < len(data) and data[place] < 128:  # most are of one byte, and a file has a million
        return data[place], place + 1
    value = 0
    for i, byte in enumerate(data[place : place + 10]):
        value |= (byte & 127) << 7 * i
        if byte < 128:
            value &= (1 << 64) - 1
            return value - (value >> 63 << 64), place + i + 1
    raise ValueError("it ends inside a number, or a number has more than ten bytes")
