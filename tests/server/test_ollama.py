"""Ollama's routes: what its clients send and read, what they look models up by, and what is refused to them."""

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from rtp_llm import __version__
from rtp_llm.core import TaskType
from rtp_llm.errors import UnsupportedTask
from rtp_llm.server.ollama import REFUSED
from tests.server.conftest import running_server
from tests.server.fake_engine import DIMENSION, MAX_SEQ_LEN, FakeEngine, vector_of
from tests.server.rtp_clients import Served

pytest.importorskip("torch")

TEXTS = ["so sunny outside", "", "the weather is lovely today ."]
LONG = "so sunny " * 60


def refused(client: httpx.Client, path: str, **body: Any) -> tuple[int, str]:
    answer = client.post(path, json=body)
    assert list(answer.json()) == ["error"], answer.text
    return answer.status_code, answer.json()["error"]


def test_embed(dense: Served) -> None:
    answer = dense.post("/api/embed", model="tiny", input=TEXTS, keep_alive="5m", options={"temperature": 0.1})
    assert list(answer) == ["model", "embeddings", "total_duration", "load_duration", "prompt_eval_count"]
    np.testing.assert_array_equal(np.float32(answer["embeddings"]), dense.model.embed(TEXTS, normalize=True))
    assert (answer["model"], answer["load_duration"], answer["prompt_eval_count"]) == ("tiny", 0, 5 + 2 + 8)
    assert answer["total_duration"] > 1000, "nanoseconds"
    assert dense.post("/api/embed", input=TEXTS[0])["embeddings"] == answer["embeddings"][:1]


def test_vectors_of_the_older_path_are_not_normalised(m3: Served) -> None:
    """As Ollama has it: the same direction, and the length that pooling gives it."""
    answer = m3.post("/api/embeddings", model="tiny", prompt=TEXTS[0], options={}, keep_alive=-1)
    assert list(answer) == ["embedding"]
    vector = np.float32(answer["embedding"])
    np.testing.assert_array_equal(vector, m3.model.embed(TEXTS[:1], normalize=False)[0])
    assert abs(np.linalg.norm(vector) - 1) > 1e-3
    unit = np.float32(m3.post("/api/embed", input=TEXTS[0])["embeddings"][0])
    np.testing.assert_allclose(vector / np.linalg.norm(vector), unit, atol=1e-6)


def test_dimensions(dense: Served) -> None:
    answer = dense.post("/api/embed", input=TEXTS, dimensions=8)
    np.testing.assert_array_equal(
        np.float32(answer["embeddings"]), dense.model.embed(TEXTS, dimensions=8, normalize=True)
    )
    status, message = refused(dense.client, "/api/embed", input="a", dimensions=999)
    assert status == 400 and "dimensions: 999 is not between 1 and" in message


@pytest.mark.parametrize("body", [{}, {"input": ""}, {"input": []}, {"input": None}])
def test_no_text_is_no_vector(body: dict[str, Any], client: httpx.Client, engine: FakeEngine) -> None:
    """Ollama loads a model by it, and LangChain sends what it is given."""
    answer = client.post("/api/embed", json={"model": "m", **body})
    assert (answer.status_code, engine.requests) == (200, [])
    assert answer.json()["embeddings"] == [] and answer.json()["prompt_eval_count"] == 0
    assert "server-timing" in answer.headers


@pytest.mark.parametrize("body", [{}, {"prompt": ""}, {"prompt": None}])
def test_no_prompt_is_no_vector(body: dict[str, Any], client: httpx.Client) -> None:
    answer = client.post("/api/embeddings", json=body)
    assert (answer.status_code, answer.json()) == (200, {"embedding": []})


def test_what_is_too_long_is_cut_or_refused_in_ollamas_words(dense: Served) -> None:
    cut = dense.post("/api/embed", input=LONG)["embeddings"]
    assert cut == dense.post("/api/embed", input=LONG, truncate=True)["embeddings"]
    status, message = refused(dense.client, "/api/embed", input=["a", LONG], truncate=False)
    assert status == 400
    assert message.startswith("the input length exceeds the context length: input[1] has at least ")
    assert message.endswith("set truncate to true")


@pytest.mark.parametrize(("path", "field"), [("/api/embed", "input"), ("/api/embeddings", "prompt")])
def test_num_ctx_limits_the_tokens_of_a_text(path: str, field: str, dense: Served) -> None:
    def vector(text: str, **options: Any) -> Any:
        answer = dense.post(path, **{field: text}, options=options)
        return answer.get("embedding") or answer["embeddings"][0]

    assert vector(LONG, num_ctx=6) == vector(LONG, num_ctx=6.5) == vector("so sunny so sunny")
    assert vector(LONG, num_ctx=0) == vector(LONG, num_ctx=1e300) == vector(LONG, num_ctx=None) == vector(LONG)
    status, message = refused(dense.client, path, **{field: "a"}, options={"num_ctx": -1})
    assert status == 400 and "options.num_ctx: -1 is below 0" in message


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/api/embed", {"input": 5}, "input: expected"),
        ("/api/embed", {"input": ["a", 5]}, "input[1]: expected str, got int"),
        ("/api/embed", {"input": ["a"] * 201}, "201 inputs are over the limit of 200"),
        ("/api/embed", {"input": "a", "truncate": "no"}, "truncate: expected bool"),
        ("/api/embed", {"input": "a", "dimensions": -1}, "dimensions: -1 is not between 1 and 8"),
        ("/api/embed", {"input": "a", "options": {"num_ctx": "x"}}, "options.num_ctx: expected float"),
        ("/api/embed", {"input": "a", "model": 5}, "model: expected str"),
        ("/api/embeddings", {"prompt": ["a"]}, "prompt: expected str"),
        ("/api/show", {"model": 5}, "model: expected str"),
    ],
)
def test_bad_bodies(path: str, body: dict[str, Any], words: str, client: httpx.Client) -> None:
    status, message = refused(client, path, **body)
    assert status in (400, 413) and words in message


@pytest.mark.parametrize("path", REFUSED)
@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
def test_what_ollama_does_besides_is_refused(path: str, method: str, client: httpx.Client) -> None:
    """Not as a 404, by which its clients are told that a model must be fetched first."""
    answer = client.request(method, path, json={"model": "m", "stream": True})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(f"this server does not support {path}: ")


def test_refusals_are_counted_by_their_path(client: httpx.Client) -> None:
    client.post("/api/chat", json={})
    assert 'route="/api/chat",status="400"' in client.get("/metrics").text


@pytest.fixture(scope="module")
def two() -> Iterator[httpx.Client]:
    """Two models, of which one has another name, and one name has a slash and one a tag."""
    engines = [
        FakeEngine(name="BAAI/bge-small", aliases=("nomic:v1.5",), weight_bytes=7, memory_bytes=9, dtype="bf16"),
        FakeEngine(name="ranker", tasks=(TaskType.RERANK,), model_type="qwen3", weight_bytes=5),
    ]
    with running_server(engines) as address, httpx.Client(base_url=address.url, trust_env=False) as client:
        yield client


@pytest.mark.parametrize(
    "name", ["BAAI/bge-small", "BAAI/bge-small:latest", "nomic:v1.5", "nomic:v1.5:latest", "", None]
)
def test_names_with_and_without_a_tag(name: str | None, two: httpx.Client) -> None:
    answer = two.post("/api/embed", json={"model": name, "input": "a"})
    assert answer.json()["model"] == "BAAI/bge-small"
    np.testing.assert_array_equal(np.float32(answer.json()["embeddings"][0]), vector_of("a"))


def test_a_name_that_ends_so_is_found_without_it() -> None:
    engines = [FakeEngine(name="other"), FakeEngine(name="nomic:latest")]
    with running_server(engines) as address:
        for path, body in (("/api/embed", {"input": "a"}), ("/v1/embeddings", {"input": "a"})):
            answer = httpx.post(f"{address.url}{path}", json={**body, "model": "nomic"}, trust_env=False)
            assert answer.json()["model"] == "nomic:latest"


@pytest.mark.parametrize("name", ["llama3", "bge-small", "nomic"])
@pytest.mark.parametrize(("path", "body"), [("/api/embed", {"input": "a"}), ("/api/show", {})])
def test_a_model_that_is_not_served(name: str, path: str, body: dict[str, Any], two: httpx.Client) -> None:
    status, message = refused(two, path, **body, model=name)
    assert (status, message) == (404, f"model '{name}' not found; this server serves 'BAAI/bge-small', 'ranker'")


def test_a_model_that_makes_no_vectors() -> None:
    engine = FakeEngine(name="ranker", tasks=(TaskType.RERANK,))
    engine.error = UnsupportedTask("this model offers rerank, not dense")
    with running_server(engine) as address, httpx.Client(base_url=address.url, trust_env=False) as client:
        assert refused(client, "/api/embed", input="a") == (400, "this model offers rerank, not dense")


def test_tags(two: httpx.Client) -> None:
    """Under every name, each with a tag: by this, clients see whether what they are set to is there."""
    models = two.get("/api/tags").json()["models"]
    assert [entry["name"] for entry in models] == ["BAAI/bge-small:latest", "nomic:v1.5", "ranker:latest"]
    assert models[0] == {
        "name": "BAAI/bge-small:latest",
        "model": "BAAI/bge-small:latest",
        "modified_at": "2023-11-14T22:13:20+00:00",
        "size": 7,
        "details": {"family": "bert", "families": ["bert"], "quantization_level": "BF16"},
    }
    assert models[2]["details"] == {"family": "qwen3", "families": ["qwen3"], "quantization_level": "F32"}


def test_ps(two: httpx.Client) -> None:
    models = two.get("/api/ps").json()["models"]
    assert [(entry["name"], entry["size"], entry["context_length"]) for entry in models] == [
        ("BAAI/bge-small:latest", 9, MAX_SEQ_LEN),
        ("nomic:v1.5", 9, MAX_SEQ_LEN),
        ("ranker:latest", 5, MAX_SEQ_LEN),
    ]


def test_version_and_probes(client: httpx.Client) -> None:
    assert client.get("/api/version").json() == {"version": __version__}
    for path in ("/", "/api/tags", "/api/version"):
        assert client.head(path).status_code == 200


@pytest.mark.parametrize("body", [{"model": "nomic:v1.5"}, {"name": "BAAI/bge-small:latest"}, {}])
def test_show(body: dict[str, Any], two: httpx.Client) -> None:
    assert two.post("/api/show", json=body).json() == {
        "details": {"family": "bert", "families": ["bert"], "quantization_level": "BF16"},
        "model_info": {
            "general.architecture": "bert",
            "general.basename": "BAAI/bge-small",
            "bert.context_length": MAX_SEQ_LEN,
            "bert.embedding_length": DIMENSION,
        },
        "capabilities": ["embedding"],
        "modified_at": "2023-11-14T22:13:20+00:00",
    }


def test_show_of_what_makes_no_vectors(two: httpx.Client) -> None:
    shown = two.post("/api/show", json={"model": "ranker"}).json()
    assert shown["capabilities"] == [] and "qwen3.embedding_length" not in shown["model_info"]


def test_priority_and_time_come_by_headers(client: httpx.Client, engine: FakeEngine) -> None:
    headers = {"x-priority": "bulk", "x-request-timeout": "5"}
    assert client.post("/api/embed", json={"input": "a"}, headers=headers).status_code == 200
    assert engine.requests[0].priority == "bulk"
    engine.delay = 60
    late = client.post("/api/embed", json={"input": "a"}, headers={"x-request-timeout": "0.01"})
    assert (late.status_code, late.json()) == (504, {"error": "the answer was not ready after 0.01 seconds"})


def test_what_is_no_number_is_not_sent(client: httpx.Client, engine: FakeEngine) -> None:
    engine.vector = np.full(DIMENSION, np.nan, np.float32)
    for path, body in (("/api/embed", {"input": "a"}), ("/api/embeddings", {"prompt": "a"})):
        assert client.post(path, json=body).status_code == 500
