"""vLLM's vectors as bytes: `embed_dtype` and `endianness` of base64, and answers that are nothing but bytes.

encoding_format bytes       the rows end to end; the header `metadata` says in JSON what would stand around them
encoding_format bytes_only  the same without the header, which clients may not take when there are many rows
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal
from uuid import uuid4

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from rtp_llm.core import FloatArray, ModelInfo, Response
from rtp_llm.errors import InvalidRequest
from rtp_llm.server.chat import ChatBody
from rtp_llm.server.cuts import truncated_header
from rtp_llm.server.errors import Headers
from rtp_llm.server.small_floats import bfloat16, fp8_e4m3, fp8_e5m2
from rtp_llm.server.usage import usage
from rtp_llm.server.vectors import as_base64, converted, encoder, finite

CONTENT_TYPE = b"application/octet-stream"
EmbedDtype = Literal["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"]
_SMALL: dict[str, Callable[[FloatArray], NDArray[Any]]] = {
    "bfloat16": bfloat16,
    "fp8_e4m3": fp8_e4m3,
    "fp8_e5m2": fp8_e5m2,
}
_MAX_DESCRIBED = 256  # inputs: clients read headers of up to some 64 KB, and each takes about 100 bytes


class EncodedBody(ChatBody, kw_only=True):
    """How vectors are written."""

    encoding_format: Annotated[
        Literal["float", "base64", "bytes", "bytes_only"] | None,
        Meta(
            description="base64: little-endian float32, unless embed_dtype and endianness say otherwise; bytes, "
            "bytes_only: vLLM's raw answers, with and without the header `metadata`; null: float"
        ),
    ] = None
    embed_dtype: Annotated[
        EmbedDtype | None, Meta(description="vLLM's: the numbers of base64 and bytes; null: float32")
    ] = None
    endianness: Annotated[
        Literal["native", "big", "little"] | None, Meta(description="vLLM's: of base64 and bytes; null: little")
    ] = None

    @property
    def is_bytes(self) -> bool:
        """Whether the answer is no JSON."""
        return self.encoding_format in ("bytes", "bytes_only")

    @property
    def is_packed(self) -> bool:
        """Whether numbers are written as vLLM alone can ask for them."""
        return self.is_bytes or self.embed_dtype not in (None, "float32") or self.endianness not in (None, "little")


def packed(rows: FloatArray, body: EncodedBody) -> NDArray[np.uint8]:
    """The bytes of the numbers, one after the other."""
    kind = body.embed_dtype or "float32"
    numbers = _SMALL[kind](rows) if kind in _SMALL else converted(rows, kind)
    order = sys.byteorder if body.endianness == "native" else body.endianness
    numbers = numbers.astype(numbers.dtype.newbyteorder(">" if order == "big" else "<"))
    return np.ascontiguousarray(numbers).reshape(-1).view(np.uint8)


def row_encoder(body: EncodedBody, kind: str, encoding: str | None) -> Callable[[FloatArray], bytes]:
    """One vector -> its JSON; see `encoder`."""
    if encoding == "base64" and body.is_packed:
        return lambda row: as_base64(packed(row, body))
    return encoder(kind, encoding)


def check_described(body: EncodedBody, count: int) -> None:
    """InvalidRequest for more inputs than a header can tell of."""
    if body.encoding_format == "bytes" and count > _MAX_DESCRIBED:
        message = (
            f"encoding_format: bytes describes at most {_MAX_DESCRIBED} inputs in a header, these are {count}; "
            "send fewer at a time, or ask for bytes_only"
        )
        raise InvalidRequest(message, param="encoding_format")


def render_bytes(body: EncodedBody, response: Response, info: ModelInfo) -> Iterator[bytes]:
    """The rows of all inputs."""
    for index, rows in enumerate(_outputs(response)):
        yield packed(finite(rows, index), body).tobytes()


def metadata(prefix: str) -> Callable[[EncodedBody, Response, ModelInfo], Headers]:
    """The header of an answer whose ids begin with `prefix`; bytes_only has none."""

    def headers(body: EncodedBody, response: Response, info: ModelInfo) -> Headers:
        own = [truncated_header(response)]
        if body.encoding_format == "bytes_only":
            return own
        told = {
            "id": f"{prefix}-{uuid4().hex}",
            "created": info.created,
            "model": info.name,
            "data": list(_described(body, _outputs(response))),
            "usage": usage(response),
        }
        return [*own, (b"metadata", json.dumps(told).encode("ascii"))]

    return headers


def _outputs(response: Response) -> Sequence[FloatArray]:
    ((_, outputs),) = response.outputs.items()
    rows: Sequence[FloatArray] = outputs
    return rows


def _described(body: EncodedBody, outputs: Sequence[FloatArray]) -> Iterator[dict[str, Any]]:
    kind, start = body.embed_dtype or "float32", 0
    width = {"float32": 4, "float16": 2, "bfloat16": 2}.get(kind, 1)
    for index, rows in enumerate(outputs):
        stop = start + rows.size * width
        place = {"start": start, "end": stop, "shape": list(rows.shape)}
        yield {"index": index, "embed_dtype": kind, "endianness": body.endianness or "little", **place}
        start = stop
