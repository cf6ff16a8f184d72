"""Everything that can go wrong, in every dialect: its status, its form, its headers, and nothing from inside."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest

from rtp_llm.config import ServerConfig
from rtp_llm.core import TaskType
from rtp_llm.errors import EngineFailure, NotReady, Overloaded, UnsupportedTask
from rtp_llm.server import create_app
from tests.server.conftest import CONFIG
from tests.server.fake_engine import FakeEngine

SECRET = "/srv/secret/model.bin"
EVERYTHING = tuple(task for task in TaskType if task is not TaskType.CUSTOM)


def told_as_openai(answer: dict[str, Any]) -> str:
    assert set(answer) == {"error"} and set(answer["error"]) == {"message", "type", "param", "code"}
    return str(answer["error"]["message"])


def told_to_all(answer: dict[str, Any]) -> str:
    assert set(answer) == {"error", "message", "detail"}
    assert answer["message"] == answer["detail"] == answer["error"]["message"]
    return str(answer["message"])


def told_as_cohere(answer: dict[str, Any]) -> str:
    assert set(answer) == {"message"}
    return str(answer["message"])


def told_as_tei(answer: dict[str, Any]) -> str:
    assert set(answer) == {"error", "error_type"} and isinstance(answer["error_type"], str)
    return str(answer["error"])


def told_plainly(answer: dict[str, Any]) -> str:
    assert set(answer) == {"error"}
    assert isinstance(answer["error"], str)
    return answer["error"]


DIALECTS: dict[str, tuple[Callable[[dict[str, Any]], str], dict[str, Any]]] = {
    "/v1/embeddings": (told_to_all, {"input": ["a"]}),
    "/v1/embeddings/similarity": (told_as_openai, {"left": ["a"], "right": ["b"]}),
    "/v1/reranker": (told_as_openai, {"query": "a", "documents": ["b"]}),
    "/v1/classifier": (told_as_openai, {"input": ["a"]}),
    "/rerank": (told_to_all, {"query": "a", "documents": ["b"]}),
    "/v1/rerank": (told_to_all, {"query": "a", "documents": ["b"]}),
    "/v2/rerank": (told_as_cohere, {"query": "a", "documents": ["b"]}),
    "/v2/embed": (told_as_cohere, {"texts": ["a"]}),
    "/v1/embed": (told_as_cohere, {"texts": ["a"]}),
    "/score": (told_as_openai, {"text_1": "a", "text_2": "b"}),
    "/classify": (told_as_openai, {"input": ["a"]}),
    "/pooling": (told_as_openai, {"input": ["a"], "task": "embed"}),
    "/embed": (told_as_tei, {"inputs": ["a"]}),
    "/embed_all": (told_as_tei, {"inputs": ["a"]}),
    "/embed_sparse": (told_as_tei, {"inputs": ["a"]}),
    "/similarity": (told_as_tei, {"inputs": {"source_sentence": "a", "sentences": ["b"]}}),
    "/predict": (told_as_tei, {"inputs": "a"}),
    "/invocations": (told_as_tei, {"inputs": "a"}),
    "/vertex": (told_as_tei, {"instances": [{"inputs": "a"}]}),
    "/api/embed": (told_plainly, {"input": ["a"]}),
    "/api/embeddings": (told_plainly, {"prompt": "a"}),
    "/vectors": (told_plainly, {"text": "a"}),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """How a failure is brought about; `tei` is TEI's status where that differs."""

    status: int
    tei: int = 0
    method: str = "POST"
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    config: ServerConfig = CONFIG
    error: Exception | None = None
    delay: float = 0.0
    engines: int = 1
    not_ready: str = ""
    answer_headers: dict[str, str] = field(default_factory=dict)


CASES = {
    "malformed": Case(status=400, tei=422, body=b'{"input'),
    "no object": Case(status=400, tei=422, body=b"[[[]]]"),
    "unsupported": Case(status=400, tei=424, error=UnsupportedTask("this model offers nothing")),
    "no key": Case(status=401, config=replace(CONFIG, api_key=("k",)),
                   answer_headers={"www-authenticate": 'Bearer realm="rtp-llm"'}),
    "wrong key": Case(status=401, config=replace(CONFIG, api_key=("k",)), headers={"x-api-key": "wrong"}),
    "unknown model": Case(status=404, engines=2, headers={"x-model": "other"}),
    "wrong method": Case(status=405, method="PUT", answer_headers={"allow": "POST"}),
    "large body": Case(status=413, body=b" " * (CONFIG.max_body_bytes + 1), answer_headers={"connection": "close"}),
    "compressed": Case(status=415, headers={"content-encoding": "gzip"}, answer_headers={"connection": "close"}),
    "overloaded": Case(status=429, error=Overloaded("full", retry_after=2.1), answer_headers={"retry-after": "3"}),
    "failed": Case(status=500, tei=424, error=EngineFailure("no vector with NaN is sent")),
    "unforeseen": Case(status=500, tei=424, error=OSError(2, "No such file", SECRET)),
    "not ready": Case(status=503, error=NotReady("draining"), answer_headers={"retry-after": "1"}),
    "late": Case(status=504, delay=60, headers={"x-request-timeout": "0.01"}),
}  # fmt: skip


def ask(case: Case, path: str, body: dict[str, Any]) -> httpx.Response:
    engines = [
        FakeEngine(name=f"model-{number}", tasks=EVERYTHING, labels=("a", "b")) for number in range(case.engines)
    ]
    for engine in engines:
        engine.error, engine.delay, engine.not_ready = case.error, case.delay, case.not_ready

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=create_app(engines, case.config))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            content = {"json": body} if case.body is None else {"content": case.body}
            return await client.request(case.method, path, headers=case.headers | {"x-request-id": "mine"}, **content)

    return asyncio.run(send())


@pytest.mark.parametrize("path", DIALECTS)
@pytest.mark.parametrize("name", CASES)
def test_failures(path: str, name: str) -> None:
    told, body = DIALECTS[path]
    case = CASES[name]
    answer = ask(case, path, body)
    assert answer.status_code == (case.tei or case.status if told is told_as_tei else case.status), answer.text
    assert told(answer.json())
    assert answer.headers["x-request-id"] == "mine"
    assert answer.headers.items() >= case.answer_headers.items()
    shown = answer.text + str(answer.headers)
    assert not any(word in shown for word in ("Traceback", "secret", "/srv", ".py", "OSError"))


@pytest.mark.parametrize("path", DIALECTS)
def test_the_bodies_are_right(path: str) -> None:
    assert ask(Case(status=200), path, DIALECTS[path][1]).status_code == 200


# What asks the tokenizer, and not the model.
LOOKUPS: dict[str, tuple[Callable[[dict[str, Any]], str], dict[str, Any]]] = {
    "/tokenize": (told_as_openai, {"prompt": "a"}),
    "/tokenizer/encode": (told_as_openai, {"prompt": "a"}),
    "/detokenize": (told_as_openai, {"tokens": [1]}),
    "/decode": (told_as_tei, {"ids": [1]}),
    "/api/show": (told_plainly, {}),
}
OF_THE_MODEL = {"unsupported", "overloaded", "failed", "unforeseen", "not ready", "late"}


@pytest.mark.parametrize("path", LOOKUPS)
@pytest.mark.parametrize("name", sorted(CASES.keys() - OF_THE_MODEL))
def test_failures_of_lookups(path: str, name: str) -> None:
    told, body = LOOKUPS[path]
    case = CASES[name]
    answer = ask(case, path, body)
    assert answer.status_code == (case.tei or case.status if told is told_as_tei else case.status), answer.text
    assert told(answer.json())
    assert ask(Case(status=200), path, body).status_code == 200


GETS = {
    "/info": told_as_tei, "/ping": told_as_tei, "/v1/models": told_as_openai, "/models": told_as_openai,
    "/version": told_as_openai, "/health": told_as_openai, "/nowhere": told_as_openai,
    "/api/tags": told_plainly, "/api/ps": told_plainly, "/api/version": told_plainly, "/api/nowhere": told_plainly,
    "/meta": told_plainly, "/.well-known/ready": told_plainly,
}  # fmt: skip
KEYED = replace(CONFIG, api_key=("k",))


@pytest.mark.parametrize(
    ("path", "case"),
    [
        *((path, Case(status=401, method="GET", config=KEYED)) for path in ("/info", "/v1/models", "/models")),
        *((path, Case(status=401, method="GET", config=KEYED)) for path in ("/api/tags", "/api/nowhere", "/meta")),
        *((path, Case(status=405, method="PUT")) for path in GETS if not path.endswith("nowhere")),
        ("/info", Case(status=404, method="GET", engines=2, headers={"x-model": "other"})),
        ("/info?model=other", Case(status=404, method="GET", engines=2)),
        ("/v1/models/other", Case(status=404, method="GET")),
        ("/meta", Case(status=404, method="GET", engines=2, headers={"x-model": "other"})),
        *((path, Case(status=404, method="GET")) for path in ("/nowhere", "/api/nowhere")),
        *(
            (path, Case(status=503, method="GET", not_ready="starting"))
            for path in ("/ping", "/health", "/.well-known/ready")
        ),
    ],
)
def test_failures_of_gets(path: str, case: Case) -> None:
    answer = ask(case, path, {})
    assert answer.status_code == case.status
    assert GETS.get(path.partition("?")[0].removesuffix("/other"), told_as_openai)(answer.json())


@pytest.mark.parametrize(
    "path",
    [
        "/openai/deployments/a/model/embeddings",
        "/openai/v1/embeddings",
        "/v1/retrieval/nvidia/a-model/reranking",
        "/v1/embeddings/",
    ],
)
def test_a_wrong_method_is_told_by_the_path_that_was_sent(path: str) -> None:
    answer = ask(Case(status=405, method="GET"), path, {})
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["error"]["message"] == f"{path} does not take GET; it takes POST"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"input": "a"}, told_as_openai),
        ({"query": "q", "documents": ["a"]}, told_as_openai),
        ({"left": ["a"], "right": ["b"]}, told_as_openai),
        ({"inputs": "a"}, told_as_tei),
        ({"query": "q", "texts": ["a"]}, told_as_tei),
    ],
)
def test_the_root_tells_as_the_body_speaks(body: dict[str, Any], told: Callable[[dict[str, Any]], str]) -> None:
    """Also where the model that would tell what is meant by it is not there."""
    answer = ask(Case(status=404, engines=2), "/", {**body, "model": "other"})
    assert answer.status_code == 404 and "model 'other' not found" in told(answer.json())


@pytest.mark.parametrize("path", DIALECTS)
def test_a_body_that_does_not_come(path: str) -> None:
    """Half a body, then nothing; the time is taken from the clock of the loop."""
    told, _ = DIALECTS[path]
    sent: list[Any] = []
    messages = [{"type": "http.request", "body": b"{", "more_body": True}]

    async def receive() -> Any:
        return messages.pop() if messages else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    async def call() -> None:
        loop = asyncio.get_running_loop()
        later = loop.call_later
        loop.call_later = lambda _, call, *given, **options: later(0.001, call, *given, **options)  # type: ignore[method-assign]
        scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b"", "raw_path": b""}
        await create_app(FakeEngine(tasks=EVERYTHING), CONFIG)(scope, receive, send)

    asyncio.run(call())
    assert sent[0]["status"] == 408
    assert "body_timeout" in told(httpx.Response(408, content=sent[1]["body"]).json())
