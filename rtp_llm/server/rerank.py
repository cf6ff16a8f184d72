"""Reranking as Cohere's, Jina's, Voyage's, vLLM's and Infinity's clients ask for it, in one answer that all can read.

POST /rerank, /v1/rerank, /v2/rerank. A body that may be Voyage's gets Voyage's `data` as well: one with its own `top_k`
or `truncation`, and one without the others' `top_n`, since Voyage's own words may both be left out.
TEI's form of /rerank is in rtp_llm/server/tei.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any
from uuid import uuid4

import msgspec
import orjson
from msgspec import UNSET, Meta, UnsetType

from rtp_llm.config import ServerConfig
from rtp_llm.core import ModelInfo, Params, Request, Response
from rtp_llm.errors import InvalidRequest
from rtp_llm.server import cohere
from rtp_llm.server.catalog import ModelName
from rtp_llm.server.checks import check_inputs, check_least, max_tokens_of
from rtp_llm.server.dialect import Dialect, Side
from rtp_llm.server.errors import shared_form
from rtp_llm.server.scheduling import BodyPriority
from rtp_llm.server.scoring import (
    SCORERS,
    TemplateVariables,
    instruction_of,
    place_of,
    ranked,
    scores_of,
    scoring_request,
    takes_long,
)
from rtp_llm.server.usage import usage

PATHS = ("/rerank", "/v1/rerank", "/v2/rerank")


class DocumentObject(msgspec.Struct, kw_only=True):
    """A document as an object: `text`, or vLLM's `content`."""

    text: str | None = None
    content: str | list[cohere.ContentPart] | None = None


class RerankBody(msgspec.Struct, kw_only=True):
    """What to score. Unknown fields are ignored; null means absent."""

    query: Annotated[
        str | DocumentObject, Meta(description="what is looked for: a text, or an object as those of `documents`")
    ]
    documents: Annotated[
        str | DocumentObject | list[str | DocumentObject],
        Meta(description="what is scored: texts, objects with `text`, or with `content` of text parts; or just one"),
    ]
    top_n: Annotated[
        int | None, Meta(description="results to return, the best; null, 0 or more than there are: all")
    ] = None
    top_k: Annotated[int | None | UnsetType, Meta(description="Voyage's top_n")] = UNSET
    return_documents: Annotated[bool | None, Meta(description="repeat each document in its result; null: false")] = None
    max_tokens_per_doc: Annotated[
        int | None, Meta(description="tokens kept of each document; null or 0: what fits beside the query")
    ] = None
    instruction: Annotated[str | None, Meta(description="Qwen3-Reranker: what to look for; null: as its authors")] = (
        None
    )
    raw_scores: Annotated[bool | None, Meta(description="logits instead of scores from 0 to 1; null: false")] = None
    use_activation: Annotated[bool | None, Meta(description="vLLM's word: false is raw_scores true")] = None
    truncate: Annotated[bool | None, Meta(description="false: a pair over the limit is an error; null: true")] = None
    truncation: Annotated[bool | None | UnsetType, Meta(description="Voyage's truncate")] = UNSET
    model: ModelName = None

    chat_template_kwargs: TemplateVariables = None
    truncate_prompt_tokens: Annotated[
        int | None, Meta(description="vLLM's: tokens kept of each pair; null, -1: the model's limit")
    ] = None
    truncation_side: Side = None
    priority: BodyPriority = None

    @property
    def is_raw(self) -> bool:
        """Whether logits are asked for."""
        return bool(self.raw_scores) or self.use_activation is False

    @property
    def all_documents(self) -> Sequence[str | DocumentObject]:
        """Those that are scored."""
        return self.documents if isinstance(self.documents, list) else [self.documents]

    @property
    def is_voyage(self) -> bool:
        """Whether Voyage's client asks."""
        return self.top_k is not UNSET or self.truncation is not UNSET

    @property
    def may_be_voyage(self) -> bool:
        """Whether it may: of the fields by which it differs from the others it need send none."""
        return self.is_voyage or self.top_n is None


class RerankDocument(msgspec.Struct, kw_only=True):
    """A document of the request."""

    text: str


class RerankResult(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One document's score; `index` is its place in the request."""

    index: int
    relevance_score: float
    document: RerankDocument | UnsetType = UNSET


class RerankUsage(msgspec.Struct, kw_only=True):
    """Tokens that the model read; the query counts once for each document."""

    prompt_tokens: int
    total_tokens: int


class RerankAnswer(msgspec.Struct, kw_only=True):
    """Best first; `meta` is Cohere's, `data` Voyage's."""

    id: str
    object: str
    model: str
    results: list[RerankResult]
    usage: RerankUsage
    meta: dict[str, Any]
    data: list[Any] | UnsetType = UNSET


def to_request(body: RerankBody, info: ModelInfo, config: ServerConfig, request_id: str) -> Request:
    """A pair for each document; or a vector for each text, where the model is no reranker."""
    check_inputs(body.all_documents, config, "documents")
    check_least(body.top_n, 0, "top_n")
    check_least(body.top_k, 0, "top_k")
    check_least(body.max_tokens_per_doc, 0, "max_tokens_per_doc")
    params = Params(
        activation="none" if body.is_raw else "sigmoid",
        instruction=instruction_of(body.instruction, body.chat_template_kwargs),
        truncate=body.truncate is not False and body.truncation is not False,
        truncation_side=body.truncation_side,
        max_tokens=max_tokens_of(body.truncate_prompt_tokens),
        max_tokens_per_doc=body.max_tokens_per_doc or None,
    )
    return scoring_request([_text(body.query, "query")], _texts(body), info, params, request_id)


def _texts(body: RerankBody) -> list[str]:
    if not isinstance(body.documents, list):
        return [_text(body.documents, "documents")]
    return [_text(document, f"documents[{place}]") for place, document in enumerate(body.documents)]


def _text(document: str | DocumentObject, where: str) -> str:
    """The text, also of an object; InvalidRequest where it has none, or has pictures."""
    if isinstance(document, str):
        return document
    if document.text is not None:
        return document.text
    if isinstance(document.content, str):
        return document.content
    texts = [part.text for part in document.content or () if part.type == "text"]
    if not texts or None in texts or len(texts) < len(document.content or ()):
        raise InvalidRequest(f"{where}: an object must have `text`, or `content` of text parts alone", param=where)
    return "\n".join(text for text in texts if text is not None)


def render(body: RerankBody, response: Response, info: ModelInfo) -> Iterator[bytes]:
    """The results, best first; equal scores keep the request's order."""
    scores = yield from scores_of(response, 1, max_sim_sum=body.is_raw)
    most = body.top_n or body.top_k or None
    order = ranked(scores)[: most if isinstance(most, int) else None]
    texts = _texts(body) if body.return_documents else None
    tokens = response.total_tokens
    answer: dict[str, Any] = {
        "id": f"rerank-{uuid4().hex}",
        "object": "list" if body.is_voyage else "rerank",
        "model": info.name,
        "results": [
            {
                "index": index,
                "relevance_score": scores[index],
                **({"document": {"text": texts[index]}} if texts else {}),
            }
            for index in order
        ],
        "usage": usage(response),
        "meta": {
            "api_version": {"version": "2"},
            "billed_units": {"search_units": 1},
            "tokens": {"input_tokens": tokens, "output_tokens": 0},
        },
    }
    if body.may_be_voyage:
        answer["data"] = [
            {"index": index, "relevance_score": scores[index], **({"document": texts[index]} if texts else {})}
            for index in order
        ]
    yield orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def _place(body: RerankBody, info: ModelInfo, index: int) -> str:
    place = place_of(info, index, "documents")
    return place if isinstance(body.documents, list) or place == "query" else "documents"


RERANK: Dialect[RerankBody] = Dialect(
    msgspec.json.Decoder(RerankBody, strict=False),
    to_request,
    render,
    SCORERS,
    render_on_thread=takes_long,
    error_form=shared_form,
    place=_place,
)
ROUTES: Mapping[str, Dialect[RerankBody]] = {
    **dict.fromkeys(PATHS, RERANK),
    "/v2/rerank": replace(RERANK, error_form=cohere.error_form),
}
