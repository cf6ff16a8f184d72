"""Which path goes where, and the one border at which every failure becomes an answer.

POST routes that run the model are dispatched here, by path; everything else goes through Starlette's router.
"""

import asyncio
import re
import time
from collections.abc import Sequence

from starlette import routing
from starlette.requests import Request as HttpRequest
from starlette.responses import Response as HttpResponse
from starlette.types import Receive, Scope, Send

from rtp_llm.config import ServerConfig
from rtp_llm.core import ModelInfo, TaskType
from rtp_llm.errors import InvalidRequest, NotReady
from rtp_llm.observability import CONTENT_TYPE, Observer, ProcessMetrics, render
from rtp_llm.server import (
    classifier,
    cohere,
    custom,
    embeddings,
    infinity,
    model_list,
    nvidia,
    ollama,
    ollama_models,
    pages,
    rerank,
    reranker,
    rtp,
    score,
    similarity,
    tei,
    tokenize,
    vllm,
    weaviate,
)
from rtp_llm.server.admission import Admission
from rtp_llm.server.auth import KeyRing
from rtp_llm.server.body import read_body
from rtp_llm.server.catalog import Catalog
from rtp_llm.server.cors import Cors
from rtp_llm.server.engine_like import Elsewhere, EngineLike
from rtp_llm.server.errors import (
    SHUTTING_DOWN,
    ClientLeft,
    ErrorForm,
    MethodNotAllowed,
    UnknownPath,
    as_rtp_error,
    error_headers,
    openai_form,
    plain_form,
)
from rtp_llm.server.exchange import Exchange
from rtp_llm.server.route import ByModel, Choice, Quoted, Route, chosen
from rtp_llm.server.service import Service
from rtp_llm.server.turns import Turns

_EMBEDDINGS = embeddings.dialect(None)
# What OPTIONS * says, which asks of no path (RFC 9110, 9.3.7).
_SERVER_WIDE = frozenset({"GET", "HEAD", "POST"})


def _rtp_input(info: ModelInfo) -> Route:
    """What POST / does with `input`, as in the original: the server's task decides."""
    is_labelling = TaskType.CLASSIFY in info.tasks or TaskType.TOKEN_CLASSIFY in info.tasks
    return classifier.CLASSIFIER if is_labelling else _EMBEDDINGS


# RTP-LLM's bodies by their keys, else TEI's by the model.
_BY_BODY = Choice(
    {"input": ByModel(_rtp_input), "documents": reranker.RERANKER, "left": similarity.SIMILARITY},
    tei.by_model,
)
# Every path that is answered by POST, from a body.
DIALECTS: dict[str, Route] = {
    **{path: embeddings.dialect(kind) for path, kind in embeddings.PATHS.items()},
    embeddings.MULTI_VECTOR: embeddings.multi_vector(),
    similarity.PATH: similarity.SIMILARITY,
    reranker.PATH: reranker.RERANKER,
    classifier.PATH: classifier.CLASSIFIER,
    custom.PATH: custom.CUSTOM,
    **tei.ROUTES,
    **tokenize.ROUTES,
    tokenize.TOKENIZE: Choice({"inputs": tei.TOKENIZE}, tokenize.ROUTES[tokenize.TOKENIZE]),
    **rerank.ROUTES,
    **cohere.ROUTES,
    **vllm.ROUTES,
    **dict.fromkeys(score.PATHS, score.SCORE),
    nvidia.PATH: nvidia.RANKING,
    "/rerank": Choice({"texts": tei.RERANK, "property": weaviate.RERANK}, rerank.RERANK),
    ollama.PATH: ollama.EMBED,
    ollama.OLD_PATH: ollama.EMBEDDINGS,
    ollama_models.SHOW_PATH: ollama_models.SHOW,
    weaviate.VECTORS_PATH: weaviate.VECTORS,
    "/": Quoted(_BY_BODY),
    "/invocations": _BY_BODY,
    "/vertex": tei.Vertex(_BY_BODY),
}

# How failures are told where no body is posted to; of Ollama's paths in its form, whether they are served or not.
_FORMS = {**dict.fromkeys(tei.GET_PATHS, tei.error_form), **dict.fromkeys(weaviate.GET_PATHS, plain_form)}

# A model's name may have a slash, as the hub's do; one that came as %2F is decoded by now.
_AZURE = re.compile(r"/openai/(?:deployments/(?P<name>.+)|v1)/embeddings")
_NVIDIA = re.compile(r"/v1/retrieval/(?P<name>.+)/reranking")
# Statuses that only the metrics see: nginx's word for it, and none, since nothing could be said.
_CLIENT_LEFT, NO_ANSWER = 499, 0


class Dispatcher:
    """An ASGI callable that gives every request an id, an answer and a place in the metrics."""

    def __init__(
        self,
        engines: EngineLike | Sequence[EngineLike],
        config: ServerConfig,
        observers: Sequence[Observer] = (),
        process: ProcessMetrics | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.catalog = catalog = Catalog(engines if isinstance(engines, Sequence) else [engines])
        self.admission = Admission(config, elsewhere.num_sharers if elsewhere else 1)
        self.keys = KeyRing(config)
        self._cors = Cors(config.cors_origins)
        self._observers = observers
        self.turns = Turns()
        self._service = Service(catalog, config, self.admission, self.turns)
        self._max_body_bytes, self._body_timeout = config.max_body_bytes, config.body_timeout
        own = [*pages.routes(), routing.Route("/metrics", self._metrics)]
        shared = (model_list.routes(catalog), infinity.routes(catalog), rtp.routes(catalog))
        others = (ollama_models.routes(catalog), weaviate.get_routes(catalog))
        parts = (*shared, *others, tei.get_routes(catalog, config), vllm.get_routes(catalog), own)
        self.routes = [route for part in parts for route in part]
        self._paths = {*DIALECTS, *ollama.REFUSED, *(route.path for route in self.routes if "{" not in route.path)}
        self._process = process or ProcessMetrics()
        self._process.watch_health(catalog.is_healthy)
        self._exposition = elsewhere.exposition if elsewhere else self._own_exposition
        self._router = routing.Router(self.routes, redirect_slashes=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._router(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send, self._cors)
        try:
            await self._dispatch(exchange)
        except ClientLeft:
            exchange.status = _CLIENT_LEFT
        except asyncio.CancelledError:
            # uvicorn cancels what still runs when the time for shutting down is over.
            await _respond_error(exchange, NotReady(SHUTTING_DOWN))
        except Exception as error:
            await _respond_error(exchange, error)
        metrics, seconds = exchange.metrics or self.catalog.default.metrics, time.perf_counter() - exchange.started_at
        metrics.observe_http(exchange.route, exchange.status, seconds, exchange.failure)
        if self._observers:
            seen = exchange.seen()
            for observer in self._observers:
                observer.observe(seen)

    def observe_unreadable(self, status: int) -> None:
        """A request has ended of which not even the head could be read; NO_ANSWER: nor could its client be told."""
        self.catalog.default.metrics.observe_http("unreadable", status, 0.0)

    async def _dispatch(self, exchange: Exchange) -> None:
        path = exchange.path.rstrip("/") or "/"
        if path not in self._paths:
            path = _renamed(exchange, path)
        posted = DIALECTS.get(path)
        if path in self._paths:  # also of what is refused for its key or its method
            exchange.route = path
        if posted is not None:
            exchange.metrics = self.catalog.only_metrics
            # Other methods too: who asks wrongly there is this dialect's client.
            exchange.error_form = posted.error_form
        else:
            exchange.error_form = _form_of(path)
        route = posted if exchange.method == "POST" else None
        if exchange.method != "OPTIONS":
            self.keys.check(exchange.method, path, exchange.headers)
        if route is not None:
            content = await read_body(exchange, self._max_body_bytes, self._body_timeout)
            answerer = await chosen(route, content, exchange, self._service)
            if answerer is not route:
                exchange.error_form = answerer.error_form
            body, headers = await answerer.answer(content, self._service, exchange)
            await exchange.respond(200, body, headers, exchange.content_type)
        elif exchange.method == "OPTIONS":
            methods = _SERVER_WIDE if path == "*" else self._methods_of(path)
            if not methods:
                raise self._no_route(exchange.method, path, exchange.path[:200])
            exchange.route = "preflight"
            await exchange.respond_to_options(methods)
        else:
            await self._route(exchange, path)

    async def _route(self, exchange: Exchange, path: str) -> None:
        scope = {**exchange.scope, "path": path, "app": self}
        for route in self.routes:
            match, found = route.matches(scope)
            if match is not routing.Match.NONE:
                exchange.route = route.path
            if match is routing.Match.FULL:
                await route.handle({**scope, **found}, exchange.receive, exchange.send)
                return
        raise self._no_route(exchange.method, path, exchange.path[:200])

    def _no_route(self, method: str, path: str, shown: str) -> InvalidRequest:
        """The error of a path and method that lead nowhere; `shown` is the path as its client knows it."""
        refused = ollama.refusal(path)
        if refused is not None:
            return refused
        allowed = self._methods_of(path)
        if not allowed:
            return UnknownPath(f"nothing is served at {shown}; GET /docs lists the routes")
        allow = ", ".join(sorted(allowed))
        return MethodNotAllowed(f"{shown} does not take {method}; it takes {allow}", allow=allow)

    def _methods_of(self, path: str) -> set[str]:
        """What is served there, OPTIONS aside; nothing where the path leads nowhere."""
        allowed = {"POST"} if path in DIALECTS else set()
        for route in self.routes:
            if route.matches({"type": "http", "path": path, "method": "GET"})[0] is not routing.Match.NONE:
                allowed |= route.methods or set()
        return allowed

    async def _metrics(self, _: HttpRequest) -> HttpResponse:
        return HttpResponse(await self._exposition(), headers={"content-type": CONTENT_TYPE})

    async def _own_exposition(self) -> bytes:
        return render(self._process, self.catalog.metrics)


def _form_of(path: str) -> ErrorForm:
    """How failures of a path are told that no dialect answers."""
    return plain_form if path.startswith(ollama.PREFIX) else _FORMS.get(path, openai_form)


def _renamed(exchange: Exchange, path: str) -> str:
    """The path that one with a name in it stands for: Azure's of a deployment, or NVIDIA's of a model; else itself."""
    found = _AZURE.fullmatch(path)
    if found is not None:
        exchange.deployment = found["name"] or ""
        return "/v1/embeddings"
    found = _NVIDIA.fullmatch(path)
    if found is not None:
        exchange.hosted_model = found["name"]
        return nvidia.PATH
    return path


async def _respond_error(exchange: Exchange, error: Exception) -> None:
    shown = as_rtp_error(error, exchange.method, exchange.path, exchange.request_id)
    exchange.failure = shown.failure
    if exchange.status == 0:
        status, body = exchange.error_form(shown)
        await exchange.respond(status, body, error_headers(shown))
