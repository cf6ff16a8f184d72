"""TEI's /embed, /embed_all, /embed_sparse and /similarity."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any

import msgspec
import numpy as np
import orjson
from msgspec import Meta

from rtp_llm.config import ServerConfig
from rtp_llm.core import Input, ModelInfo, Params, Request, Response, TaskType
from rtp_llm.errors import InvalidRequest
from rtp_llm.server.binary import FORMS, binary
from rtp_llm.server.catalog import ModelName, one_of
from rtp_llm.server.checks import check_dimensions, check_prompt_name
from rtp_llm.server.dialect import Body, Dialect, Truncate
from rtp_llm.server.tei import frame
from rtp_llm.server.tei.frame import PromptName, Truncation
from rtp_llm.server.token_ids import check_ids
from rtp_llm.server.vectors import NUMBER_BYTES, VECTORS_A_PIECE

Inputs = Annotated[
    str | list[str | int | list[int]],
    Meta(description="a text, one sequence of the model's own token ids, or a list of texts and such sequences"),
]


class EmbedAllBody(msgspec.Struct, kw_only=True):
    """Of /embed_all and /embed_sparse. Unknown fields are ignored; null means absent."""

    inputs: Inputs
    truncate: Truncate = None
    truncation_direction: Truncation = None
    prompt_name: PromptName = None
    model: ModelName = None


class EmbedBody(EmbedAllBody, kw_only=True):
    """Of /embed."""

    normalize: Annotated[bool | None, Meta(description="L2-normalise; null: true")] = None
    dimensions: Annotated[int | None, Meta(description="leading dimensions to keep; null: all")] = None


class SimilarityInputs(msgspec.Struct, kw_only=True):
    """One sentence, and those that it is compared with."""

    source_sentence: str
    sentences: list[str]


class SimilarityParameters(msgspec.Struct, kw_only=True):
    """How the sentences are read."""

    truncate: Truncate = None
    truncation_direction: Truncation = None
    prompt_name: PromptName = None


class SentenceSimilarityBody(msgspec.Struct, kw_only=True):
    """Of /similarity."""

    inputs: Annotated[SimilarityInputs, Meta(description="one sentence, and those it is compared with")]
    parameters: Annotated[SimilarityParameters | None, Meta(description="how the sentences are read")] = None
    model: ModelName = None


class SparseValue(msgspec.Struct, kw_only=True):
    """A token id and its weight."""

    index: int
    value: float


def _inputs(body: EmbedAllBody, info: ModelInfo, config: ServerConfig) -> list[Input]:
    """Texts and token ids, in any mixture; ids are the model's input as they stand."""
    if isinstance(body.inputs, str):
        return [body.inputs]
    frame.check_inputs(body.inputs, config)
    if isinstance(body.inputs[0], int):
        ids: Any = body.inputs
        wrong = next((place for place, value in enumerate(ids) if not isinstance(value, int)), None)
        if wrong is not None:
            raise InvalidRequest(f"inputs[{wrong}] is no token id, and inputs[0] is one", param=f"inputs[{wrong}]")
        check_ids(ids, "inputs", info.vocab_size)
        return [ids]
    for place, value in enumerate(body.inputs):
        if isinstance(value, int):
            raise InvalidRequest(f"inputs[{place}] is a token id beside texts or sequences", param=f"inputs[{place}]")
        if isinstance(value, list):
            check_ids(value, f"inputs[{place}]", info.vocab_size)
    inputs: Any = body.inputs
    return list(inputs)


def _params(body: EmbedAllBody | SimilarityParameters, info: ModelInfo) -> Params:
    check_prompt_name(body.prompt_name, info)
    return replace(frame.truncation(body.truncate, body.truncation_direction), prompt_name=body.prompt_name)


def _embed(body: EmbedBody, info: ModelInfo, config: ServerConfig, request_id: str) -> Request:
    check_dimensions(body.dimensions, info)
    params = replace(_params(body, info), normalize=body.normalize is not False, dimensions=body.dimensions)
    return Request(inputs=_inputs(body, info, config), params=params, request_id=request_id)


def _embed_all(body: EmbedAllBody, info: ModelInfo, config: ServerConfig, request_id: str) -> Request:
    params = replace(_params(body, info), normalize=False)
    return Request(inputs=_inputs(body, info, config), tasks=(TaskType.TOKENS,), params=params, request_id=request_id)


def _embed_sparse(body: EmbedAllBody, info: ModelInfo, config: ServerConfig, request_id: str) -> Request:
    inputs, params = _inputs(body, info, config), _params(body, info)
    return Request(inputs=inputs, tasks=(TaskType.SPARSE,), params=params, request_id=request_id)


def _similarity(body: SentenceSimilarityBody, info: ModelInfo, config: ServerConfig, request_id: str) -> Request:
    frame.check_inputs(body.inputs.sentences, config, "inputs.sentences")
    inputs = [body.inputs.source_sentence, *body.inputs.sentences]
    frame.check_inputs(inputs, config, "inputs.sentences")
    params = replace(_params(body.parameters or SimilarityParameters(), info), normalize=True)
    return Request(inputs=inputs, params=params, request_id=request_id)


def _render_vectors(body: EmbedBody, response: Response, info: ModelInfo) -> Iterator[bytes]:
    matrix = response.outputs[TaskType.DENSE]
    opening = b"["
    for start in range(0, len(matrix), VECTORS_A_PIECE):
        piece = matrix[start : start + VECTORS_A_PIECE]
        rows = orjson.dumps(np.ascontiguousarray(piece, "<f4"), option=orjson.OPT_SERIALIZE_NUMPY)
        yield opening + rows[1:-1]
        opening = b","
    yield b"]"


def _render_matrices(body: EmbedAllBody, response: Response, info: ModelInfo) -> Iterator[bytes]:
    opening = b"["
    for vectors in response.outputs[TaskType.TOKENS]:
        yield opening + orjson.dumps(np.ascontiguousarray(vectors, "<f4"), option=orjson.OPT_SERIALIZE_NUMPY)
        opening = b","
    yield b"]"


def _render_sparse(body: EmbedAllBody, response: Response, info: ModelInfo) -> Iterator[bytes]:
    opening = b"["
    for vector in response.outputs[TaskType.SPARSE]:
        pairs = zip(vector.indices.tolist(), vector.values, strict=True)
        values = [{"index": index, "value": value} for index, value in pairs]
        yield opening + orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)
        opening = b","
    yield b"]"


def _render_similarity(body: SentenceSimilarityBody, response: Response, info: ModelInfo) -> Iterator[bytes]:
    rows = response.outputs[TaskType.DENSE]
    yield orjson.dumps(rows[1:] @ rows[0], option=orjson.OPT_SERIALIZE_NUMPY)


def _also_binary(dialect: Dialect[Body]) -> Dialect[Body]:
    """A dialect that heeds Accept; of what is no dense vector it says that there are no bytes."""
    return replace(dialect, by_accept={form: binary(dialect, form) for form in FORMS})


_all_decoder = msgspec.json.Decoder(EmbedAllBody)
EMBED: Dialect[EmbedBody] = _also_binary(
    frame.dialect(msgspec.json.Decoder(EmbedBody), _embed, _render_vectors, one_of(TaskType.DENSE))
)
EMBED_ALL: Dialect[EmbedAllBody] = _also_binary(
    replace(
        frame.dialect(_all_decoder, _embed_all, _render_matrices, one_of(TaskType.TOKENS)),
        number_bytes=lambda body: NUMBER_BYTES,
    )
)
EMBED_SPARSE: Dialect[EmbedAllBody] = _also_binary(
    frame.dialect(_all_decoder, _embed_sparse, _render_sparse, one_of(TaskType.SPARSE))
)
SIMILARITY: Dialect[SentenceSimilarityBody] = frame.dialect(
    msgspec.json.Decoder(SentenceSimilarityBody),
    _similarity,
    _render_similarity,
    one_of(TaskType.DENSE),
    place=lambda body, info, index: f"inputs.sentences[{index - 1}]" if index else "inputs.source_sentence",
)
