"""What Ollama's clients ask of the models: GET /api/tags, /api/ps and /api/version, POST /api/show.

Only what is known is told: there are no digests, parameter counts or templates, and no model expires.
"""

from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request as HttpRequest
from starlette.responses import Response as HttpResponse
from starlette.routing import Route

from rtp_llm import __version__
from rtp_llm.core import ModelInfo, TaskType
from rtp_llm.server.catalog import LATEST, Catalog, ModelName
from rtp_llm.server.dialect import Lookup
from rtp_llm.server.engine_like import EngineLike
from rtp_llm.server.errors import plain_form
from rtp_llm.server.service import Service

TAGS_PATH, PS_PATH, VERSION_PATH, SHOW_PATH = "/api/tags", "/api/ps", "/api/version", "/api/show"


class OllamaDetails(msgspec.Struct, kw_only=True):
    """The architecture, and the type of numbers that is computed with, in Ollama's words: F32, BF16, …"""

    family: str
    families: list[str]
    quantization_level: str


class OllamaModel(msgspec.Struct, kw_only=True):
    """A model under one of its names, with a tag. `size` is in bytes, of the checkpoint."""

    name: str
    model: str
    modified_at: str
    size: int
    details: OllamaDetails


class OllamaTags(msgspec.Struct, kw_only=True):
    """Every model that is served, the default first, and again under each of its aliases."""

    models: list[OllamaModel]


class LoadedModel(OllamaModel, kw_only=True):
    """Here `size` is what it takes in memory, where that is known."""

    context_length: int


class OllamaProcesses(msgspec.Struct, kw_only=True):
    """The same models: all are loaded, and stay so."""

    models: list[LoadedModel]


class OllamaVersion(msgspec.Struct, kw_only=True):
    """This server's own version."""

    version: str


class ShowBody(msgspec.Struct, kw_only=True):
    """Of /api/show. Unknown fields are ignored; null means absent."""

    model: ModelName = None
    name: Annotated[str | None, Meta(description="the older word for model")] = None

    def __post_init__(self) -> None:
        self.model = self.model or self.name


class ShowAnswer(msgspec.Struct, kw_only=True):
    """What a model is, and whether it makes vectors, which is the capability `embedding`."""

    details: OllamaDetails
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


def routes(catalog: Catalog) -> list[Route]:
    """The lists and the version."""

    async def tags(_: HttpRequest) -> HttpResponse:
        return _json(OllamaTags(models=[OllamaModel(**_listed(*one)) for one in _names(catalog)]))

    async def processes(_: HttpRequest) -> HttpResponse:
        return _json(OllamaProcesses(models=[_loaded(*one) for one in _names(catalog)]))

    async def version(_: HttpRequest) -> HttpResponse:
        return _json(OllamaVersion(version=__version__))

    return [Route(TAGS_PATH, tags), Route(PS_PATH, processes), Route(VERSION_PATH, version)]


def _json(answer: msgspec.Struct) -> HttpResponse:
    return HttpResponse(msgspec.json.encode(answer), media_type="application/json")


def _names(catalog: Catalog) -> Iterator[tuple[ModelInfo, str]]:
    """Every model with every name that callers may use."""
    for engine in catalog.engines:
        info = engine.info()
        for name in (info.name, *info.aliases):
            # Clients look for a name with its tag, or for one to which they have added this one.
            yield info, name if ":" in name.rpartition("/")[2] else name + LATEST


def _listed(info: ModelInfo, name: str) -> dict[str, Any]:
    details, time = _details(info), _modified_at(info)
    return {"name": name, "model": name, "modified_at": time, "size": info.weight_bytes, "details": details}


def _loaded(info: ModelInfo, name: str) -> LoadedModel:
    taken = {"size": info.memory_bytes or info.weight_bytes, "context_length": info.max_seq_len}
    return LoadedModel(**_listed(info, name) | taken)


def _details(info: ModelInfo) -> OllamaDetails:
    level = info.dtype.upper().replace("FP", "F")
    return OllamaDetails(family=info.model_type, families=[info.model_type], quantization_level=level)


def _modified_at(info: ModelInfo) -> str:
    return datetime.fromtimestamp(info.created, timezone.utc).isoformat()


def _show(body: ShowBody, engine: EngineLike, service: Service) -> Iterator[bytes]:
    info = engine.info()
    kind, has_vectors = info.model_type, TaskType.DENSE in info.tasks
    facts = {"general.architecture": kind, "general.basename": info.name, f"{kind}.context_length": info.max_seq_len}
    answer = ShowAnswer(
        details=_details(info),
        model_info=facts | ({f"{kind}.embedding_length": info.dimension} if has_vectors else {}),
        capabilities=["embedding"] if has_vectors else [],
        modified_at=_modified_at(info),
    )
    yield msgspec.json.encode(answer)


SHOW: Lookup[ShowBody] = Lookup(msgspec.json.Decoder(ShowBody), _show, error_form=plain_form)
