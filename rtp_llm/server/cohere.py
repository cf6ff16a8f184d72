"""Cohere's embeddings. POST /v2/embed, and /v1/embed with its older answer."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal
from uuid import uuid4

import msgspec
import orjson
from msgspec import Meta

from rtp_llm.config import ServerConfig
from rtp_llm.core import ModelInfo, Params, Request, Response, TaskType
from rtp_llm.errors import InvalidRequest, RtpError
from rtp_llm.server.catalog import ModelName, one_of
from rtp_llm.server.checks import as_asked, check_count, check_dimensions, check_least
from rtp_llm.server.dialect import Dialect
from rtp_llm.server.prompts import purpose_for
from rtp_llm.server.scheduling import BodyPriority
from rtp_llm.server.vectors import SCALED, arrays, check_type, encoder

PATH, OLD_PATH = "/v2/embed", "/v1/embed"
_WANTED = one_of(TaskType.DENSE)


class ContentPart(msgspec.Struct, kw_only=True):
    """A part of an input; only text is served."""

    type: str
    text: str | None = None


class CohereInput(msgspec.Struct, kw_only=True):
    """An input in parts."""

    content: list[ContentPart]


class CohereEmbedBody(msgspec.Struct, kw_only=True):
    """What to embed: `texts`, or `inputs` in parts. Unknown fields are ignored; null means absent."""

    texts: Annotated[list[str] | None, Meta(description="what to embed")] = None
    inputs: Annotated[list[CohereInput] | None, Meta(description="instead of texts: each in parts of type text")] = None
    images: Annotated[Any, Meta(description="not served: text models have no use for them")] = None
    model: ModelName = None
    input_type: Annotated[
        str | None, Meta(description="search_query, search_document, …, or one of the checkpoint's prompts")
    ] = None
    embedding_types: Annotated[
        list[str] | None, Meta(description="any of float, int8, uint8, binary, ubinary, base64; null: float")
    ] = None
    output_dimension: Annotated[int | None, Meta(description="leading dimensions to keep; null: all")] = None
    max_tokens: Annotated[int | None, Meta(description="tokens kept of each text; null: the model's limit")] = None
    truncate: Annotated[
        Literal["NONE", "START", "END"] | None,
        Meta(description="the end that an over-long text loses; NONE: it is an error; null: END"),
    ] = None
    priority: BodyPriority = None

    @property
    def types(self) -> list[str]:
        """The kinds of vectors that are wanted, each once."""
        return list(dict.fromkeys(self.embedding_types or ["float"]))


class CohereEmbedAnswer(msgspec.Struct, kw_only=True):
    """A list of vectors by type."""

    id: str
    embeddings: dict[str, list[list[float | int] | str]]
    texts: list[str]
    meta: dict[str, Any]
    response_type: Literal["embeddings_by_type"] = "embeddings_by_type"


class CohereFloatsAnswer(msgspec.Struct, kw_only=True):
    """Of /v1/embed without `embedding_types`."""

    id: str
    embeddings: list[list[float]]
    texts: list[str]
    meta: dict[str, Any]
    response_type: Literal["embeddings_floats"] = "embeddings_floats"


def text_of(part: ContentPart, where: str) -> str:
    """The text of a part; InvalidRequest where it is none."""
    if part.type != "text" or part.text is None:
        raise InvalidRequest(f"{where}: parts of type text with a text are served, others are not", param=where)
    return part.text


def error_form(error: RtpError) -> tuple[int, bytes]:
    """Cohere's: {"message"}."""
    return error.status, orjson.dumps({"message": error.message})


def _texts(body: CohereEmbedBody) -> list[str]:
    """The texts; InvalidRequest where there are none, or something else."""
    if body.images:
        raise InvalidRequest("images: a text model is served; send texts", param="images")
    if bool(body.texts) == bool(body.inputs):
        raise InvalidRequest("texts: give either texts or inputs, with at least one text", param="texts")
    if body.texts:
        return body.texts
    texts = []
    for place, value in enumerate(body.inputs or ()):
        where = f"inputs[{place}].content"
        if not value.content:
            raise InvalidRequest(f"{where} is an empty list: give at least one part", param=where)
        texts.append("\n".join(text_of(part, where) for part in value.content))
    return texts


_CUT = "truncate to END"


def _place(body: CohereEmbedBody, info: ModelInfo, index: int) -> str:
    return f"{'texts' if body.texts else 'inputs'}[{index}]"


def to_request(body: CohereEmbedBody, info: ModelInfo, config: ServerConfig, request_id: str) -> Request:
    """What the body asks of the engine."""
    texts, dimensions = _texts(body), body.output_dimension
    check_count(len(texts), config, "texts")
    check_dimensions(dimensions, info)
    for kind in body.types:
        if kind != "base64":
            check_type(kind, None, "embedding_types")
    check_least(body.max_tokens, 1, "max_tokens")
    purpose = purpose_for(body.input_type, info, "input_type")
    params = Params(
        dimensions=as_asked(dimensions, info),
        normalize=True if any(kind in SCALED for kind in body.types) else None,
        truncate=body.truncate != "NONE",
        max_tokens=body.max_tokens,
        truncation_side={"START": "left", "END": "right"}.get(body.truncate or ""),  # type: ignore[arg-type]
        prompt_name=purpose.prompt_name,
        adapter=purpose.adapter,
    )
    return Request(inputs=texts, params=params, request_id=request_id)


def render(body: CohereEmbedBody, response: Response, info: ModelInfo) -> Iterator[bytes]:
    """Vectors by type."""
    yield b'{"embeddings":{'
    separator = b""
    for kind in body.types:
        yield separator + b"%b:" % orjson.dumps(kind)
        yield from _vectors(kind, response)
        separator = b","
    yield b"}," + _closing(body, response, "embeddings_by_type")


def render_old(body: CohereEmbedBody, response: Response, info: ModelInfo) -> Iterator[bytes]:
    """Vectors alone, unless types were asked for."""
    if body.embedding_types:
        yield from render(body, response, info)
        return
    yield b'{"embeddings":'
    yield from _vectors("float", response)
    yield b"," + _closing(body, response, "embeddings_floats")


def _vectors(kind: str, response: Response) -> Iterator[bytes]:
    encode = encoder("float", "base64") if kind == "base64" else encoder(kind, None)
    return arrays(response.outputs[TaskType.DENSE], encode)


def _closing(body: CohereEmbedBody, response: Response, response_type: str) -> bytes:
    rest = {
        "id": f"embed-{uuid4().hex}",
        "texts": _texts(body),
        "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": response.total_tokens}},
        "response_type": response_type,
    }
    return orjson.dumps(rest)[1:]


_decoder = msgspec.json.Decoder(CohereEmbedBody)
ROUTES: dict[str, Dialect[CohereEmbedBody]] = {
    PATH: Dialect(_decoder, to_request, render, _WANTED, error_form=error_form, place=_place, cut=_CUT),
    OLD_PATH: Dialect(_decoder, to_request, render_old, _WANTED, error_form=error_form, place=_place, cut=_CUT),
}
