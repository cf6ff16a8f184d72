"""Weaviate's inference containers: bodies as the Go clients of its modules write them, answers as those read them."""

from typing import Any

import httpx
import numpy as np
import pytest

from tests.server.conftest import running_server
from tests.server.fake_engine import FakeEngine
from tests.server.rtp_clients import Served

pytest.importorskip("torch")

TEXTS = ["so sunny outside", "", "the weather is lovely today ."]
QUERY, DOCUMENTS = "so sunny outside", ["the weather", "", "he drove to stadium", "the weather"]
# What Go makes of the module's request: fields that are not set are there, as zeros.
UNSET: dict[str, Any] = {"dims": 0, "vector": None, "error": ""}


def refused(client: httpx.Client, path: str, **body: Any) -> tuple[int, str]:
    answer = client.post(path, json=body)
    assert list(answer.json()) == ["error"], answer.text
    return answer.status_code, answer.json()["error"]


@pytest.mark.parametrize("path", ["/vectors", "/vectors/"])
@pytest.mark.parametrize("config", [{"pooling_strategy": "masked_mean"}, {"task_type": "passage"}, {}, None])
def test_a_text(path: str, config: Any, m3: Served) -> None:
    answer = m3.post(path, text=TEXTS[0], config=config, **UNSET)
    assert list(answer) == ["text", "vector", "dim"]
    assert (answer["text"], answer["dim"]) == (TEXTS[0], len(answer["vector"]))
    np.testing.assert_array_equal(np.float32(answer["vector"]), m3.model.embed(TEXTS[:1], normalize=True)[0])


def test_several(dense: Served) -> None:
    answer = dense.post("/vectors", texts=TEXTS, config={"task_type": "query", "dimensions": 8})
    assert list(answer) == ["vectors", "dims"] and answer["dims"] == 8
    expected = dense.model.embed(TEXTS, normalize=True, dimensions=8)
    np.testing.assert_array_equal(np.float32(answer["vectors"]), expected)
    assert dense.post("/vectors", text=TEXTS[2], config={"dimensions": 8})["vector"] == answer["vectors"][2]


def test_prompts_by_what_a_text_is_for(client: httpx.Client, engine: FakeEngine) -> None:
    for word in ("query", "passage", None):
        answer = client.post("/vectors", json={"text": "a", "config": {"task_type": word}})
        assert answer.status_code == 200
    assert [request.params.prompt_name for request in engine.requests] == ["query", "passage", None]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "text: give either text, or texts"),
        ({"text": "a", "texts": ["a"]}, "text: give either text, or texts"),
        ({"texts": []}, "texts is an empty list"),
        ({"texts": ["a"] * 201}, "201 inputs are over the limit of 200"),
        ({"text": ["a"]}, "text: expected str"),
        ({"text": "a", "config": {"dimensions": 9}}, "dimensions: 9 is not between 1 and 8"),
        ({"text": "a", "config": {"task_type": "poem"}}, "config.task_type: 'poem' is not one of"),
        ({"text": "a", "config": "x"}, "config: expected object"),
    ],
)
def test_bad_bodies(body: dict[str, Any], words: str, client: httpx.Client) -> None:
    status, message = refused(client, "/vectors", **body)
    assert status in (400, 413) and words in message


def test_scores(reranker: Served) -> None:
    """In the order of the documents, through the checkpoint's activation; the module sends an empty property."""
    answer = reranker.post("/rerank", query=QUERY, documents=DOCUMENTS, property="")
    expected = {entry.index: entry.score for entry in reranker.model.rerank(QUERY, DOCUMENTS)}
    assert (answer["query"], answer["property"], answer["score"]) == (QUERY, None, None)
    assert [entry["document"] for entry in answer["scores"]] == DOCUMENTS
    for place, entry in enumerate(answer["scores"]):
        assert np.float32(entry["score"]) == np.float32(expected[place])


def test_the_score_of_a_property(reranker: Served) -> None:
    answer = reranker.post("/rerank", query=QUERY, property=DOCUMENTS[0], documents=None)
    (entry,) = reranker.model.rerank(QUERY, DOCUMENTS[:1])
    assert answer["scores"] is None and answer["property"] == DOCUMENTS[0]
    assert np.float32(answer["score"]) == np.float32(entry.score)


def test_vectors_score_where_there_is_no_reranker(dense: Served) -> None:
    answer = dense.post("/rerank", query=QUERY, documents=DOCUMENTS, property="")
    expected = {entry.index: entry.score for entry in dense.model.rerank(QUERY, DOCUMENTS)}
    for place, entry in enumerate(answer["scores"]):
        assert entry["score"] == pytest.approx(expected[place], abs=1e-6)


def test_a_null_property_is_none(reranker: Served) -> None:
    assert "results" in reranker.post("/rerank", query=QUERY, documents=DOCUMENTS, property=None)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"query": QUERY, "documents": [], "property": ""}, "documents is an empty list"),
        ({"query": QUERY, "documents": ["a"] * 51, "property": ""}, "51 inputs are over the limit of 50"),
        ({"documents": ["a"], "property": ""}, "query is missing"),
        ({"query": QUERY, "documents": [{"text": "a"}], "property": ""}, "documents[0]: expected str"),
        ({"query": QUERY, "property": 5}, "property: expected str"),
    ],
)
def test_bad_reranks(body: dict[str, Any], words: str, reranker: Served) -> None:
    status, message = refused(reranker.client, "/rerank", **body)
    assert status in (400, 413) and words in message


def test_probes() -> None:
    engine = FakeEngine()
    with running_server(engine) as address, httpx.Client(base_url=address.url, trust_env=False) as client:
        for path in ("/.well-known/live", "/.well-known/ready"):
            answer = client.get(path)
            assert (answer.status_code, answer.content) == (204, b"")
        engine.not_ready = "starting"
        assert client.get("/.well-known/live").status_code == 204
        answer = client.get("/.well-known/ready")
        assert (answer.status_code, answer.json()) == (503, {"error": "starting"})


def test_meta(client: httpx.Client) -> None:
    assert client.get("/meta").json() == {"model": client.get("/v1/models").json()["data"][0]}


def test_meta_of_another_model() -> None:
    with running_server([FakeEngine(name="one"), FakeEngine(name="two")]) as address:
        answer = httpx.get(f"{address.url}/meta", headers={"x-model": "two"}, trust_env=False)
        assert answer.json()["model"]["id"] == "two"
