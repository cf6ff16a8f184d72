"""NVIDIA NIM's reranking: a query, passages, and their logits. POST /v1/ranking.

NVIDIA's hosted API has the same at /v1/retrieval/{model}/reranking, which rtp_llm/server/dispatch.py leads here: the
name counts where the body has none.
Its embeddings are OpenAI's, with words of its own that rtp_llm/server/openai.py takes.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
import orjson
from msgspec import Meta

from rtp_llm.config import ServerConfig
from rtp_llm.core import ModelInfo, Params, Request, Response
from rtp_llm.errors import InvalidRequest
from rtp_llm.server.catalog import ModelName
from rtp_llm.server.checks import check_inputs, check_least
from rtp_llm.server.dialect import Dialect
from rtp_llm.server.errors import shared_form
from rtp_llm.server.scoring import SCORERS, place_of, ranked, scores_of, scoring_request, takes_long
from rtp_llm.server.usage import Usage, usage

PATH = "/v1/ranking"


class Passage(msgspec.Struct, kw_only=True):
    """A text as an object."""

    text: str
    image: Annotated[Any, Meta(description="not served: a text model is")] = None


class RankingBody(msgspec.Struct, kw_only=True):
    """What to score. Unknown fields are ignored; null means absent."""

    query: Annotated[Passage, Meta(description="what is looked for")]
    passages: Annotated[list[Passage], Meta(description="what is scored")]
    truncate: Annotated[
        Literal["NONE", "START", "END"] | None,
        Meta(description="the end that an over-long pair loses; NONE: it is an error; null: END"),
    ] = None
    top_n: Annotated[int | None, Meta(description="results to return, the best; null, 0: all")] = None
    top_k: Annotated[int | None, Meta(description="LiteLLM's word for top_n")] = None
    model: ModelName = None


class Ranking(msgspec.Struct, kw_only=True):
    """One passage's logit; `index` is its place in the request."""

    index: int
    logit: float


class RankingAnswer(msgspec.Struct, kw_only=True):
    """Best first."""

    rankings: list[Ranking]
    usage: Usage


def to_request(body: RankingBody, info: ModelInfo, config: ServerConfig, request_id: str) -> Request:
    """A pair for each passage; or a vector for each text, where the model is no reranker."""
    check_inputs(body.passages, config, "passages", least="one")
    named = [("query", body.query), *((f"passages[{place}]", one) for place, one in enumerate(body.passages))]
    for where, passage in named:
        if passage.image is not None:
            raise InvalidRequest(f"{where}.image: a text model is served; send texts", param=f"{where}.image")
    check_least(body.top_n, 0, "top_n")
    check_least(body.top_k, 0, "top_k")
    params = Params(
        activation="none",
        truncate=body.truncate != "NONE",
        truncation_side="left" if body.truncate == "START" else None,
    )
    return scoring_request([body.query.text], [one.text for one in body.passages], info, params, request_id)


def render(body: RankingBody, response: Response, info: ModelInfo) -> Iterator[bytes]:
    """The logits, best first; equal ones keep the request's order."""
    scores = yield from scores_of(response, 1, max_sim_sum=True)
    order = ranked(scores)[: body.top_n or body.top_k or None]
    answer = {
        "rankings": [{"index": index, "logit": scores[index]} for index in order],
        "usage": usage(response),
    }
    yield orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def _place(body: RankingBody, info: ModelInfo, index: int) -> str:
    return f"{place_of(info, index, 'passages')}.text"


RANKING: Dialect[RankingBody] = Dialect(
    msgspec.json.Decoder(RankingBody, strict=False),
    to_request,
    render,
    SCORERS,
    render_on_thread=takes_long,
    error_form=shared_form,
    place=_place,
    cut="truncate to END",
)
