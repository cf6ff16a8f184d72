"""The routes of Weaviate's inference containers, by which its modules text2vec-transformers and reranker-transformers
take this server for one: TRANSFORMERS_INFERENCE_API and RERANKER_INFERENCE_API say where it is.

POST /vectors with one text or, as newer modules may, with several; a form of /rerank, known by the `property` that the
module always sends; GET /meta and the probes, which answer 204. The facts are those of the modules' clients and of the
containers' app.py: weaviate/weaviate, t2v-transformers-models and reranker-transformers.
"""

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import orjson
from msgspec import Meta
from starlette import routing
from starlette.requests import Request as HttpRequest
from starlette.responses import Response as HttpResponse

from rtp_llm.config import ServerConfig
from rtp_llm.core import ModelInfo, Params, Request, Response, TaskType
from rtp_llm.errors import InvalidRequest
from rtp_llm.server.catalog import Catalog, one_of
from rtp_llm.server.checks import as_asked, check_dimensions, check_inputs
from rtp_llm.server.dialect import Dialect
from rtp_llm.server.errors import plain_form
from rtp_llm.server.model_list import ModelEntry, model_entry
from rtp_llm.server.prompts import purpose_for
from rtp_llm.server.scoring import SCORERS, place_of, scores_of, scoring_request, takes_long
from rtp_llm.server.vectors import arrays, as_numbers, finite

VECTORS_PATH, META_PATH = "/vectors", "/meta"
LIVE_PATH, READY_PATH = "/.well-known/live", "/.well-known/ready"
PROBES = (LIVE_PATH, READY_PATH)
GET_PATHS = (META_PATH, *PROBES)


class VectorsConfig(msgspec.Struct, kw_only=True):
    """How the texts are read."""

    task_type: str | None = None
    dimensions: int | None = None
    pooling_strategy: str | None = None


class VectorsBody(msgspec.Struct, kw_only=True):
    """What to embed: one text, or several. Unknown fields are ignored; null means absent."""

    text: Annotated[str | None, Meta(description="what to embed")] = None
    texts: Annotated[list[str] | None, Meta(description="instead of text: several")] = None
    config: Annotated[
        VectorsConfig | None,
        Meta(
            description="`task_type`: query or passage, as `input_type` elsewhere; `dimensions`: the leading ones to "
            "keep; `pooling_strategy` is ignored: the checkpoint says how it pools"
        ),
    ] = None


class VectorAnswer(msgspec.Struct, kw_only=True):
    """The text again, its vector, and the vector's size."""

    text: str
    vector: list[float]
    dim: int


class VectorsAnswer(msgspec.Struct, kw_only=True):
    """A vector for each of several texts."""

    vectors: list[list[float]]
    dims: int


class PropertyRerankBody(msgspec.Struct, kw_only=True):
    """What to score: documents, or where there are none the property. Unknown fields are ignored."""

    query: Annotated[str, Meta(description="what is looked for")]
    property: Annotated[str, Meta(description="what is scored without documents; an empty one stands beside them")]
    documents: Annotated[list[str] | None, Meta(description="what is scored")] = None


class DocumentScore(msgspec.Struct, kw_only=True):
    """A document again, and its score."""

    document: str
    score: float


class PropertyRerankAnswer(msgspec.Struct, kw_only=True):
    """`scores` in the order of the documents, or the `score` of the `property`."""

    query: str
    scores: list[DocumentScore] | None
    property: str | None
    score: float | None


class MetaAnswer(msgspec.Struct, kw_only=True):
    """The first model, or the one that the header X-Model names, as GET /v1/models tells of it."""

    model: ModelEntry


def _vectors_request(body: VectorsBody, info: ModelInfo, config: ServerConfig, request_id: str) -> Request:
    if (body.text is None) == (body.texts is None):
        raise InvalidRequest("text: give either text, or texts with a list of them", param="text")
    texts = [body.text] if body.text is not None else body.texts or []
    check_inputs(texts, config, "texts")
    asked = body.config or VectorsConfig()
    check_dimensions(asked.dimensions, info)
    purpose = purpose_for(asked.task_type, info, "config.task_type")
    params = Params(
        dimensions=as_asked(asked.dimensions, info),
        normalize=True,
        prompt_name=purpose.prompt_name,
        adapter=purpose.adapter,
    )
    return Request(inputs=texts, params=params, request_id=request_id)


def _render_vectors(body: VectorsBody, response: Response, info: ModelInfo) -> Iterator[bytes]:
    rows = response.outputs[TaskType.DENSE]
    if body.text is not None:
        vector = as_numbers(finite(rows[0], 0))
        yield b'{"text":%b,"vector":%b,"dim":%d}' % (orjson.dumps(body.text), vector, rows.shape[1])
        return
    yield b'{"vectors":'
    yield from arrays(rows)
    yield b',"dims":%d}' % rows.shape[1]


def _rerank_request(body: PropertyRerankBody, info: ModelInfo, config: ServerConfig, request_id: str) -> Request:
    documents = [body.property] if body.documents is None else body.documents
    check_inputs(documents, config, "documents")
    # No activation asked for: the checkpoint's own, as CrossEncoder.predict in the container.
    return scoring_request([body.query], documents, info, Params(), request_id)


def _render_scores(body: PropertyRerankBody, response: Response, info: ModelInfo) -> Iterator[bytes]:
    scores = yield from scores_of(response, 1)
    answer: dict[str, Any] = {"query": body.query, "scores": None, "property": None, "score": None}
    if body.documents is None:
        answer |= {"property": body.property, "score": scores[0]}
    else:
        told = zip(body.documents, scores, strict=True)
        answer["scores"] = [{"document": document, "score": score} for document, score in told]
    yield orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def _rerank_place(body: PropertyRerankBody, info: ModelInfo, index: int) -> str:
    place = place_of(info, index, "documents")
    return "property" if body.documents is None and place != "query" else place


# No body here can say that a text may be cut; where the server's option forbids it, that is the way out.
_CUT = "--auto_truncate to true"
VECTORS: Dialect[VectorsBody] = Dialect(
    msgspec.json.Decoder(VectorsBody),
    _vectors_request,
    _render_vectors,
    one_of(TaskType.DENSE),
    error_form=plain_form,
    place=lambda body, info, index: "text" if body.texts is None else f"texts[{index}]",
    cut=_CUT,
)
RERANK: Dialect[PropertyRerankBody] = Dialect(
    msgspec.json.Decoder(PropertyRerankBody),
    _rerank_request,
    _render_scores,
    SCORERS,
    render_on_thread=takes_long,
    error_form=plain_form,
    place=_rerank_place,
    cut=_CUT,
)


def get_routes(catalog: Catalog) -> list[routing.Route]:
    """GET /meta and the probes."""

    async def meta(request: HttpRequest) -> HttpResponse:
        engine = catalog.asked(None, dict(request.headers.raw)) or catalog.default
        answer = MetaAnswer(model=model_entry(engine.info()))
        return HttpResponse(msgspec.json.encode(answer), media_type="application/json")

    async def live(_: HttpRequest) -> HttpResponse:
        return HttpResponse(status_code=204)

    async def ready(_: HttpRequest) -> HttpResponse:
        catalog.check_health()
        return HttpResponse(status_code=204)

    return [routing.Route(path, page) for path, page in ((META_PATH, meta), (LIVE_PATH, live), (READY_PATH, ready))]
