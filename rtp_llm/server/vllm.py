"""vLLM's /classify, /pooling and /version; Infinity's form of /classify.

vLLM's /score is in rtp_llm/server/score.py; its other routes are shared: /rerank, /tokenize, /detokenize, /v1/models
and /v1/embeddings.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal
from uuid import uuid4

import msgspec
import orjson
from msgspec import UNSET, Meta, UnsetType
from starlette import routing
from starlette.requests import Request as HttpRequest
from starlette.responses import Response as HttpResponse

from rtp_llm import __version__
from rtp_llm.config import ServerConfig
from rtp_llm.core import Input, ModelInfo, Params, Request, Response, TaskType
from rtp_llm.errors import UnsupportedTask
from rtp_llm.server import openai
from rtp_llm.server.catalog import CLASSIFIERS, Catalog, ModelName, Wanted, one_of
from rtp_llm.server.chat import ChatBody, input_place, rendered
from rtp_llm.server.checks import check_dimensions, max_tokens_of
from rtp_llm.server.dialect import Dialect, Side, Truncate
from rtp_llm.server.entities import LABELLERS
from rtp_llm.server.packed import CONTENT_TYPE, EncodedBody, check_described, metadata, render_bytes, row_encoder
from rtp_llm.server.prompts import purpose_for
from rtp_llm.server.route import Route
from rtp_llm.server.usage import Usage, usage
from rtp_llm.server.vectors import NUMBER_BYTES, PACKED_BYTES

VERSION_PATH, LOAD_PATH = "/version", "/load"

KeptTokens = Annotated[int | None, Meta(description="tokens kept of each input; null, -1: the model's limit")]
Activation = Annotated[bool | None, Meta(description="false: logits; null: true")]


class ClassifyBody(ChatBody, kw_only=True):
    """Texts, messages, or the model's own token ids, to classify. Infinity's clients send `raw_scores`."""

    truncate: Truncate = None
    truncate_prompt_tokens: KeptTokens = None
    truncation_side: Side = None
    use_activation: Activation = None
    raw_scores: Annotated[bool | None | UnsetType, Meta(description="Infinity's; true: logits")] = UNSET
    model: ModelName = None


class ClassifiedInput(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The best label of one input, and the scores of all in the checkpoint's order; `truncated` where it was cut."""

    index: int
    label: str
    probs: list[float]
    num_classes: int
    truncated: bool = False


class ClassifyAnswer(msgspec.Struct, kw_only=True):
    """An entry per input."""

    id: str
    created: int
    model: str
    data: list[ClassifiedInput]
    usage: Usage
    object: Literal["list"] = "list"


class InfinityClassifyAnswer(msgspec.Struct, kw_only=True):
    """Every label of every input with its score, the best first."""

    id: str
    created: int
    model: str
    data: list[list[dict[str, str | float]]]
    usage: Usage
    object: Literal["classify"] = "classify"


class PoolingBody(EncodedBody, kw_only=True):
    """Texts, messages, or token ids, and what is wanted of them."""

    truncate: Truncate = None
    truncate_prompt_tokens: KeptTokens = None
    truncation_side: Side = None
    task: Annotated[
        Literal["embed", "token_embed", "classify", "token_classify"] | None,
        Meta(
            description="a vector an input; one a token (colbert's, or the hidden states); scores of labels; such "
            "scores of each token; null: what the model does"
        ),
    ] = None
    input_type: Annotated[
        str | None, Meta(description="what the inputs are for: query, document, …; puts the checkpoint's prompt before")
    ] = None
    dimensions: Annotated[int | None, Meta(description="of task embed: leading dimensions to keep; null: all")] = None
    use_activation: Activation = None
    model: ModelName = None


class PooledInput(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One input's numbers: a vector, or one a token; `truncated` where it was cut."""

    index: int
    data: list[float | list[float]] | str
    object: Literal["pooling"] = "pooling"
    truncated: bool = False


class PoolingAnswer(msgspec.Struct, kw_only=True):
    """An entry per input."""

    id: str
    created: int
    model: str
    data: list[PooledInput]
    usage: Usage
    object: Literal["list"] = "list"


class VersionAnswer(msgspec.Struct, kw_only=True):
    """The server's version."""

    version: str


class LoadAnswer(msgspec.Struct, kw_only=True):
    """Requests that have no answer yet."""

    server_load: int


def told_cut(response: Response, index: int) -> dict[str, bool]:
    """What an input's entry says where it was cut at the limit."""
    return {"truncated": True} if response.truncated[index] else {}


def answer(kind: str, data: list[Any], response: Response, info: ModelInfo, object_: str = "list") -> bytes:
    """What vLLM puts around an entry per input."""
    listed = {
        "id": f"{kind}-{uuid4().hex}",
        "object": object_,
        "created": info.created,
        "model": info.name,
        "data": data,
        "usage": usage(response),
    }
    return orjson.dumps(listed, option=orjson.OPT_SERIALIZE_NUMPY)


def _classify(body: ClassifyBody, info: ModelInfo, config: ServerConfig, request_id: str) -> Request:
    inputs = openai.inputs_of(body.input, info, config)
    is_raw = body.use_activation is False or body.raw_scores is True
    params = Params(
        activation="none" if is_raw else None,
        truncate=body.truncate is not False,
        max_tokens=max_tokens_of(body.truncate_prompt_tokens),
        truncation_side=body.truncation_side,
        add_special_tokens=body.adds_special_tokens,
    )
    return Request(inputs=inputs, tasks=(TaskType.CLASSIFY,), params=params, request_id=request_id)


def _render_classes(body: ClassifyBody, response: Response, info: ModelInfo) -> Iterator[bytes]:
    rows = response.outputs[TaskType.CLASSIFY]
    if body.raw_scores is not UNSET:
        orders = (-rows).argsort(axis=1, kind="stable")
        named = [
            [{"label": info.labels[place], "score": row[place]} for place in order]
            for row, order in zip(rows, orders.tolist(), strict=True)
        ]
        yield answer("infinity", named, response, info, "classify")
        return
    data = [
        {"index": index, "label": info.labels[top], "probs": row, "num_classes": len(row), **told_cut(response, index)}
        for index, (row, top) in enumerate(zip(rows, rows.argmax(axis=1).tolist(), strict=True))
    ]
    yield answer("classify", data, response, info)


_TASKS = {"embed": TaskType.DENSE, "classify": TaskType.CLASSIFY, "token_classify": TaskType.TOKEN_CLASSIFY}
_BY_DEFAULT = (TaskType.CLASSIFY, TaskType.TOKEN_CLASSIFY, TaskType.DENSE)


def _pooling_task(body: PoolingBody, info: ModelInfo) -> TaskType:
    of_tokens = TaskType.COLBERT if TaskType.COLBERT in info.tasks else TaskType.TOKENS
    if body.task is not None:
        return {"token_embed": of_tokens, **_TASKS}[body.task]
    return next((task for task in _BY_DEFAULT if task in info.tasks), of_tokens)


_TOKEN_VECTORS: Wanted = (*one_of(TaskType.COLBERT), *one_of(TaskType.TOKENS))
# What is pooled of a body that does not say: vectors, wherever their model stands, else what there is.
_POOLED: Mapping[str | None, Wanted] = {
    None: (*one_of(TaskType.DENSE), *_TOKEN_VECTORS, *LABELLERS),
    "embed": one_of(TaskType.DENSE),
    "token_embed": _TOKEN_VECTORS,
    "classify": CLASSIFIERS,
    "token_classify": one_of(TaskType.TOKEN_CLASSIFY),
}


def _pooling(body: PoolingBody, info: ModelInfo, config: ServerConfig, request_id: str) -> Request:
    task = _pooling_task(body, info)
    if task not in info.tasks:
        raise UnsupportedTask(f"this model offers {', '.join(t.value for t in info.tasks)}, not {task.value}")
    inputs: list[Input] = list(openai.inputs_of(body.input, info, config))
    check_dimensions(body.dimensions, info)
    check_described(body, len(inputs))
    purpose = purpose_for(body.input_type, info, "input_type")
    params = Params(
        dimensions=body.dimensions,
        activation="none" if body.use_activation is False else _activation(task, info),
        truncate=body.truncate is not False,
        max_tokens=max_tokens_of(body.truncate_prompt_tokens),
        truncation_side=body.truncation_side,
        prompt="" if body.messages is not None else None,
        prompt_name=purpose.prompt_name,
        adapter=purpose.adapter,
        add_special_tokens=body.adds_special_tokens,
        is_rendered=body.messages is not None,
    )
    request = Request(inputs=inputs, tasks=(task,), params=params, request_id=request_id)
    if body.use_activation is False:
        return replace(request, params=replace(params, normalize=False))
    return request


def _activation(task: TaskType, info: ModelInfo) -> Literal["sigmoid"] | None:
    """Of the tokens' only label vLLM has the sigmoid, whose softmax is 1."""
    return "sigmoid" if task is TaskType.TOKEN_CLASSIFY and len(info.labels) == 1 else None


def _render_pooled(body: PoolingBody, response: Response, info: ModelInfo) -> Iterator[bytes]:
    encode = row_encoder(body, "float", body.encoding_format)
    ((_, outputs),) = response.outputs.items()
    data = []
    for index, rows in enumerate(outputs):
        is_whole = rows.ndim == 1 or body.encoding_format == "base64"
        numbers = encode(rows) if is_whole else b"[%b]" % b",".join(map(encode, rows))
        entry = {"index": index, "object": "pooling", "data": orjson.Fragment(numbers), **told_cut(response, index)}
        data.append(entry)
    yield answer("pool", data, response, info)


_pooling_dialect: Dialect[PoolingBody] = Dialect(
    msgspec.json.Decoder(PoolingBody, strict=False),
    _pooling,
    _render_pooled,
    lambda body: _POOLED[body.task],
    render_on_thread=True,
    tells_cuts=True,
    prepare=rendered,
    place=input_place,
    number_bytes=lambda body: NUMBER_BYTES if body.encoding_format in (None, "float") else PACKED_BYTES,
)
_raw_pooling: Dialect[PoolingBody] = replace(
    _pooling_dialect, render=render_bytes, own_headers=metadata("pool"), content_type=CONTENT_TYPE
)
ROUTES: dict[str, Route] = {
    "/classify": Dialect(
        msgspec.json.Decoder(ClassifyBody, strict=False),
        _classify,
        _render_classes,
        CLASSIFIERS,
        prepare=rendered,
        place=input_place,
    ),
    "/pooling": replace(_pooling_dialect, by_body=lambda body: _raw_pooling if body.is_bytes else None),
}


def get_routes(catalog: Catalog) -> list[routing.Route]:
    """GET /version and /load."""

    async def version(_: HttpRequest) -> HttpResponse:
        return HttpResponse(orjson.dumps({"version": __version__}), media_type="application/json")

    async def load(_: HttpRequest) -> HttpResponse:
        answer = LoadAnswer(server_load=sum([(await engine.waiting()).requests for engine in catalog.loaded]))
        return HttpResponse(msgspec.json.encode(answer), media_type="application/json")

    return [routing.Route(VERSION_PATH, version), routing.Route(LOAD_PATH, load)]
