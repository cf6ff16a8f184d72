"""OpenAI's embeddings, with RTP-LLM's `prompt` and `extra_configs` and this server's own options.

Their paths are in rtp_llm/server/embeddings.py.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import orjson
from msgspec import Meta, UnsetType

from rtp_llm.config import ServerConfig
from rtp_llm.core import Chunking, Input, ModelInfo, Params, Request, Response, TaskType
from rtp_llm.errors import InvalidRequest
from rtp_llm.server.catalog import ModelName
from rtp_llm.server.chat import Inputs, TextObject
from rtp_llm.server.checks import as_asked, check_dimensions, check_inputs, check_prompt_name, max_tokens_of
from rtp_llm.server.dialect import Side
from rtp_llm.server.packed import row_encoder
from rtp_llm.server.prompts import purpose_of_all
from rtp_llm.server.sparse import SparseBody
from rtp_llm.server.token_ids import check_ids
from rtp_llm.server.usage import Usage, usage_json
from rtp_llm.server.vectors import SCALED, VECTORS_A_PIECE, VectorType, check_finite, check_type

_LISTED_PARAMS = ("embedding_types", "embedding_type", "encoding_type")
_TYPE_PARAMS = ("output_dtype", *_LISTED_PARAMS)
# NVIDIA's words for what becomes of an over-long input.
_LOST_END: dict[Any, Literal["left", "right"]] = {"START": "left", "END": "right"}


class ExtraConfigs(msgspec.Struct):
    """RTP-LLM's per-request settings; what concerns generation or profiling is ignored."""

    tokenizer_config: Annotated[
        dict[str, Any] | None,
        Meta(
            description="add_special_tokens false: no [CLS], no [SEP]",
            extra_json_schema={
                "properties": {"add_special_tokens": {"type": ["boolean", "null"]}},
                "additionalProperties": False,
            },
        ),
    ] = None


class EmbeddingsBody(SparseBody, kw_only=True):
    """What to embed, and how. Unknown fields are ignored; null means absent."""

    model: ModelName = None
    dimensions: Annotated[
        int | None,
        Meta(
            description="leading dimensions to keep (Matryoshka), normalised again; 1 to the model's own; 0, null: all"
        ),
    ] = None
    prompt: Annotated[str | None, Meta(description="text put before each input; empty: nothing")] = None
    prompt_name: Annotated[str | None, Meta(description="one of the checkpoint's prompts")] = None
    truncate: Annotated[
        bool | Literal["NONE", "START", "END"] | None,
        Meta(
            description="false, NONE: an input over the limit is an error; START, END: the end that it loses (NVIDIA's)"
        ),
    ] = None
    truncation_side: Side = None
    normalize: Annotated[
        bool | None, Meta(description="true: L2-normalise; false: do not; null: as the checkpoint says")
    ] = None
    input_type: Annotated[
        str | None,
        Meta(description="what the inputs are for: query, document, …; by it go prompt, route and adapter"),
    ] = None
    task: Annotated[str | None, Meta(description="Jina's input_type: by it go the prompt and the adapter (LoRA)")] = (
        None
    )
    lora_task: Annotated[str | None, Meta(description="one of the model's adapters (LoRA), whatever the prompt")] = None
    output_dtype: Annotated[
        VectorType | None, Meta(description="type of the numbers; int8 and uint8 are of unit vectors; null: float")
    ] = None
    embedding_types: Annotated[
        list[str] | None, Meta(description="one output_dtype, in a list; base64 stands for encoding_format")
    ] = None
    embedding_type: Annotated[
        str | list[str] | None, Meta(description="Jina's output_dtype; base64 stands for encoding_format")
    ] = None
    encoding_type: Annotated[
        str | list[str] | None, Meta(description="embedding_type, as LlamaIndex's client of Jina calls it")
    ] = None
    output_dimension: Annotated[int | None, Meta(description="Voyage's dimensions")] = None
    truncation: Annotated[bool | None, Meta(description="Voyage's truncate")] = None
    normalized: Annotated[bool | None, Meta(description="Jina's normalize")] = None
    use_activation: Annotated[bool | None, Meta(description="vLLM's normalize")] = None
    chunking: Annotated[
        Chunking | None,
        Meta(
            description="mean: an over-long text's vector is the mean of its chunks', by their tokens; late: the "
            "inputs are the chunks of one text, read at once; null: an over-long text is cut"
        ),
    ] = None
    late_chunking: Annotated[bool | None, Meta(description="Jina's chunking late")] = None
    truncate_prompt_tokens: Annotated[
        int | None, Meta(description="vLLM's: tokens kept of each input; null, -1: the model's limit")
    ] = None
    output: Annotated[
        list[str] | None,
        Meta(description="any of dense, sparse, colbert, tokens, all from one forward; null: by the path"),
    ] = None
    extra_configs: Annotated[
        ExtraConfigs | None, Meta(description="RTP-LLM: `{'tokenizer_config': {'add_special_tokens': false}}`")
    ] = None
    extra: Annotated[
        dict[str, Any] | None, Meta(description="what a custom module wants to know; nothing else looks at it")
    ] = None
    modality: Annotated[
        str | list[str] | None,
        Meta(description="Infinity's, NVIDIA's of each input: text, the only one that is served"),
    ] = None
    return_multivector: Annotated[
        bool | None, Meta(description="Jina's: true: a vector a token of each input, under `embeddings`; null: false")
    ] = None
    user: Annotated[Any, Meta(description="ignored")] = None

    @property
    def vector_type(self) -> str:
        """The type of the numbers, by whichever name it was asked for."""
        named = self.embedding_types or self.embedding_type or self.encoding_type
        if self.output_dtype is not None or not named:
            return self.output_dtype or "float"
        kind = named if isinstance(named, str) else named[0]
        return "float" if kind == "base64" else kind

    @property
    def encoding(self) -> str | None:
        """base64 or float, by whichever name it was asked for."""
        named = (self.embedding_type, self.encoding_type, self.embedding_types)
        if "base64" in named or ["base64"] in named:
            return "base64"
        return self.encoding_format


class Embedding(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One input's vector; `truncated` is there only when the input was cut at the limit."""

    object: Literal["embedding"]
    index: int
    embedding: list[float | int] | str
    truncated: bool = False


class EmbeddingsAnswer(msgspec.Struct, kw_only=True):
    """A vector per input, in the order of the inputs."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


def to_request(body: EmbeddingsBody, info: ModelInfo, config: ServerConfig, request_id: str) -> Request:
    """What the body asks of the engine."""
    if body.modality is not None:
        _check_modality(body.modality)
    return Request(inputs=inputs_of(body.input, info, config), params=_params(body, info), request_id=request_id)


def _check_modality(given: str | list[str]) -> None:
    modalities = given if isinstance(given, list) else [given or "text"]
    other = next((word for word in modalities if word != "text"), None)
    if other is not None:
        message = f"modality: {other!r:.100} is not served; a text model is, so send texts"
        raise InvalidRequest(message, param="modality")


def inputs_of(given: Inputs, info: ModelInfo, config: ServerConfig) -> Sequence[Input]:
    """A text, texts, a sequence of token ids or several -> the inputs; InvalidRequest names the place that is wrong."""
    if isinstance(given, str):
        return (given,)
    assert given is not None and not isinstance(given, UnsetType)
    given = [_text(value, place) if isinstance(value, TextObject) else value for place, value in enumerate(given)]
    kinds = set(map(type, given))
    if len(kinds) > 1:
        raise _mixed(given)
    items: list[Any] = [given] if int in kinds else given
    check_inputs(items, config, "input")
    if str not in kinds:
        for index, ids in enumerate(items):
            check_ids(ids, "input" if int in kinds else f"input[{index}]", info.vocab_size)
    return items


def _text(value: TextObject, place: int) -> str:
    if isinstance(value.text, str):
        return value.text
    message = f"input[{place}]: an object with `text` is read, or a string; chat messages go into `messages`"
    raise InvalidRequest(message, param=f"input[{place}]")


def _mixed(given: Sequence[Any]) -> InvalidRequest:
    words = {str: "a string", int: "a token id", list: "a list of token ids"}
    index = next(i for i, value in enumerate(given) if type(value) is not type(given[0]))
    found, first = words[type(given[index])], words[type(given[0])]
    message = f"input[{index}] is {found} and input[0] is {first}: send one kind a request"
    return InvalidRequest(message, param=f"input[{index}]")


def _params(body: EmbeddingsBody, info: ModelInfo) -> Params:
    # Infinity's client always sends 0, and means all.
    dimensions = body.dimensions or body.output_dimension
    check_dimensions(dimensions, info)
    check_prompt_name(body.prompt_name or None, info)
    purpose = purpose_of_all(body.input_type, body.task, body.lora_task, info)
    return Params(
        dimensions=as_asked(dimensions, info),
        normalize=_normalize(body),
        truncate=body.truncate not in (False, "NONE") and body.truncation is not False,
        truncation_side=body.truncation_side or _LOST_END.get(body.truncate),
        chunking=_chunking(body),
        max_tokens=max_tokens_of(body.truncate_prompt_tokens),
        prompt=_prompt(body),
        prompt_name=body.prompt_name or purpose.prompt_name,
        adapter=purpose.adapter,
        add_special_tokens=_adds_special_tokens(body),
        is_rendered=body.messages is not None,
        extra=body.extra or {},
    )


def _chunking(body: EmbeddingsBody) -> Chunking | None:
    if body.late_chunking and body.chunking == "mean":
        raise InvalidRequest("late_chunking and chunking mean: send one of them", param="late_chunking")
    return "late" if body.late_chunking else body.chunking


def _prompt(body: EmbeddingsBody) -> str | None:
    """A chat template writes all that there is, the checkpoint's default prompt not."""
    named = body.prompt_name or body.input_type or body.task
    left_out = "" if body.messages is not None and not named else None
    return left_out if body.prompt is None else body.prompt


def _adds_special_tokens(body: EmbeddingsBody) -> bool:
    if body.extra_configs is not None and not _add_special_tokens(body.extra_configs.tokenizer_config):
        return False
    return body.adds_special_tokens


def _normalize(body: EmbeddingsBody) -> bool | None:
    """What of `normalize` is wanted, with the checks of all that hangs on it."""
    normalize = body.normalize
    if normalize is None:
        normalize = body.use_activation if body.normalized is None else body.normalized
    kind = body.vector_type
    if kind == "float" and not (body.embedding_types or body.embedding_type or body.encoding_type):
        return normalize
    for param in _LISTED_PARAMS:
        named = getattr(body, param)
        if isinstance(named, list) and len(named) > 1:
            raise InvalidRequest(f"{param}: one type a request is served here; /v2/embed gives several", param=param)
    _check_agree(body)
    if kind == "float":
        return normalize
    if body.is_packed:
        message = "embed_dtype, endianness and bytes are of floats; leave the other type of numbers out"
        raise InvalidRequest(message, param="embed_dtype")
    check_type(kind, normalize, next(param for param in _TYPE_PARAMS if getattr(body, param)))
    return True if kind in SCALED else normalize


def _check_agree(body: EmbeddingsBody) -> None:
    """InvalidRequest where two of the names of the numbers' type, or of base64, say different things."""
    given = [(param, getattr(body, param)) for param in _LISTED_PARAMS if getattr(body, param)]
    said = [(param, value if isinstance(value, str) else value[0]) for param, value in given]
    # base64 among the types says how the numbers are written.
    other = "encoding_format" if any(word == "base64" for _, word in said) else "output_dtype"
    said += [(other, getattr(body, other))] if getattr(body, other) else []
    for (first, word), (param, value) in pairwise(said):
        if value != word:
            message = f"{first} {word!r:.100} and {param} {value!r:.100} are at odds: send one of them"
            raise InvalidRequest(message, param=param)


def _add_special_tokens(tokenizer_config: dict[str, Any] | None) -> bool:
    place = "extra_configs.tokenizer_config"
    settings = tokenizer_config or {}
    unknown = sorted(settings.keys() - {"add_special_tokens"})
    if unknown:
        message = f"{place}: {unknown[0]!r:.100} is not supported; add_special_tokens is the only key that is"
        raise InvalidRequest(message, param=f"{place}.{unknown[0]}")
    value = settings.get("add_special_tokens")
    if not isinstance(value, bool | None):
        message = f"{place}.add_special_tokens: expected bool or null, got {value!r:.100}"
        raise InvalidRequest(message, param=f"{place}.add_special_tokens")
    return value is not False


def render(body: EmbeddingsBody, response: Response, info: ModelInfo) -> Iterator[bytes]:
    """The answer; no Python object is made per number. EngineFailure when a vector holds NaN or Inf."""
    matrix = np.ascontiguousarray(response.outputs[TaskType.DENSE], dtype="<f4")  # [inputs, dim]
    encode = row_encoder(body, body.vector_type, body.encoding)
    truncated = response.truncated
    opening = b'{"object":"list","data":['
    closing = b'],"model":%b,"usage":%b}' % (orjson.dumps(info.name), usage_json(response))
    for start in range(0, len(matrix), VECTORS_A_PIECE):
        stop = min(start + VECTORS_A_PIECE, len(matrix))
        check_finite(matrix[start:stop], start)
        rows = [
            b'{"object":"embedding","index":%d,"embedding":%b%b'
            % (index, encode(matrix[index]), b',"truncated":true}' if truncated[index] else b"}")
            for index in range(start, stop)
        ]
        yield opening + b",".join(rows) + (closing if stop == len(matrix) else b"")
        opening = b","
