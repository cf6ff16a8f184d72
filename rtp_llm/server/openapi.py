"""The OpenAPI 3.1 description of the routes; every schema is made from the types that decode and build the bodies.

The examples of failures are what each dialect's error form makes of `openapi_words.SAMPLES`, statuses included.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson

from rtp_llm.errors import RtpError
from rtp_llm.server import cohere, infinity, model_list, ollama_models, rtp, tei, vllm, weaviate
from rtp_llm.server.auth import OPEN_PAGES, OPEN_PROBES
from rtp_llm.server.errors import (
    ErrorAnswer,
    ErrorForm,
    MessageError,
    PlainError,
    SharedErrorAnswer,
    TeiError,
    openai_form,
    plain_form,
    shared_form,
)
from rtp_llm.server.openapi_dialects import ROWS, Row, schema_of, types_of
from rtp_llm.server.openapi_words import (
    ABOUT,
    ANSWER_HEADERS,
    FAILURES,
    NOT_READY,
    REQUEST_HEADERS,
    SAMPLES,
    TAGS,
    UNAUTHORIZED,
    UNKNOWN_MODEL,
)
from rtp_llm.server.tei import frame
from rtp_llm.server.tei.routes import TeiInfo

API_VERSION = "1"
_REF = "#/components/schemas/{name}"
FORMS: dict[ErrorForm, type] = {
    openai_form: ErrorAnswer,
    shared_form: SharedErrorAnswer,
    cohere.error_form: MessageError,
    frame.error_form: TeiError,
    plain_form: PlainError,
}
_TYPES = (
    *(type_ for row in ROWS for type_ in types_of([*row.bodies, row.answer])),
    model_list.ModelList, model_list.ModelEntry, infinity.InfinityModels, TeiInfo, vllm.VersionAnswer,
    vllm.LoadAnswer, ollama_models.OllamaTags, ollama_models.OllamaProcesses, ollama_models.OllamaVersion,
    weaviate.MetaAnswer, *FORMS.values(),
)  # fmt: skip
_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
}
_READY, _ALIVE = "Whether requests can be answered", "Whether the process answers at all"
_MODEL = {
    "id": "all-MiniLM-L6-v2", "object": "model", "created": 1700000000, "owned_by": "rtp-llm", "dimension": 384,
    "max_model_len": 256, "tasks": ["dense"], "aliases": [], "weight_bytes": 90852864, "memory_bytes": 96206848,
}  # fmt: skip
_STATS = {
    "owned_by": "infinity", "stats": {"queue_absolute": 0, "results_pending": 1}, "backend": "native",
    "capabilities": ["embed"],
}  # fmt: skip
_INFO = {
    "model_id": "all-MiniLM-L6-v2", "model_sha": None, "model_dtype": "float32",
    "served_model_name": "all-MiniLM-L6-v2",
    "model_type": {"embedding": {"pooling": "mean"}}, "max_concurrent_requests": 1024, "max_input_length": 256,
    "max_batch_tokens": 1024, "max_batch_requests": None, "max_client_batch_size": 2048, "auto_truncate": True,
    "tokenization_workers": 2, "version": "0.1.0", "sha": None, "docker_label": None,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path; `failures` are told in each of `forms`.

    parameter  a part of the path
    query      may stand behind it
    status     of an answer that is no failure
    """

    path: str
    method: str
    tag: str
    summary: str
    answer: dict[str, Any]
    body: dict[str, Any] | None = None
    parameter: str | None = None
    query: str | None = None
    status: int = 200
    headers: tuple[str, ...] = ()
    failures: tuple[RtpError, ...] = ()
    forms: tuple[ErrorForm, ...] = (openai_form,)

    @property
    def is_open(self) -> bool:
        """Whether it needs no key where the server asks for keys."""
        return self.path in OPEN_PROBES or (self.path in OPEN_PAGES and self.method == "get")


def document() -> dict[str, Any]:
    """The whole description, as JSON would hold it."""
    _, schemas = msgspec.json.schema_components(dict.fromkeys(_TYPES), ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for operation in _operations():
        paths.setdefault(operation.path, {})[operation.method] = _describe(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "rtp-llm", "version": API_VERSION, "description": ABOUT},
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": _KEYS, "parameters": _header_parameters()},
    }


def _operations() -> list[Operation]:
    posts = [_post(row, path) for row in ROWS for path in row.paths]
    gets = (*_models(), *_of_ollama(), *_of_weaviate(), *_probes(), *_pages())
    return sorted([*posts, *gets], key=lambda one: list(TAGS).index(one.tag))


def _post(row: Row, path: str) -> Operation:
    """A POST that reads a JSON body."""
    timed = ("Server-Timing", "USAGE") if row.tag != "tokens" else ()
    return Operation(
        path=path,
        method="post",
        tag=row.tag,
        summary=row.summary,
        body=_json(_any_of(row.bodies), row.examples),
        answer=_json(schema_of(row.answer, _ref), {"answer": row.answered}) | {kind: {} for kind in row.binary},
        headers=timed if path not in ("/decode", "/vertex", ollama_models.SHOW_PATH) else (),
        failures=tuple(SAMPLES.values()),
        forms=row.forms,
    )


def _models() -> list[Operation]:
    listed = _json(_ref(model_list.ModelList), {"one": {"object": "list", "data": [_MODEL]}})
    entry = _json(_ref(model_list.ModelEntry), {"one": _MODEL})
    with_stats = _json(_ref(infinity.InfinityModels), {"one": {"object": "list", "data": [_MODEL | _STATS]}})
    info, version = _json(_ref(TeiInfo), {"one": _INFO}), _json(_ref(vllm.VersionAnswer), {"one": {"version": "0.1.0"}})
    load, named = _json(_ref(vllm.LoadAnswer), {"one": {"server_load": 3}}), "A served model, by name"
    rows: list[tuple[str, str, dict[str, Any], str | None, tuple[RtpError, ...]]] = [
        (model_list.MODELS_PATH, "The served models", listed, None, ()),
        (infinity.MODELS_PATH, "The served models, as Infinity", with_stats, None, ()),
        *((f"{path}/{{model}}", named, entry, "model", (UNKNOWN_MODEL,)) for path in model_list.MODEL_PATHS),
        (vllm.VERSION_PATH, "The server's version, as vLLM", version, None, ()),
        (vllm.LOAD_PATH, "How many requests have no answer yet, as vLLM", load, None, ()),
    ]
    told = Operation(
        path=tei.INFO_PATH,
        method="get",
        tag="models",
        summary="A model and the limits, as TEI",
        answer=info,
        query="model",
        failures=(UNAUTHORIZED, UNKNOWN_MODEL, NOT_READY),
        forms=(frame.error_form,),
    )
    return [
        *(Operation(path=path, method="get", tag="models", summary=summary, answer=answer, parameter=parameter,
                    failures=(UNAUTHORIZED, *failures))
          for path, summary, answer, parameter, failures in rows),
        told,
    ]  # fmt: skip


def _of_ollama() -> list[Operation]:
    details = {"family": "bert", "families": ["bert"], "quantization_level": "F32"}
    name = "all-MiniLM-L6-v2:latest"
    listed = {"name": name, "model": name, "modified_at": "2026-11-30T18:30:00+00:00", "details": details}
    loaded = listed | {"size": 96206848, "context_length": 256}
    rows: list[tuple[str, str, type, dict[str, Any]]] = [
        (ollama_models.TAGS_PATH, "The served models, as Ollama", ollama_models.OllamaTags,
         {"models": [listed | {"size": 90852864}]}),
        (ollama_models.PS_PATH, "The same, as Ollama tells of what is loaded", ollama_models.OllamaProcesses,
         {"models": [loaded]}),
        (ollama_models.VERSION_PATH, "The server's version, as Ollama", ollama_models.OllamaVersion,
         {"version": "0.1.0"}),
    ]  # fmt: skip
    return [
        Operation(path=path, method="get", tag="Ollama", summary=summary, answer=_json(_ref(type_), {"one": example}),
                  failures=(UNAUTHORIZED,), forms=(plain_form,))
        for path, summary, type_, example in rows
    ]  # fmt: skip


def _of_weaviate() -> list[Operation]:
    meta = _json(_ref(weaviate.MetaAnswer), {"one": {"model": _MODEL}})
    return [
        Operation(path=weaviate.META_PATH, method="get", tag="Weaviate", summary="The model that answers", answer=meta,
                  failures=(UNAUTHORIZED,), forms=(plain_form,)),
        *(
            Operation(path=path, method="get", tag="probes", summary=f"{summary}, for Weaviate", answer={}, status=204,
                      failures=failures, forms=(plain_form,))
            for path, summary, failures in (
                (weaviate.READY_PATH, _READY, (NOT_READY,)), (weaviate.LIVE_PATH, _ALIVE, ()),
            )
        ),
    ]  # fmt: skip


def _probes() -> list[Operation]:
    ok = _json({"type": "string", "const": "ok"}, {"ok": "ok"})
    probes = dict.fromkeys(rtp.HEALTH_PATHS, _READY) | dict.fromkeys(rtp.LIVENESS_PATHS, _ALIVE)
    metrics = {"text/plain": {"schema": {"type": "string"}}}
    return [
        *(
            Operation(path=path, method=method, tag="probes", summary=summary, answer=ok,
                      failures=(NOT_READY,) if summary == _READY else ())
            for path, summary in probes.items()
            for method in ("get", "post")
        ),
        Operation(path=tei.PING_PATH, method="get", tag="probes", summary=f"{_READY}, for SageMaker", answer={},
                  failures=(NOT_READY,), forms=(frame.error_form,)),
        Operation(path="/metrics", method="get", tag="probes", summary="Prometheus metrics", answer=metrics,
                  failures=(UNAUTHORIZED,)),
    ]  # fmt: skip


def _pages() -> list[Operation]:
    html = {"text/html": {"schema": {"type": "string"}}}
    pages = [
        ("/", "A page to try the model on", html),
        ("/docs", "This description, for people", html),
        ("/openapi.json", "This description, for programs", _json({"type": "object"})),
    ]
    return [
        Operation(path=path, method="get", tag="pages", summary=summary, answer=answer)
        for path, summary, answer in pages
    ]


def _describe(operation: Operation) -> dict[str, Any]:
    names = ("X-Request-Id", *operation.headers)
    success = {"description": "The answer", "headers": {name: _header(name) for name in names}}
    if operation.answer:
        success["content"] = operation.answer
    described: dict[str, Any] = {
        "operationId": _id(operation.method, operation.path),
        "tags": [operation.tag],
        "summary": operation.summary,
        "parameters": [*_own_parameters(operation), *_parameters(operation)],
        "responses": {str(operation.status): success} | _failures(operation),
        # The empty one: a server without keys asks for none.
        "security": [] if operation.is_open else [{}, *({name: []} for name in _KEYS)],
    }
    if operation.body:
        described["requestBody"] = {"required": True, "content": operation.body}
    return described


def _failures(operation: Operation) -> dict[str, Any]:
    """By status: schemas and examples, as the operation's error forms tell what can go wrong."""
    told: dict[int, dict[str, Any]] = {}
    schemas: dict[int, list[type]] = {}
    for form in operation.forms:
        for name, error in SAMPLES.items():
            if error not in operation.failures or (name == "empty" and form is not frame.error_form):
                continue
            status, body = form(error)
            # The first form keeps the plain name.
            key = name if name not in told.get(status, {}) else f"{name} ({FORMS[form].__name__})"
            told.setdefault(status, {})[key] = orjson.loads(body)
            schemas.setdefault(status, []).append(FORMS[form])
    return {str(status): _failure(status, schemas[status], told[status]) for status in sorted(told)}


def _failure(status: int, types: Iterable[type], examples: dict[str, Any]) -> dict[str, Any]:
    names = ("X-Request-Id", "Retry-After") if status in (429, 503) else ("X-Request-Id",)
    return {
        "description": FAILURES[status],
        "content": _json(_any_of(tuple(dict.fromkeys(types))), examples),
        "headers": {name: _header(name) for name in names},
    }


def _header(name: str) -> dict[str, Any]:
    schema = {"type": "integer", "minimum": 1} if name == "Retry-After" else {"type": "string"}
    return {"description": ANSWER_HEADERS[name], "schema": schema}


def _header_parameters() -> dict[str, Any]:
    return {
        name: {"name": name, "in": "header", "required": False, "description": text, "schema": _HEADER_SCHEMAS[name]}
        for name, text in REQUEST_HEADERS.items()
    }


_HEADER_SCHEMAS: dict[str, dict[str, Any]] = {
    "X-Request-Id": {"type": "string"},
    "X-Request-Timeout": {"type": "number"},
    "X-Priority": {"enum": ["interactive", "bulk", "auto"]},
    "X-Model": {"type": "string"},
    "traceparent": {"type": "string"},
    "tracestate": {"type": "string"},
}


def _parameters(operation: Operation) -> list[dict[str, str]]:
    names = list(REQUEST_HEADERS) if operation.body else ["X-Request-Id", *(["X-Model"] if operation.query else [])]
    return [{"$ref": f"#/components/parameters/{name}"} for name in names]


def _own_parameters(operation: Operation) -> Iterator[dict[str, Any]]:
    places = {"path": operation.parameter, "query": operation.query}
    for place, name in places.items():
        if name is not None:
            yield {"name": name, "in": place, "required": place == "path", "schema": {"type": "string"}}


def _any_of(types: tuple[type, ...]) -> dict[str, Any]:
    return _ref(types[0]) if len(types) == 1 else {"anyOf": [_ref(type_) for type_ in types]}


def _ref(type_: type) -> dict[str, Any]:
    return {"$ref": _REF.format(name=type_.__name__)}


def _json(schema: dict[str, Any], examples: Any = None) -> dict[str, Any]:
    named = {"examples": {name: {"value": value} for name, value in examples.items()}} if examples else {}
    return {"application/json": {"schema": schema, **named}}


def _id(verb: str, path: str) -> str:
    parts = path.strip("/").replace("-", "_").replace(".", "_").replace("{", "").replace("}", "").split("/")
    return "_".join([verb, *(part or "root" for part in parts)])
