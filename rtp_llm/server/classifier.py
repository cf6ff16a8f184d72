"""RTP-LLM's classifier: raw logits for texts and pairs, or labels with scores on request; of a token classifier, the
entities of texts. POST /v1/classifier.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec
import orjson
from msgspec import Meta

from rtp_llm.config import ServerConfig
from rtp_llm.core import Input, ModelInfo, Params, Request, Response, TaskType
from rtp_llm.server.catalog import ModelName
from rtp_llm.server.checks import check_inputs
from rtp_llm.server.dialect import Dialect, Side, Truncate
from rtp_llm.server.entities import (
    LABELLERS,
    FoundEntity,
    IgnoredLabels,
    Strategy,
    Stride,
    check_means_texts,
    entity_arrays,
    has_entities,
    joined,
    labels_tokens,
    with_entities,
)

PATH = "/v1/classifier"


class ClassifierBody(msgspec.Struct, kw_only=True):
    """What to classify. Unknown fields are ignored; null means absent."""

    input: Annotated[str | list[str | tuple[str, str]], Meta(description="a text, or texts and pairs in any mixture")]
    activation: Annotated[
        Literal["none", "sigmoid", "softmax"] | None,
        Meta(description="of the scores; null: none, or with labels what the checkpoint's problem_type asks for"),
    ] = None
    labels: Annotated[bool | None, Meta(description="name the labels beside the scores; null: false")] = None
    aggregation_strategy: Strategy = None
    ignore_labels: IgnoredLabels = None
    stride: Stride = None
    truncate: Truncate = None
    truncation_side: Side = None
    model: ModelName = None


class Classification(msgspec.Struct, kw_only=True):
    """The best label of one input, its score, and the scores of all."""

    label: str
    score: float
    scores: dict[str, float]


class ClassifierAnswer(msgspec.Struct, kw_only=True):
    """`score` has a row per input and a column per label; `labels` is there only when it was asked for, and
    `truncated`, whether only the beginning of each input was read, only when one was cut.
    """

    object: Literal["list"]
    score: list[list[float]]
    labels: list[Classification] | msgspec.UnsetType = msgspec.UNSET
    truncated: list[bool] | msgspec.UnsetType = msgspec.UNSET


class EntitiesAnswer(msgspec.Struct, kw_only=True):
    """The entities of each input, in its order; `truncated`, whether only the beginning of it was read."""

    object: Literal["list"]
    entities: list[list[FoundEntity]]
    truncated: list[bool]


def to_request(body: ClassifierBody, info: ModelInfo, config: ServerConfig, request_id: str) -> Request:
    """Texts and pairs as they are."""
    inputs: Sequence[Input] = [body.input] if isinstance(body.input, str) else body.input
    check_inputs(inputs, config, "input")
    params = Params(
        activation=body.activation, truncate=body.truncate is not False, truncation_side=body.truncation_side
    )
    if labels_tokens(info):
        params = with_entities(params, body.aggregation_strategy, body.ignore_labels, body.stride)
        return Request(inputs=inputs, tasks=(TaskType.TOKEN_CLASSIFY,), params=params, request_id=request_id)
    check_means_texts(info, body.aggregation_strategy, body.stride)
    params = replace(params, activation=body.activation or (None if body.labels else "none"))
    return Request(inputs=inputs, tasks=(TaskType.CLASSIFY,), params=params, request_id=request_id)


def render(body: ClassifierBody, response: Response, info: ModelInfo) -> Iterator[bytes]:
    """The scores, and with `labels` what they are of; or entities."""
    if has_entities(response):
        yield b'{"object":"list","entities":'
        yield from joined(entity_arrays(response))
        yield b',"truncated":%b}' % orjson.dumps(response.truncated)
        return
    scores = response.outputs[TaskType.CLASSIFY]
    answer: dict[str, Any] = {"object": "list", "score": scores}
    if body.labels:
        best = scores.argmax(axis=1).tolist()
        answer["labels"] = [
            {"label": info.labels[top], "score": row[top], "scores": dict(zip(info.labels, row, strict=True))}
            for row, top in zip(scores, best, strict=True)
        ]
    if any(response.truncated):
        answer["truncated"] = response.truncated
    yield orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


CLASSIFIER: Dialect[ClassifierBody] = Dialect(
    msgspec.json.Decoder(ClassifierBody), to_request, render, LABELLERS, tells_cuts=True
)
