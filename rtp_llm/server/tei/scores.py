"""TEI's /predict and /rerank. Equal scores come in the reverse of the request's order, as TEI has them.

A token classifier, which TEI does not serve, answers /predict as Hugging Face's inference API does.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import orjson
from msgspec import UNSET, Meta, UnsetType

from rtp_llm.config import ServerConfig
from rtp_llm.core import FloatArray, Input, ModelInfo, Params, Request, Response, TaskType
from rtp_llm.errors import InvalidRequest, UnsupportedTask
from rtp_llm.server.catalog import ModelName
from rtp_llm.server.checks import check_least
from rtp_llm.server.cuts import truncated_header
from rtp_llm.server.dialect import Dialect, Truncate
from rtp_llm.server.entities import (
    LABELLERS,
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
from rtp_llm.server.scoring import BY_MAX_SIM, RERANKERS, place_of, scores_of, scoring_request, takes_long
from rtp_llm.server.tei import frame
from rtp_llm.server.tei.frame import RawScores, Truncation


class PredictParameters(msgspec.Struct, kw_only=True):
    """huggingface_hub's: the first two of its text_classification, the next three of its token_classification, the last
    of its zero_shot_classification.
    """

    function_to_apply: Annotated[
        Literal["sigmoid", "softmax", "none"] | None,
        Meta(description="of the scores; null: what the checkpoint's problem_type asks for"),
    ] = None
    top_k: Annotated[int | None, Meta(description="labels to return of each input, the best; null: all")] = None
    aggregation_strategy: Strategy = None
    ignore_labels: IgnoredLabels = None
    stride: Stride = None
    candidate_labels: Annotated[
        list[str] | None, Meta(description="the labels that a text may have, of a model that was trained on NLI")
    ] = None
    hypothesis_template: Annotated[
        str | None,
        Meta(description="what is asked of each of them, whose place is {}; null: This example is {}."),
    ] = None
    multi_label: Annotated[
        bool | None, Meta(description="each has a probability of its own; null or false: they add up to 1")
    ] = None


class PredictBody(msgspec.Struct, kw_only=True):
    """What to classify: a text; a list of two texts, which is one pair; or a batch: lists of one text or two."""

    inputs: Annotated[
        str | list[str | list[str]],
        Meta(
            description="a text; a pair, as a list of two texts; or a batch: lists of one text or two. Token "
            "classifiers: a text or texts"
        ),
    ]
    truncate: Truncate = None
    truncation_direction: Truncation = None
    raw_scores: RawScores = None
    parameters: Annotated[
        PredictParameters | None | UnsetType,
        Meta(description="huggingface_hub's client always sends it, and reads a list of lists"),
    ] = UNSET

    @property
    def own_parameters(self) -> PredictParameters:
        """`parameters`, with what they are without a word."""
        return self.parameters or PredictParameters()

    @property
    def is_batch(self) -> bool:
        """Whether the answer has a list for each input."""
        return isinstance(self.inputs, list) and not _is_pair(self.inputs)

    model: ModelName = None


class Prediction(msgspec.Struct, kw_only=True):
    """A label and its score."""

    score: float
    label: str


class TextsBody(msgspec.Struct, kw_only=True):
    """What to score."""

    query: Annotated[str, Meta(description="what is looked for")]
    texts: Annotated[list[str], Meta(description="what is scored")]
    truncate: Truncate = None
    truncation_direction: Truncation = None
    raw_scores: RawScores = None
    return_text: Annotated[bool | None, Meta(description="repeat each text; null: false")] = None
    model: ModelName = None


class Rank(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One text's score; `index` is its place in the request."""

    index: int
    score: float
    text: str | UnsetType = UNSET


def _is_pair(inputs: list[str | list[str]]) -> bool:
    return bool(inputs) and isinstance(inputs[0], str)


def _predict(body: PredictBody, info: ModelInfo, config: ServerConfig, request_id: str) -> Request:
    params = frame.truncation(body.truncate, body.truncation_direction)
    asked = body.own_parameters
    if labels_tokens(info):
        return _find(body, params, config, request_id)
    check_means_texts(info, asked.aggregation_strategy, asked.stride)
    check_least(asked.top_k, 1, "parameters.top_k", without="all labels")
    if isinstance(body.inputs, str):
        inputs: list[Input] = [body.inputs]
    else:
        frame.check_inputs(body.inputs, config)
        given: list[Any] = [body.inputs] if _is_pair(body.inputs) else list(body.inputs)
        inputs = [_text_or_pair(value, place, body.is_batch) for place, value in enumerate(given)]
    params = replace(params, activation="none" if body.raw_scores else asked.function_to_apply)
    return Request(inputs=inputs, tasks=(TaskType.CLASSIFY,), params=params, request_id=request_id)


def _find(body: PredictBody, params: Params, config: ServerConfig, request_id: str) -> Request:
    """The entities of a text, or of each of a list."""
    given = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    frame.check_inputs(given, config)
    inputs = [value if isinstance(value, str) else _text_or_pair(value, i, True) for i, value in enumerate(given)]
    asked = body.own_parameters
    for name in ("function_to_apply", "top_k"):
        if getattr(asked, name) is not None:
            message = f"parameters: {name} is for classifiers of texts; this model labels tokens"
            raise UnsupportedTask(message, param=f"parameters.{name}")
    if body.raw_scores:
        raise InvalidRequest("raw_scores: entities have the scores of softmax, leave it out", param="raw_scores")
    params = with_entities(params, asked.aggregation_strategy, asked.ignore_labels, asked.stride)
    return Request(inputs=inputs, tasks=(TaskType.TOKEN_CLASSIFY,), params=params, request_id=request_id)


def _text_or_pair(value: Any, place: int, is_batch: bool) -> Input:
    where = f"inputs[{place}]" if is_batch else "inputs"
    if isinstance(value, list) and 1 <= len(value) <= 2 and all(isinstance(text, str) for text in value):
        return (value[0], value[1]) if len(value) == 2 else str(value[0])
    message = f"{where}: expected a list of one text or of two; a batch of texts is a list of lists, [[text], [text]]"
    raise InvalidRequest(message, param=where)


def _rerank(body: TextsBody, info: ModelInfo, config: ServerConfig, request_id: str) -> Request:
    frame.check_inputs(body.texts, config, "texts")
    params = frame.truncation(body.truncate, body.truncation_direction)
    params = replace(params, activation="none" if body.raw_scores else "sigmoid")
    return scoring_request([body.query], body.texts, info, params, request_id, BY_MAX_SIM)


def best_first(scores: FloatArray) -> list[int]:
    """Places, by falling score; of equal ones the last first."""
    order: list[int] = np.argsort(scores, kind="stable")[::-1].tolist()
    return order


def _render_predictions(body: PredictBody, response: Response, info: ModelInfo) -> Iterator[bytes]:
    if has_entities(response):
        arrays = entity_arrays(response)
        yield from arrays if isinstance(body.inputs, str) else joined(arrays)
        return
    rows = [
        [{"score": row[place], "label": info.labels[place]} for place in best_first(row)[: body.own_parameters.top_k]]
        for row in response.outputs[TaskType.CLASSIFY]
    ]
    nested = body.is_batch or body.parameters is not UNSET
    yield orjson.dumps(rows if nested else rows[0], option=orjson.OPT_SERIALIZE_NUMPY)


def _render_ranks(body: TextsBody, response: Response, info: ModelInfo) -> Iterator[bytes]:
    scores = yield from scores_of(response, 1, max_sim_sum=bool(body.raw_scores))
    ranks = [
        {"index": place, **({"text": body.texts[place]} if body.return_text else {}), "score": scores[place]}
        for place in best_first(scores)
    ]
    yield orjson.dumps(ranks, option=orjson.OPT_SERIALIZE_NUMPY)


PREDICT: Dialect[PredictBody] = replace(
    frame.dialect(msgspec.json.Decoder(PredictBody), _predict, _render_predictions, LABELLERS),
    own_headers=lambda body, response, info: [truncated_header(response)],
    tells_cuts=True,
)
RERANK: Dialect[TextsBody] = frame.dialect(
    msgspec.json.Decoder(TextsBody),
    _rerank,
    _render_ranks,
    RERANKERS,
    place=lambda body, info, index: place_of(info, index, "texts", BY_MAX_SIM),
    render_on_thread=takes_long,
)
