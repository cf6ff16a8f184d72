"""RTP-LLM's own routes beside the embeddings: its health checks, which answer the JSON string "ok"."""

from collections.abc import Awaitable, Callable

import orjson
from starlette.requests import Request as HttpRequest
from starlette.responses import Response as HttpResponse
from starlette.routing import Route

from rtp_llm.server.catalog import Catalog

# Load balancers, orchestrators and the original's deployment systems ask under these names.
HEALTH_PATHS = (
    "/health",
    "/ready",
    "/health_check",
    "/status",
    "/GraphService/cm2_status",
    "/SearchService/cm2_status",
    "/v1/health/ready",  # NVIDIA NIM's
)
LIVENESS_PATHS = ("/live", "/liveness", "/frontend_health", "/v1/health/live")
_METHODS = ["GET", "POST"]


def routes(catalog: Catalog) -> list[Route]:
    """Health (503 until requests can be answered, and again when they no longer can) and liveness (always "ok")."""

    async def health(_: HttpRequest) -> HttpResponse:
        catalog.check_health()
        return _ok()

    async def liveness(_: HttpRequest) -> HttpResponse:
        return _ok()

    return _each(HEALTH_PATHS, health) + _each(LIVENESS_PATHS, liveness)


def _each(paths: tuple[str, ...], endpoint: Callable[[HttpRequest], Awaitable[HttpResponse]]) -> list[Route]:
    return [Route(path, endpoint, methods=_METHODS) for path in paths]


def _ok() -> HttpResponse:
    return HttpResponse(orjson.dumps("ok"), media_type="application/json")
