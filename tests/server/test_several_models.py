"""Several models behind one port: each dialect finds the one that is named, or the first that can do what is asked."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from rtp_llm.core import TaskType
from rtp_llm.server.openapi import document
from tests.server.conftest import CONFIG, running_server
from tests.server.fake_engine import FakeEngine

TEXTS = ["a", "b"]
EMBED = {"input": TEXTS}
PAIR = {"query": "q", "documents": TEXTS}


@pytest.fixture(scope="module")
def engines() -> dict[str, FakeEngine]:
    """The reranker, a classifier of one label too, is not last: what is preferred must not hang on the order."""
    rerank, classify = (TaskType.RERANK, TaskType.CLASSIFY), (TaskType.CLASSIFY,)
    engines = [
        FakeEngine(name="first", aliases=("text-embedding-3-small",), weight_bytes=90, memory_bytes=100),
        FakeEngine(name="ranker", tasks=rerank, dimension=1, labels=("score",)),
        FakeEngine(name="labels", tasks=classify, labels=("no", "yes"), dimension=2),
        FakeEngine(name="second", max_seq_len=7, dimension=6),
    ]
    for engine in engines:
        engine.metrics.describe_model(engine.info())
    return {engine.info().name: engine for engine in engines}


@pytest.fixture(scope="module")
def url(engines: dict[str, FakeEngine]) -> Iterator[str]:
    with running_server(list(engines.values()), replace(CONFIG, max_client_batch_size=100)) as address:
        yield address.url


@pytest.fixture
def client(url: str, engines: dict[str, FakeEngine]) -> Iterator[httpx.Client]:
    for engine in engines.values():
        engine.reset()
    with httpx.Client(base_url=url, timeout=20, trust_env=False) as client:
        yield client


def asked(engines: dict[str, FakeEngine]) -> list[str]:
    """The models that had something to compute."""
    return [name for name, engine in engines.items() if engine.requests]


WITHOUT_A_NAME = [
    ("/v1/embeddings", EMBED, "first"),
    ("/v1/embeddings/dense", EMBED, "first"),
    ("/v2/embed", {"texts": TEXTS}, "first"),
    ("/v1/embed", {"texts": TEXTS}, "first"),
    ("/embed", {"inputs": "a"}, "first"),
    ("/similarity", {"inputs": {"source_sentence": "a", "sentences": TEXTS}}, "first"),
    ("/v1/embeddings/similarity", {"left": ["a"], "right": ["b"]}, "first"),
    ("/pooling", EMBED, "first"),
    ("/pooling", {**EMBED, "task": "classify"}, "labels"),
    ("/rerank", PAIR, "ranker"),
    ("/v1/rerank", PAIR, "ranker"),
    ("/v2/rerank", PAIR, "ranker"),
    ("/v1/reranker", PAIR, "ranker"),
    ("/rerank", {"query": "q", "texts": TEXTS}, "ranker"),
    ("/score", {"text_1": "q", "text_2": TEXTS}, "ranker"),
    ("/classify", EMBED, "labels"),
    ("/v1/classifier", EMBED, "labels"),
    ("/predict", {"inputs": "a"}, "labels"),
    ("/", {"inputs": TEXTS}, "first"),
    ("/", EMBED, "first"),
    ("/", PAIR, "ranker"),
    ("/invocations", {"query": "q", "texts": TEXTS}, "ranker"),
    ("/vertex", {"instances": [{"inputs": "a"}]}, "first"),
]


@pytest.mark.parametrize(("path", "body", "model"), WITHOUT_A_NAME)
def test_without_a_name(
    client: httpx.Client, engines: dict[str, FakeEngine], path: str, body: dict[str, Any], model: str
) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert asked(engines) == [model]


NAMED = [
    ("/v1/embeddings", EMBED, "second"),
    ("/embeddings", EMBED, "second"),
    ("/v2/embed", {"texts": TEXTS}, "second"),
    ("/pooling", EMBED, "labels"),
    ("/rerank", PAIR, "second"),
    ("/v1/rerank", PAIR, "ranker"),
    ("/score", {"text_1": "q", "text_2": TEXTS}, "second"),
    ("/v1/embeddings/similarity", {"left": ["a"], "right": ["b"]}, "second"),
    ("/", EMBED, "labels"),
    ("/", EMBED, "second"),
    ("/v1/classifier", EMBED, "labels"),
]


@pytest.mark.parametrize("how", ["body", "header"])
@pytest.mark.parametrize(("path", "body", "model"), NAMED)
def test_by_name(
    client: httpx.Client, engines: dict[str, FakeEngine], path: str, body: dict[str, Any], model: str, how: str
) -> None:
    named = {"json": {**body, "model": model}} if how == "body" else {"json": body, "headers": {"X-Model": model}}
    answer: Any = client.post(path, **named)  # type: ignore[arg-type]
    assert answer.status_code == 200, answer.text
    assert asked(engines) == [model]
    assert not isinstance(answer.json(), dict) or answer.json().get("model", model) == model


def test_the_body_beats_the_header_and_an_alias_is_a_name(client: httpx.Client, engines: dict[str, FakeEngine]) -> None:
    body = {**EMBED, "model": "text-embedding-3-small"}
    answer = client.post("/v1/embeddings", json=body, headers={"X-Model": "second"})
    assert answer.json()["model"] == "first" and asked(engines) == ["first"]


@pytest.mark.parametrize("path", ["/embed", "/", "/invocations"])
def test_a_dialect_without_a_model_has_the_header(
    client: httpx.Client, engines: dict[str, FakeEngine], path: str
) -> None:
    client.post(path, json={"inputs": "a"}, headers={"X-Model": "second"})
    assert asked(engines) == ["second"]
    answer = client.post(path, json={"inputs": "a"}, headers={"X-Model": "nobody"})
    assert answer.status_code == 404 and "'second'" in answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        ("/v1/embeddings", EMBED, ("error", "message")),
        ("/classify", EMBED, ("error", "message")),
        ("/tokenize", {"prompt": "a"}, ("error", "message")),
        ("/rerank", PAIR, ("message",)),
        ("/v2/rerank", PAIR, ("message",)),
        ("/v2/embed", {"texts": TEXTS}, ("message",)),
        ("/", EMBED, ("error",)),
    ],
)
def test_an_unknown_name_is_404_in_the_dialects_own_form(
    client: httpx.Client, path: str, body: dict[str, Any], place: tuple[str, ...]
) -> None:
    answer = client.post(path, json={**body, "model": "gpt-4"})
    assert answer.status_code == 404
    told = answer.json()
    for key in place:
        told = told[key]
    message = "model 'gpt-4' not found; this server serves 'first', 'ranker', 'labels', 'second'"
    assert message in str(told)


def test_what_no_model_does_names_what_they_do(client: httpx.Client) -> None:
    answer = client.post("/v1/embeddings/sparse", json=EMBED)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "unsupported_task"
    assert "first: dense; ranker: rerank, classify; labels: classify" in answer.json()["error"]["message"]
    assert client.post("/embed_sparse", json={"inputs": "a"}).status_code == 424


def test_what_the_named_model_does_not_do(client: httpx.Client, engines: dict[str, FakeEngine]) -> None:
    """The engine refuses it; the fake one does not, but it is the one that is asked."""
    client.post("/v1/embeddings", json={**EMBED, "model": "labels"})
    assert asked(engines) == ["labels"]


def test_inputs_do_not_choose_the_model(client: httpx.Client, engines: dict[str, FakeEngine]) -> None:
    """`second` could not do it either; but even what only another can do stays with the first of its kind."""
    answer = client.post("/v1/embeddings", json={**EMBED, "dimensions": 7, "model": "second"})
    assert answer.status_code == 400 and "between 1 and 6" in answer.text
    assert client.post("/v1/embeddings", json={"input": [[99_999]]}).status_code == 400
    assert asked(engines) == []


def test_listing(client: httpx.Client) -> None:
    for path in ("/v1/models", "/models"):
        data = client.get(path).json()["data"]
        assert [model["id"] for model in data] == ["first", "ranker", "labels", "second"]
        assert (data[0]["weight_bytes"], data[0]["memory_bytes"]) == (90, 100) and data[2]["tasks"] == ["classify"]
        assert client.get(f"{path}/text-embedding-3-small").json()["id"] == "first"
        assert client.get(f"{path}/second").json()["max_model_len"] == 7
        assert client.get(f"{path}/nobody").status_code == 404


def test_info_is_the_defaults_or_the_named_ones(client: httpx.Client) -> None:
    assert client.get("/info").json()["model_id"] == "first"
    assert "reranker" in client.get("/info", headers={"X-Model": "ranker"}).json()["model_type"]
    assert client.get("/info", headers={"X-Model": "nobody"}).status_code == 404


def test_tokens_of_the_named_model(client: httpx.Client) -> None:
    body = {"prompt": "ab"}
    assert client.post("/tokenize", json=body).json()["max_model_len"] == 16
    assert client.post("/tokenize", json={**body, "model": "second"}).json()["max_model_len"] == 7


@pytest.mark.parametrize(
    ("name", "model", "found"),
    [("second", None, "second"), ("nvidia", "second", "second"), ("nvidia", None, ""), ("second", "nobody", "")],
)
def test_nvidias_path_names_a_model(
    name: str, model: str | None, found: str, client: httpx.Client, engines: dict[str, FakeEngine]
) -> None:
    """The body's goes before: of the path's, clients make what NVIDIA's own address needs."""
    body = {"query": {"text": "q"}, "passages": [{"text": "a"}], "model": model}
    answer = client.post(f"/v1/retrieval/{name}/reranking", json=body)
    assert asked(engines) == ([found] if found else [])
    if not found:
        assert answer.status_code == 404 and f"model {model or name!r} not found; this server serves" in answer.text


def test_health_is_that_of_all(client: httpx.Client, engines: dict[str, FakeEngine]) -> None:
    assert client.get("/health").status_code == 200
    engines["ranker"].not_ready = "loading"
    assert client.get("/health").status_code == client.get("/ping").status_code == 503


def test_metrics_say_whose_they_are(client: httpx.Client) -> None:
    client.post("/rerank", json=PAIR)
    text = client.get("/metrics").text
    assert 'rtp_llm_requests_total{model="ranker",route="/rerank",status="200"}' in text
    assert 'rtp_llm_tokens_total{model="second"} 0.0' in text and text.count("# TYPE rtp_llm_tokens_total") == 1
    assert text.count("\nprocess_open_fds ") <= 1


def test_one_model_takes_any_name(engines: dict[str, FakeEngine]) -> None:
    with running_server([engines["first"]]) as address:
        body = {**EMBED, "model": "whatever"}
        answer = httpx.post(f"{address.url}/v1/embeddings", json=body, headers={"X-Model": "other"})
    assert answer.status_code == 200 and answer.json()["model"] == "first"


def test_every_dialect_documents_404() -> None:
    posts = [operations["post"] for operations in document()["paths"].values() if "post" in operations]
    with_body = [operation for operation in posts if "requestBody" in operation]
    assert with_body and all("404" in operation["responses"] for operation in with_body)


def test_metrics_are_of_the_model_that_answered(client: httpx.Client, engines: dict[str, FakeEngine]) -> None:
    """By its own name, whatever the request calls it, also where it refuses; a name that nobody has is no label."""

    def counts() -> dict[str, float]:
        samples = re.findall(r"^(rtp_llm_requests_total\{.*\}) (.*)$", client.get("/metrics").text, re.MULTILINE)
        return {name: float(count) for name, count in samples if "/v1/embeddings" in name or "/embed" in name}

    before = counts()
    asked = [
        ("/v1/embeddings", {**EMBED, "model": "text-embedding-3-small"}, 200, "first"),
        ("/v1/embeddings", {**EMBED, "model": "second"}, 200, "second"),
        ("/v1/embeddings", {**EMBED, "model": "second", "dimensions": 7}, 400, "second"),
        ("/v1/embeddings", {**EMBED, "model": "nobody"}, 404, "first"),
        ("/embed", {"inputs": "a", "model": "second", "prompt_name": "no"}, 422, "second"),
    ]
    for path, body, status, _ in asked:
        assert client.post(path, json=body).status_code == status
    grown = {name for name, count in counts().items() if count > before.get(name, 0)}
    assert grown == {
        f'rtp_llm_requests_total{{model="{model}",route="{path}",status="{status}"}}'
        for path, _, status, model in asked
    }
    text = client.get("/metrics").text
    assert set(re.findall(r'\bmodel="([^"]*)"', text)) == set(engines)
    assert text.count("\nrtp_llm_ready ") == text.count("\nrtp_llm_lost_log_lines_total ") == 1
    of_process = ("rtp_llm_ready", "rtp_llm_lost_log_lines", "rtp_llm_frontend")
    ours = [line for line in text.splitlines() if line.startswith("rtp_llm_") and not line.startswith(of_process)]
    assert ours and all(re.search(r'\bmodel="', line) for line in ours)
