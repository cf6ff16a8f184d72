"""The OpenAPI 3.1 description of the routes; every schema is made from the types that decode and build the bodies."""

from dataclasses import dataclass
from typing import Any

import msgspec

from rtp_llm.core import TaskType
from rtp_llm.server import classifier, custom, embeddings, openai, reranker, rtp, similarity, tei, tokenize, vllm
from rtp_llm.server.errors import ErrorAnswer, MessageError, TeiError
from rtp_llm.server.openapi_dialects import ROWS, Row, schema_of, types_of
from rtp_llm.server.tei.routes import TeiInfo

API_VERSION = "1"
_REF = "#/components/schemas/{name}"
_TYPES = (
    openai.EmbeddingsBody, openai.EmbeddingsAnswer, openai.ModelList, openai.ModelEntry, embeddings.KindsAnswer,
    similarity.SimilarityBody, similarity.SimilarityAnswer, reranker.RerankerBody, reranker.RerankerAnswer,
    classifier.ClassifierBody, classifier.ClassifierAnswer, custom.CustomBody, custom.CustomAnswer,
    tokenize.TokenizeBody, tokenize.EncodeAnswer, ErrorAnswer,
    TeiError, MessageError, TeiInfo, vllm.VersionAnswer,
    *(type_ for row in ROWS for type_ in types_of([*row.bodies, row.answer])),
)  # fmt: skip
_FAILURES = {
    "400": "The body cannot be served as it is; `param` names the place",
    "404": "No model, or no route, of that name",
    "413": "A body, or a batch, over the limit",
    "415": "A compressed body",
    "422": "The body does not validate",
    "424": "The model does not do this, or failed",
    "429": "Too much in flight or in the queue: come back after `Retry-After` seconds",
    "500": "The server's own fault; its log tells more under the answer's `x-request-id`",
    "503": "Starting, draining or dead",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path."""

    path: str
    method: str
    id: str
    tag: str
    summary: str
    answer: dict[str, Any]
    description: str = "The answer"
    body: dict[str, Any] | None = None
    parameter: str | None = None
    headers: dict[str, str] | None = None
    failures: tuple[str, ...] = ("500",)
    errors: tuple[type, ...] = (ErrorAnswer,)


def document() -> dict[str, Any]:
    """The whole description, as JSON would hold it."""
    _, schemas = msgspec.json.schema_components(dict.fromkeys(_TYPES), ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for operation in _operations():
        paths.setdefault(operation.path, {})[operation.method] = _describe(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "rtp-llm",
            "version": API_VERSION,
            "description": "Embeddings, rerankers and classifiers over HTTP, as OpenAI's and RTP-LLM's clients ask. "
            "Where several models are served, a request names one by the body's `model`, or by the header X-Model; one "
            "that names none goes to the first model that can do what it asks.",
        },
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _operations() -> list[Operation]:
    return [*_embeddings(), *_rtp(), *_dialects(), *_models(), *_probes(), *_descriptions()]


def _embeddings() -> list[Operation]:
    example = {"input": ["a cat sat on the mat", "a dog lay on the rug"], "encoding_format": "float"}
    answer = _json({"anyOf": [_ref(openai.EmbeddingsAnswer), _ref(embeddings.KindsAnswer)]})
    return [
        _inference(path, _id("embed", path), "embeddings", _embed_summary(kind), openai.EmbeddingsBody, answer, example)
        for path, kind in embeddings.PATHS.items()
    ]


def _embed_summary(kind: TaskType | None) -> str:
    words = {TaskType.SPARSE: "Lexical weights for each text", TaskType.COLBERT: "A vector for each token of each text"}
    return words.get(kind, "A vector for each text") if kind else "A vector, or other embeddings, for each text"


def _rtp() -> list[Operation]:
    pair = {"query": "what is a panda?", "documents": ["hi", "The giant panda is a bear endemic to China."]}
    prompt: dict[str, Any] = {"prompt": "a cat sat on the mat"}
    rows: list[tuple[str, str, str, type, type, dict[str, Any]]] = [
        (similarity.PATH, "embeddings", "How alike texts are", similarity.SimilarityBody, similarity.SimilarityAnswer,
         {"left": ["a cat"], "right": ["a kitten", "a car"]}),
        (reranker.PATH, "scores", "Score documents for a query", reranker.RerankerBody, reranker.RerankerAnswer, pair),
        (classifier.PATH, "scores", "Classify texts and pairs", classifier.ClassifierBody, classifier.ClassifierAnswer,
         {"input": ["a text", ["a question", "an answer"]]}),
        (custom.PATH, "custom", "What the operator's own module makes of the inputs", custom.CustomBody,
         custom.CustomAnswer, {"input": ["a query", "a document", "another"], "extra": {"top_k": 1}}),
        (tokenize.ENCODE, "tokens", "Token ids and tokens of a text", tokenize.TokenizeBody, tokenize.EncodeAnswer,
         prompt),
    ]  # fmt: skip
    return [
        _inference(path, _id("post", path), tag, summary, body, _json(_ref(answer)), example)
        for path, tag, summary, body, answer, example in rows
    ]


def _dialects() -> list[Operation]:
    return [_dialect(row) for row in ROWS]


def _dialect(row: Row) -> Operation:
    return Operation(
        path=row.path,
        method="post",
        id=_id("post", row.path) if row.path != "/" else "post_root",
        tag=row.tag,
        summary=row.summary,
        body={"application/json": {"schema": _any_of(row.bodies), "example": row.example}},
        answer=_json(schema_of(row.answer, _ref)),
        failures=row.statuses,
        errors=row.errors,
    )


def _inference(
    path: str, id_: str, tag: str, summary: str, body: type, answer: dict[str, Any], example: dict[str, Any]
) -> Operation:
    """A POST that reads a JSON body."""
    headers = {
        "Server-Timing": "Milliseconds spent in each stage: tokenize, queue, compute, total",
        "USAGE": "The tokens that were read, as JSON",
    }
    return Operation(
        path=path,
        method="post",
        id=id_,
        tag=tag,
        summary=summary,
        body={"application/json": {"schema": _ref(body), "example": example}},
        answer=answer,
        headers=None if tag == "tokens" else headers,
        failures=("400", "404", "413", "415", "429", "500", "503"),
    )


def _models() -> list[Operation]:
    listed, entry = _json(_ref(openai.ModelList)), _json(_ref(openai.ModelEntry))
    operations = []
    for path in openai.MODEL_PATHS:
        operations += [
            Operation(
                path=path,
                method="get",
                id=_id("list", path),
                tag="models",
                summary="The served models",
                answer=listed,
                failures=("503",),
            ),
            Operation(
                path=f"{path}/{{model}}",
                method="get",
                id=_id("get", path),
                tag="models",
                summary="A served model, by name",
                answer=entry,
                parameter="model",
                failures=("404", "503"),
            ),
        ]
    return operations


def _probes() -> list[Operation]:
    ok = _json({"type": "string", "const": "ok"})
    ready: tuple[str, tuple[str, ...]] = ("Whether requests can be answered", ("503",))
    alive: tuple[str, tuple[str, ...]] = ("Whether the process answers at all", ())
    probes = dict.fromkeys(rtp.HEALTH_PATHS, ready) | dict.fromkeys(rtp.LIVENESS_PATHS, alive)
    operations = [
        Operation(
            path=path, method=method, id=_id(method, path), tag="probes", summary=summary, answer=ok, failures=failures
        )
        for path, (summary, failures) in probes.items()
        for method in ("get", "post")
    ]
    exposition = {"text/plain": {"schema": {"type": "string"}}}
    summary = "Prometheus metrics"
    return [
        *operations,
        Operation(
            path=tei.INFO_PATH,
            method="get",
            id="info",
            tag="TEI",
            summary="The default model and the limits",
            answer=_json(_ref(TeiInfo)),
            failures=("503",),
        ),
        Operation(
            path=tei.PING_PATH,
            method="get",
            id="ping",
            tag="probes",
            summary="Whether requests can be answered, for SageMaker",
            answer={},
            failures=("503",),
        ),
        Operation(
            path=vllm.VERSION_PATH,
            method="get",
            id="version",
            tag="vLLM",
            summary="The server's version",
            answer=_json(_ref(vllm.VersionAnswer)),
        ),
        Operation(path="/metrics", method="get", id="metrics", tag="probes", summary=summary, answer=exposition),
    ]


def _descriptions() -> list[Operation]:
    html = {"text/html": {"schema": {"type": "string"}}}
    description = _json({"type": "object"})
    pages = [
        ("/", "playground", "A page to try the model on", html),
        ("/docs", "docs", "This description, for people", html),
        ("/openapi.json", "openapi", "This description", description),
    ]
    return [
        Operation(path=path, method="get", id=id_, tag="pages", summary=summary, answer=answer)
        for path, id_, summary, answer in pages
    ]


def _describe(operation: Operation) -> dict[str, Any]:
    success: dict[str, Any] = {"description": operation.description, "content": operation.answer}
    if operation.headers:
        success["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in operation.headers.items()
        }
    described: dict[str, Any] = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.summary,
        "responses": {"200": success} | {status: _failure(status, operation.errors) for status in operation.failures},
    }
    if operation.body:
        described["requestBody"] = {"required": True, "content": operation.body}
    if operation.parameter:
        schema = {"type": "string"}
        described["parameters"] = [{"name": operation.parameter, "in": "path", "required": True, "schema": schema}]
    return described


def _failure(status: str, errors: tuple[type, ...]) -> dict[str, Any]:
    failure: dict[str, Any] = {"description": _FAILURES[status], "content": _json(_any_of(errors))}
    if status in ("429", "503"):
        seconds = {"description": "Seconds to wait", "schema": {"type": "integer", "minimum": 1}}
        failure["headers"] = {"Retry-After": seconds}
    return failure


def _any_of(types: tuple[type, ...]) -> dict[str, Any]:
    return _ref(types[0]) if len(types) == 1 else {"anyOf": [_ref(type_) for type_ in types]}


def _ref(type_: type) -> dict[str, Any]:
    return {"$ref": _REF.format(name=type_.__name__)}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _id(verb: str, path: str) -> str:
    return "_".join([verb, *path.strip("/").replace("-", "_").split("/")])
