"""RTP-LLM's embeddings of every kind: one by the path, or several from one forward by `output`.

POST /v1/embeddings (the kind that the checkpoint offers first), /v1/embeddings/{dense,sparse,colbert}; and Jina's form
of the last, /v1/multi-vector, which `return_multivector` asks for on the first.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import orjson
from msgspec import Meta

from rtp_llm.config import ServerConfig
from rtp_llm.core import FloatArray, ModelInfo, Request, Response, TaskType
from rtp_llm.errors import InvalidRequest
from rtp_llm.server import openai
from rtp_llm.server.binary import FORMS, binary
from rtp_llm.server.catalog import Wanted, one_of
from rtp_llm.server.chat import input_place, rendered
from rtp_llm.server.dialect import Dialect
from rtp_llm.server.errors import shared_form
from rtp_llm.server.openai import EmbeddingsBody
from rtp_llm.server.packed import CONTENT_TYPE, check_described, metadata, render_bytes, row_encoder
from rtp_llm.server.sparse import weights, with_sparse
from rtp_llm.server.usage import Usage, usage_json
from rtp_llm.server.vectors import NUMBER_BYTES, PACKED_BYTES, VECTORS_A_PIECE

PATHS: dict[str, TaskType | None] = {
    "/v1/embeddings": None,
    "/embeddings": None,
    "/v1/embeddings/dense": TaskType.DENSE,
    "/v1/embeddings/sparse": TaskType.SPARSE,
    "/v1/embeddings/colbert": TaskType.COLBERT,
}
MULTI_VECTOR = "/v1/multi-vector"
_MULTI = "embeddings"  # Jina's word, of the item and of its vectors
KINDS = (TaskType.DENSE, TaskType.SPARSE, TaskType.COLBERT, TaskType.TOKENS)
# The item's `object` for a kind asked for by its path, and the item's key for one asked for in `output`.
_OBJECTS = {TaskType.SPARSE: "sparse_embedding", TaskType.COLBERT: "colbert_embedding"}
_KEYS = {TaskType.DENSE: "embedding", TaskType.TOKENS: "token_embeddings", **_OBJECTS}
_DENSE_FIRST: Wanted = (*one_of(TaskType.DENSE), *one_of(*KINDS))
_PIECE_BYTES = 256 << 10  # some milliseconds of rendering
_VECTOR = {"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string"}]}
_VECTORS = {"type": "array", "items": _VECTOR}
_ARRAYS = {
    "type": "object",
    "required": ["indices", "values"],
    "properties": {
        "indices": {"type": "array", "items": {"type": "integer"}},
        "values": {"type": "array", "items": {"type": "number"}},
        "tokens": {"type": "array", "items": {"type": "string"}},
    },
}
_WEIGHTS = {"anyOf": [_ARRAYS, {"type": "object", "additionalProperties": {"type": "number"}}]}


class MultiVectorBody(EmbeddingsBody, kw_only=True):
    """Of Jina's /v1/multi-vector."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.return_multivector = True


_decoder = msgspec.json.Decoder(EmbeddingsBody, strict=False)
_multi_decoder: msgspec.json.Decoder[EmbeddingsBody] = msgspec.json.Decoder(MultiVectorBody, strict=False)


class KindItem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One input's embeddings: one kind in `embedding`, with `output` each kind under its own name, Jina's several
    vectors in `embeddings`.
    """

    object: Literal["embedding", "sparse_embedding", "colbert_embedding", "embeddings"]
    index: int
    embedding: Annotated[Any, Meta(extra_json_schema={"anyOf": [_VECTOR, _VECTORS, _WEIGHTS]})] = msgspec.UNSET
    embeddings: Annotated[Any, Meta(extra_json_schema=_VECTORS)] = msgspec.UNSET
    sparse_embedding: Annotated[Any, Meta(extra_json_schema=_WEIGHTS)] = msgspec.UNSET
    colbert_embedding: Annotated[Any, Meta(extra_json_schema=_VECTORS)] = msgspec.UNSET
    token_embeddings: Annotated[Any, Meta(extra_json_schema=_VECTORS)] = msgspec.UNSET
    token_ids: list[int] = []
    truncated: bool = False


class KindsAnswer(msgspec.Struct, kw_only=True):
    """An item per input, in the order of the inputs."""

    object: Literal["list"]
    data: list[KindItem]
    model: str
    usage: Usage


def default_kind(info: ModelInfo) -> TaskType:
    """The first kind that the checkpoint offers; dense where it offers none, which the engine then refuses."""
    for task in info.tasks:
        if task in KINDS:
            return task
    return TaskType.DENSE


def dialect(kind: TaskType | None) -> Dialect[EmbeddingsBody]:
    """The dialect of a path that stands for `kind`; None: for the checkpoint's first."""
    plain: Dialect[EmbeddingsBody] = Dialect(
        _decoder,
        partial(_request, kind),
        render,
        lambda body: _wanted(body, kind),
        error_form=shared_form,
        tells_cuts=True,
        prepare=rendered,
        place=input_place,
        number_bytes=_number_bytes,
    )
    of_numbers = replace(plain, wanted=one_of(TaskType.DENSE))
    by_accept = {form: binary(of_numbers, form, lambda body: body.vector_type) for form in FORMS}
    dense = by_accept[CONTENT_TYPE]
    raw = replace(dense, to_request=partial(_described, dense), render=render_bytes, own_headers=metadata("embd"))
    return replace(plain, by_accept=by_accept, by_body=lambda body: raw if body.is_bytes else None)


def _request(
    kind: TaskType | None, body: EmbeddingsBody, info: ModelInfo, config: ServerConfig, request_id: str
) -> Request:
    request = openai.to_request(body, info, config, request_id)
    tasks = _tasks(body, info, kind)
    if tasks == request.tasks:
        return request
    return replace(request, tasks=tasks, params=with_sparse(request.params, body))


def _described(
    dense: Dialect[EmbeddingsBody], body: EmbeddingsBody, info: ModelInfo, config: ServerConfig, request_id: str
) -> Request:
    """A dense one whose answer tells of itself in a header."""
    request = dense.to_request(body, info, config, request_id)
    check_described(body, len(request.inputs))
    return request


def multi_vector() -> Dialect[EmbeddingsBody]:
    """The dialect of Jina's path, whose bodies ask for several vectors by it."""
    return replace(dialect(TaskType.COLBERT), decoder=_multi_decoder)


def _wanted(body: EmbeddingsBody, kind: TaskType | None) -> Wanted:
    kind = TaskType.COLBERT if _is_multi(body, kind) else kind
    return one_of(kind) if kind else _DENSE_FIRST


def _is_multi(body: EmbeddingsBody, kind: TaskType | None) -> bool:
    """Whether a body on a path that stands for `kind` asks for several vectors in Jina's words."""
    return bool(body.return_multivector) and body.output is None and kind in (None, TaskType.COLBERT)


def _number_bytes(body: EmbeddingsBody) -> int:
    is_long = body.encoding != "base64" and body.vector_type in ("float", "float32", "float16")
    return NUMBER_BYTES if is_long else PACKED_BYTES


def _tasks(body: EmbeddingsBody, info: ModelInfo, kind: TaskType | None) -> tuple[TaskType, ...]:
    if _is_multi(body, kind):
        return (TaskType.COLBERT,)
    if body.output is None:
        return (kind or default_kind(info),)
    names = {task.value: task for task in KINDS}
    for place, name in enumerate(body.output):
        if name not in names:
            param = f"output[{place}]"
            raise InvalidRequest(f"{param}: {name!r:.100} is not one of {', '.join(names)}", param=param)
    if not body.output:
        raise InvalidRequest(f"output is empty: name at least one of {', '.join(names)}", param="output")
    return tuple(dict.fromkeys(names[name] for name in body.output))


def render(body: EmbeddingsBody, response: Response, info: ModelInfo) -> Iterator[bytes]:
    """The answer; a part of it is as long as the event loop may be kept."""
    if body.output is None and TaskType.DENSE in response.outputs:
        return openai.render(body, response, info)
    return _joined(_parts(body, response, info))


def _joined(parts: Iterator[bytes]) -> Iterator[bytes]:
    """The parts in pieces of about `_PIECE_BYTES`."""
    piece = bytearray()
    for part in parts:
        piece += part
        if len(piece) >= _PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
    yield bytes(piece)


def _parts(body: EmbeddingsBody, response: Response, info: ModelInfo) -> Iterator[bytes]:
    separator = b'{"object":"list","data":['
    for index in range(len(response.num_tokens)):
        yield separator
        yield from _item(body, response, index)
        separator = b","
    yield b'],"model":%b,"usage":%b}' % (orjson.dumps(info.name), usage_json(response))


def _item(body: EmbeddingsBody, response: Response, index: int) -> Iterator[bytes]:
    only = next(iter(response.outputs))
    multi = _MULTI if _is_multi(body, only) else None
    name = "embedding" if body.output is not None else multi or _OBJECTS.get(only, "embedding")
    yield b'{"object":"%b","index":%d' % (name.encode(), index)
    for task, outputs in response.outputs.items():
        yield b',"%b":' % (_KEYS[task] if body.output is not None else multi or "embedding").encode()
        if task is TaskType.SPARSE:
            yield weights(outputs[index], body)
        elif task is TaskType.DENSE:
            yield _vectors(outputs[index : index + 1], body)
        else:
            yield from _matrix(outputs[index], body)
        if task is TaskType.TOKENS:
            yield b',"token_ids":%b' % orjson.dumps(response.input_ids[index].tolist())
    yield b',"truncated":true}' if response.truncated[index] else b"}"


def _matrix(rows: FloatArray, body: EmbeddingsBody) -> Iterator[bytes]:
    """[[…], …], some vectors at a time."""
    separator = b"["
    for start in range(0, len(rows), VECTORS_A_PIECE):
        yield separator
        yield _vectors(rows[start : start + VECTORS_A_PIECE], body)
        separator = b","
    yield b"]" if len(rows) else b"[]"


def _vectors(rows: FloatArray, body: EmbeddingsBody) -> bytes:
    """Vectors with commas between."""
    encode = row_encoder(body, body.vector_type, body.encoding)
    return b",".join(encode(row) for row in np.ascontiguousarray(rows, dtype="<f4"))
