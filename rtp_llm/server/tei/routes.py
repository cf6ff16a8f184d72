"""Which of TEI's paths goes where; `by_model` is for /, /invocations and /vertex; GET /info and /ping."""

from dataclasses import dataclass
from typing import Any

import msgspec
from starlette import routing
from starlette.requests import Request as HttpRequest
from starlette.responses import Response as HttpResponse

from rtp_llm import __version__
from rtp_llm.config import ServerConfig
from rtp_llm.core import ModelInfo, TaskType
from rtp_llm.server.catalog import Catalog
from rtp_llm.server.errors import ErrorForm
from rtp_llm.server.exchange import Exchange
from rtp_llm.server.route import Answerer, Choice, Route, is_given
from rtp_llm.server.tei import frame
from rtp_llm.server.tei.embed import EMBED, EMBED_ALL, EMBED_SPARSE, SIMILARITY
from rtp_llm.server.tei.scores import RERANK
from rtp_llm.server.tei.tokens import DECODE
from rtp_llm.server.tei.zero_shot import PREDICT

INFO_PATH, PING_PATH = "/info", "/ping"
_parts = msgspec.json.Decoder(dict[str, msgspec.Raw])


class TeiInfo(msgspec.Struct, kw_only=True):
    """What is served. `max_batch_requests` null: a batch is limited by its tokens alone."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    served_model_name: str
    model_type: dict[str, Any]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None
    docker_label: str | None


def _parts_of(content: bytes | msgspec.Raw) -> dict[str, msgspec.Raw]:
    """An object's values as they stand there; none where it cannot be read, which is for a dialect to refuse."""
    try:
        return _parts.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


@dataclass(frozen=True, slots=True)
class _Inputs:
    """`inputs` of a body for / and /invocations: an object is two sides to compare, else the model decides.

    But labels are asked of a classifier, which the body then need not name.
    """

    error_form: ErrorForm = frame.error_form

    def choose(self, content: bytes, exchange: Exchange, catalog: Catalog) -> Answerer:
        body = _parts_of(content)
        if is_given(_parts_of(body.get("parameters", b"")).get("candidate_labels", msgspec.UNSET)):
            return PREDICT.choose(content, exchange, catalog)
        given = bytes(body.get("inputs", b"")).lstrip()
        info = catalog.of_body(content, exchange.headers).info()
        route = SIMILARITY if given.startswith(b"{") else _by_model(info)
        return route.choose(content, exchange, catalog)


def _by_model(info: ModelInfo) -> Route:
    """What TEI's / and /invocations do with `inputs`."""
    if TaskType.CLASSIFY in info.tasks or TaskType.TOKEN_CLASSIFY in info.tasks:
        return PREDICT
    if TaskType.RERANK in info.tasks:
        return RERANK
    return EMBED_SPARSE if info.tasks[0] is TaskType.SPARSE else EMBED


by_model = Choice({"texts": RERANK}, _Inputs())
ROUTES: dict[str, Route] = {
    "/embed": EMBED,
    "/embed_all": EMBED_ALL,
    "/embed_sparse": EMBED_SPARSE,
    "/similarity": SIMILARITY,
    "/predict": PREDICT,
    "/decode": DECODE,
}


GET_PATHS = (INFO_PATH, PING_PATH)


def get_routes(catalog: Catalog, config: ServerConfig) -> list[routing.Route]:
    """GET /info, of the first model or of the one that `?model=` or the header names, and /ping."""

    async def info(request: HttpRequest) -> HttpResponse:
        engine = catalog.asked(request.query_params.get("model"), dict(request.headers.raw)) or catalog.default
        return HttpResponse(msgspec.json.encode(tei_info(engine.info(), config)), media_type="application/json")

    async def ping(_: HttpRequest) -> HttpResponse:
        catalog.check_health()
        return HttpResponse(b"")

    return [routing.Route(INFO_PATH, info), routing.Route(PING_PATH, ping)]


def tei_info(info: ModelInfo, config: ServerConfig) -> TeiInfo:
    """`info` in TEI's words."""
    return TeiInfo(
        model_id=info.name,
        model_sha=None,
        model_dtype=frame.dtype_name(info),
        served_model_name=info.name,
        model_type=_model_type(info),
        max_concurrent_requests=config.concurrency_limit,
        max_input_length=info.max_seq_len,
        max_batch_tokens=info.max_batch_tokens,
        max_batch_requests=None,
        max_client_batch_size=config.max_client_batch_size,
        auto_truncate=config.auto_truncate,
        tokenization_workers=config.tokenizer_threads,
        version=__version__,
        sha=None,
        docker_label=None,
    )


def _model_type(info: ModelInfo) -> dict[str, Any]:
    if {TaskType.RERANK, TaskType.CLASSIFY, TaskType.TOKEN_CLASSIFY}.isdisjoint(info.tasks):
        return {"embedding": {"pooling": info.pooling}}
    labels = {
        "id2label": {str(place): label for place, label in enumerate(info.labels)},
        "label2id": {label: place for place, label in enumerate(info.labels)},
    }
    return {"reranker" if TaskType.RERANK in info.tasks else "classifier": labels}
