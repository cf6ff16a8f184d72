"""Infinity's GET /models: OpenAI's listing with what each model does and how much waits for it.

Its /embeddings, /rerank and /classify are shared with other dialects.
"""

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response as HttpResponse
from starlette.routing import Route

from rtp_llm.core import TaskType
from rtp_llm.observability import Waiting
from rtp_llm.server.catalog import Catalog
from rtp_llm.server.engine_like import EngineLike
from rtp_llm.server.model_list import ModelEntry, model_entry

MODELS_PATH = "/models"
_CAPABILITIES = {TaskType.DENSE: "embed", TaskType.RERANK: "rerank", TaskType.CLASSIFY: "classify"}


class ModelStats(msgspec.Struct, kw_only=True):
    """Inputs that wait to be computed, and requests that have no answer yet."""

    queue_absolute: int
    results_pending: int


class InfinityModel(ModelEntry, kw_only=True):
    """A served model. Infinity's client takes no other `owned_by` than its own."""

    stats: ModelStats
    backend: str
    capabilities: list[str]
    owned_by: str = "infinity"


class InfinityModels(msgspec.Struct, kw_only=True):
    """Every model that is served, the default first."""

    data: list[InfinityModel]
    object: str = "list"


def routes(catalog: Catalog) -> list[Route]:
    """The listing."""

    async def models(_: HttpRequest) -> HttpResponse:
        answer = InfinityModels(data=[_entry(engine, await engine.waiting()) for engine in catalog.engines])
        return HttpResponse(msgspec.json.encode(answer), media_type="application/json")

    return [Route(MODELS_PATH, models)]


def _entry(engine: EngineLike, waiting: Waiting) -> InfinityModel:
    info = engine.info()
    shared = msgspec.structs.asdict(model_entry(info)) | {"owned_by": "infinity"}
    return InfinityModel(
        **shared,
        stats=ModelStats(queue_absolute=waiting.inputs, results_pending=waiting.requests),
        backend=info.backend,
        capabilities=[word for task, word in _CAPABILITIES.items() if task in info.tasks],
    )
