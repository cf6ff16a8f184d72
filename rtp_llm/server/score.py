"""Scores of pairs of texts, as vLLM's clients ask for them. POST /score, /v1/score."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from rtp_llm.config import ServerConfig
from rtp_llm.core import ModelInfo, Params, Request, Response
from rtp_llm.errors import InvalidRequest
from rtp_llm.server.catalog import ModelName
from rtp_llm.server.checks import check_count, check_least, max_tokens_of
from rtp_llm.server.cohere import ContentPart, text_of
from rtp_llm.server.dialect import Dialect, Side, Truncate
from rtp_llm.server.scheduling import BodyPriority
from rtp_llm.server.scoring import (
    SCORERS,
    TemplateVariables,
    instruction_of,
    is_paired,
    scores_of,
    scoring_request,
    takes_long,
)
from rtp_llm.server.usage import Usage
from rtp_llm.server.vllm import Activation, KeptTokens, answer

PATHS = ("/score", "/v1/score")


class Content(msgspec.Struct, kw_only=True):
    """A text, or several, in parts."""

    content: list[ContentPart]


Texts = Annotated[str | Content | list[str | Content] | None, Meta(description="a text or texts, or their parts")]
# The names under which both sides of a pair may come, in vLLM's order.
_SIDES = (("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2"))


class ScoreBody(msgspec.Struct, kw_only=True):
    """Two sides to score: one with each of the others, or as many on both; under any of four pairs of names."""

    queries: Texts = None
    documents: Texts = None
    items: Texts = None
    data_1: Texts = None
    data_2: Texts = None
    text_1: Texts = None
    text_2: Texts = None
    use_activation: Activation = None
    instruction: Annotated[str | None, Meta(description="Qwen3-Reranker: what to look for")] = None
    max_tokens_per_doc: Annotated[int | None, Meta(description="tokens kept of each second text; null or 0: all")] = (
        None
    )
    chat_template_kwargs: TemplateVariables = None
    truncate: Truncate = None
    truncate_prompt_tokens: KeptTokens = None
    truncation_side: Side = None
    priority: BodyPriority = None
    model: ModelName = None


class Score(msgspec.Struct, kw_only=True):
    """One pair's score."""

    index: int
    score: float
    object: Literal["score"] = "score"


class ScoreAnswer(msgspec.Struct, kw_only=True):
    """A score per pair, in the request's order."""

    id: str
    created: int
    model: str
    data: list[Score]
    usage: Usage
    object: Literal["list"] = "list"


def _names(body: ScoreBody) -> tuple[str, str]:
    """Those under which both sides came."""
    for first, second in _SIDES:
        if getattr(body, first) is not None and getattr(body, second) is not None:
            return first, second
    pairs = ", ".join(" and ".join(names) for names in _SIDES)
    raise InvalidRequest(f"two sides are missing: send {pairs}", param="queries")


def _sides(body: ScoreBody) -> tuple[list[str], list[str]]:
    names = _names(body)
    firsts, seconds = (_side(getattr(body, name), name) for name in names)
    for name, side in zip(names, (firsts, seconds), strict=True):
        if not side:
            raise InvalidRequest(f"{name} is an empty list: give at least one text", param=name)
    if len(firsts) not in (1, len(seconds)):
        message = f"{names[0]} has {len(firsts)} texts and {names[1]} {len(seconds)}: send one, or as many"
        raise InvalidRequest(message, param=names[0])
    return firsts, seconds


def _score_place(body: ScoreBody, info: ModelInfo, index: int) -> str:
    """A pair by its second text; of a model that gives vectors, the first side's come first."""
    first, second = _names(body)
    ahead = 0 if is_paired(info) else len(_sides(body)[0])
    name, place = (first, index) if index < ahead else (second, index - ahead)
    return f"{name}[{place}]" if isinstance(getattr(body, name), list) else name


def _side(given: Any, name: str) -> list[str]:
    if isinstance(given, Content):
        return [text_of(part, f"{name}.content[{place}]") for place, part in enumerate(given.content)]
    values = [given] if isinstance(given, str) else given
    return [
        value
        if isinstance(value, str)
        else "\n".join(text_of(part, f"{name}[{place}].content") for part in value.content)
        for place, value in enumerate(values)
    ]


def _score(body: ScoreBody, info: ModelInfo, config: ServerConfig, request_id: str) -> Request:
    firsts, seconds = _sides(body)
    check_count(len(seconds), config, _names(body)[1])
    check_least(body.max_tokens_per_doc, 0, "max_tokens_per_doc")
    params = Params(
        activation="none" if body.use_activation is False else "sigmoid",
        instruction=instruction_of(body.instruction, body.chat_template_kwargs),
        truncate=body.truncate is not False,
        max_tokens=max_tokens_of(body.truncate_prompt_tokens),
        truncation_side=body.truncation_side,
        max_tokens_per_doc=body.max_tokens_per_doc or None,
    )
    return scoring_request(firsts, seconds, info, params, request_id)


def _render_scores(body: ScoreBody, response: Response, info: ModelInfo) -> Iterator[bytes]:
    scores = yield from scores_of(response, len(_sides(body)[0]), max_sim_sum=True)
    data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)]
    yield answer("score", data, response, info)


SCORE: Dialect[ScoreBody] = Dialect(
    msgspec.json.Decoder(ScoreBody, strict=False),
    _score,
    _render_scores,
    SCORERS,
    render_on_thread=takes_long,
    place=_score_place,
)
