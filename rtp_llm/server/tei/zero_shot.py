"""/predict with labels that the request brings, of a model that says whether one text entails another.

Equals transformers' ZeroShotClassificationPipeline: a label's hypothesis is the second text of a pair, which is never
cut. Asked for by huggingface_hub's zero_shot_classification.
"""

from collections.abc import Iterator
from dataclasses import replace

import msgspec
import numpy as np
import orjson

from rtp_llm.config import ServerConfig
from rtp_llm.core import FloatArray, Input, ModelInfo, Request, Response, TaskType
from rtp_llm.errors import InvalidRequest, RequestTooLarge, UnsupportedTask
from rtp_llm.server.catalog import CLASSIFIERS
from rtp_llm.server.checks import check_count, check_least
from rtp_llm.server.cuts import truncated_header
from rtp_llm.server.dialect import Dialect
from rtp_llm.server.tei import frame, scores
from rtp_llm.server.tei.scores import PredictBody, best_first

_TEMPLATE, _LABEL = "This example is {}.", "{}"
_ENTAILMENT = "entail"
_LABELS = "parameters.candidate_labels"


def entailment(info: ModelInfo) -> tuple[int, int]:
    """Which of the model's labels say that a text entails another, and that it does not; UnsupportedTask: none does.

    Source: ZeroShotClassificationPipeline, entailment_id and postprocess.
    """
    place = next((place for place, label in enumerate(info.labels) if label.lower().startswith(_ENTAILMENT)), None)
    if place is None or len(info.labels) < 2:
        known = ", ".join(info.labels) or "none"
        raise UnsupportedTask(
            f"{_LABELS}: a model that was trained on NLI is needed, one of whose labels begins with entail; this "
            f"model's are {known:.200}; leave candidate_labels out for these",
            param=_LABELS,
        )
    return place, len(info.labels) - 1 if place == 0 else 0


def label_scores(logits: FloatArray, place: int, other: int, *, multi_label: bool) -> FloatArray:
    """[texts, candidates, labels] -> a probability of each candidate [texts, candidates], in fp64.

    place, other  the labels of entailment and of what is not
    multi_label   each candidate for itself, which a single one always is; else those of a text add up to 1
    """
    x = logits.astype(np.float64)
    is_own = multi_label or logits.shape[1] == 1
    x = x[..., [place, other]] if is_own else x[..., place]
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.asarray(weights[..., 0] if is_own else weights, np.float32)


def _texts(body: PredictBody) -> list[str]:
    """`inputs`, of which there are as many answers; InvalidRequest for pairs."""
    given = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    wrong = next((place for place, value in enumerate(given) if not isinstance(value, str)), None)
    if wrong is not None:
        where = f"inputs[{wrong}]"
        message = f"{where}: expected a text; with candidate_labels, the second text of a pair is made of a label"
        raise InvalidRequest(message, param=where)
    return [str(value) for value in given]


def _candidates(body: PredictBody) -> list[str]:
    """`candidate_labels`, or the request would not have come here."""
    return body.own_parameters.candidate_labels or []


def _check_characters(template: str, candidates: list[str], config: ServerConfig) -> None:
    """RequestTooLarge where the template, written out for each label, is longer than a body may be."""
    places = template.count(_LABEL)
    count = sum(len(template) + places * (len(label) - len(_LABEL)) for label in candidates)
    if count > config.max_body_bytes:
        name = "parameters.hypothesis_template"
        raise RequestTooLarge(
            f"{name}: for {len(candidates)} labels it has {count} characters, the limit is {config.max_body_bytes} "
            "(max_body_bytes): shorten it, or send fewer labels",
            param=name,
        )


def _to_request(body: PredictBody, info: ModelInfo, config: ServerConfig, request_id: str) -> Request:
    asked, candidates, texts = body.own_parameters, _candidates(body), _texts(body)
    template = _TEMPLATE if asked.hypothesis_template is None else asked.hypothesis_template
    frame.check_inputs(texts, config)
    frame.check_inputs(candidates, config, _LABELS)
    check_count(len(texts) * len(candidates), config, f"inputs, one for each of {_LABELS},")
    if _LABEL not in template:
        name = "parameters.hypothesis_template"
        raise InvalidRequest(f"{name}: {template!r:.200} has no {_LABEL}, where a label has its place", param=name)
    _check_characters(template, candidates, config)
    check_least(asked.top_k, 1, "parameters.top_k", without="all labels")
    if body.raw_scores or asked.function_to_apply is not None:
        name = "raw_scores" if body.raw_scores else "parameters.function_to_apply"
        raise InvalidRequest(f"{name}: candidate_labels have probabilities; leave it out", param=name)
    entailment(info)
    hypotheses = [template.replace(_LABEL, label) for label in candidates]
    inputs: list[Input] = [(text, hypothesis) for text in texts for hypothesis in hypotheses]
    params = frame.truncation(body.truncate, body.truncation_direction)
    params = replace(params, activation="none", truncation="only_first")
    return Request(inputs=inputs, tasks=(TaskType.CLASSIFY,), params=params, request_id=request_id)


def _render(body: PredictBody, response: Response, info: ModelInfo) -> Iterator[bytes]:
    asked, candidates = body.own_parameters, _candidates(body)
    place, other = entailment(info)
    logits = np.stack(response.outputs[TaskType.CLASSIFY]).reshape(-1, len(candidates), len(info.labels))
    rows = [
        [{"label": candidates[i], "score": row[i]} for i in best_first(row)[: asked.top_k]]
        for row in label_scores(logits, place, other, multi_label=bool(asked.multi_label))
    ]
    yield orjson.dumps(rows[0] if isinstance(body.inputs, str) else rows, option=orjson.OPT_SERIALIZE_NUMPY)


def _place(body: PredictBody, info: ModelInfo, index: int) -> str:
    """The text whose pair is at this place."""
    return "inputs" if isinstance(body.inputs, str) else f"inputs[{index // len(_candidates(body))}]"


def _of_texts(body: PredictBody, response: Response) -> Response:
    """`truncated` of the texts, each of which was cut where one of its pairs was."""
    size = len(_candidates(body))
    cut = response.truncated
    return replace(response, truncated=[any(cut[start : start + size]) for start in range(0, len(cut), size)])


ZERO_SHOT: Dialect[PredictBody] = replace(
    frame.dialect(msgspec.json.Decoder(PredictBody), _to_request, _render, CLASSIFIERS, place=_place),
    own_headers=lambda body, response, info: [truncated_header(_of_texts(body, response))],
    tells_cuts=True,
)
PREDICT: Dialect[PredictBody] = replace(
    scores.PREDICT,
    by_body=lambda body: None if body.own_parameters.candidate_labels is None else ZERO_SHOT,
)
