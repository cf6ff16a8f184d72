"""OpenAI's listing of the served models: GET /v1/models and /v1/models/{id}."""

from typing import Literal

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response as HttpResponse
from starlette.routing import Route

from rtp_llm.core import ModelInfo
from rtp_llm.server.catalog import Catalog

MODELS_PATH = "/v1/models"
MODEL_PATHS = (MODELS_PATH, "/models")  # of one model


class ModelEntry(msgspec.Struct, kw_only=True):
    """A served model; what is not OpenAI's is this server's own addition.

    `adapters`: what a request's `task` or `lora_task` may choose, or what was chosen for all when the model was loaded.
    `parent`, as vLLM has it: of a model that is an adapter (`lora_modules`), the one that has it.
    `weight_bytes` are the checkpoint's; `memory_bytes`: by which the process grew while it was loaded, 0: not known.
    """

    id: str
    created: int
    dimension: int
    max_model_len: int
    tasks: list[str]
    adapters: list[str] = []
    parent: str | None = None
    aliases: list[str] = []
    weight_bytes: int = 0
    memory_bytes: int = 0
    object: Literal["model"] = "model"
    owned_by: str = "rtp-llm"


class ModelList(msgspec.Struct, kw_only=True):
    """Every model that is served, the default first."""

    data: list[ModelEntry]
    object: Literal["list"] = "list"


def routes(catalog: Catalog) -> list[Route]:
    """The model listing."""

    async def models(_: HttpRequest) -> HttpResponse:
        return _json(ModelList(data=[model_entry(engine.info()) for engine in catalog.engines]))

    async def model(request: HttpRequest) -> HttpResponse:
        return _json(model_entry(catalog.find(request.path_params["model"]).info()))

    return [Route(MODELS_PATH, models), *(Route(f"{path}/{{model:path}}", model) for path in MODEL_PATHS)]


def _json(answer: msgspec.Struct) -> HttpResponse:
    return HttpResponse(msgspec.json.encode(answer), media_type="application/json")


def model_entry(info: ModelInfo) -> ModelEntry:
    """`info` as GET /v1/models tells it."""
    return ModelEntry(
        id=info.name,
        created=info.created,
        dimension=info.dimension,
        max_model_len=info.max_seq_len,
        tasks=[task.value for task in info.tasks],
        adapters=[*info.adapters, *filter(None, [info.merged_adapter])],
        parent=info.parent or None,
        aliases=list(info.aliases),
        weight_bytes=info.weight_bytes,
        memory_bytes=info.memory_bytes,
    )
