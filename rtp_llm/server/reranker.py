"""RTP-LLM's reranker, in the form of Voyage's: a query, documents, and their scores. POST /v1/reranker."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
import orjson
from msgspec import Meta

from rtp_llm.config import ServerConfig
from rtp_llm.core import ModelInfo, Params, Request, Response
from rtp_llm.server.catalog import ModelName
from rtp_llm.server.checks import check_inputs, check_least
from rtp_llm.server.dialect import Dialect
from rtp_llm.server.scoring import BY_MAX_SIM, RERANKERS, place_of, ranked, scores_of, scoring_request, takes_long

PATH = "/v1/reranker"


class RerankerBody(msgspec.Struct, kw_only=True):
    """What to score. Unknown fields are ignored; null means absent."""

    query: Annotated[str, Meta(description="what is looked for")]
    documents: Annotated[list[str], Meta(description="what is scored")]
    top_k: Annotated[
        int | None, Meta(description="results to return: the best, or with sorted false the first; null: all")
    ] = None
    sorted: Annotated[bool | None, Meta(description="best first; null: true")] = None
    return_documents: Annotated[bool | None, Meta(description="repeat each document in its result; null: true")] = None
    normalize: Annotated[
        bool | None,
        Meta(
            description="sigmoid of the logit; null: false, the raw logit, or P(yes) of a language model; "
            "of late interaction the mean over the query's vectors, null: their sum"
        ),
    ] = None
    truncation: Annotated[
        bool | Literal["longest_first", "only_second"] | None,
        Meta(
            description="how a pair over the limit is cut: true or longest_first as sentence-transformers does, "
            "only_second as FlagEmbedding does; false: it is an error; null: true"
        ),
    ] = None
    instruction: Annotated[
        str | None,
        Meta(description="Qwen3-Reranker: what to look for; null: as its authors; ignored by cross-encoders"),
    ] = None
    model: ModelName = None


class RerankerResult(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One document's score; `index` is its place in the request."""

    index: int
    relevance_score: float
    document: str | msgspec.UnsetType = msgspec.UNSET


class RerankerAnswer(msgspec.Struct, kw_only=True):
    """`total_tokens` counts the query once for each document."""

    results: list[RerankerResult]
    total_tokens: int


def to_request(body: RerankerBody, info: ModelInfo, config: ServerConfig, request_id: str) -> Request:
    """A pair for each document; or the vectors of all, of a model that compares those of tokens."""
    check_inputs(body.documents, config, "documents")
    check_least(body.top_k, 1, "top_k", without="all documents")
    # The original's raw score of a language model is P(yes); its `normalize` squashes that once more.
    raw: Literal["none"] | None = None if info.scores_are_probabilities else "none"
    params = Params(
        activation="sigmoid" if body.normalize else raw,
        instruction=body.instruction or None,
        truncate=body.truncation is not False,
        truncation="only_second" if body.truncation == "only_second" else "longest_first",
    )
    return scoring_request([body.query], body.documents, info, params, request_id, BY_MAX_SIM)


def render(body: RerankerBody, response: Response, info: ModelInfo) -> Iterator[bytes]:
    """The results, best first unless `sorted` is false; equal scores keep the request's order."""
    scores = yield from scores_of(response, 1, max_sim_sum=not body.normalize)
    order = range(len(scores)) if body.sorted is False else ranked(scores)
    results: list[dict[str, Any]] = []
    for index in order[: body.top_k]:
        result: dict[str, Any] = {"index": index}
        if body.return_documents is not False:
            result["document"] = body.documents[index]
        results.append({**result, "relevance_score": scores[index]})
    answer = {"results": results, "total_tokens": response.total_tokens}
    yield orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


RERANKER: Dialect[RerankerBody] = Dialect(
    msgspec.json.Decoder(RerankerBody),
    to_request,
    render,
    RERANKERS,
    render_on_thread=takes_long,
    place=lambda body, info, index: place_of(info, index, "documents", BY_MAX_SIM),
    cut="truncation to true",
)
