"""/v1/ranking as NVIDIA NIM's clients ask for it, over tiny random checkpoints; its probes."""

from typing import Any

import numpy as np
import pytest

from tests.server.rtp_clients import Served

pytest.importorskip("torch")

QUERY, PASSAGES = "so sunny outside", ["the weather", "", "he drove to stadium", "the weather"]


def body(**more: Any) -> dict[str, Any]:
    return {"model": "m", "query": {"text": QUERY}, "passages": [{"text": text} for text in PASSAGES], **more}


def test_logits_best_first(reranker: Served) -> None:
    answer = reranker.post("/v1/ranking", **body(truncate="END"))
    assert sorted(answer) == ["rankings", "usage"]
    expected = {entry.index: entry.score for entry in reranker.model.rerank(QUERY, PASSAGES, activation="none")}
    logits = [entry["logit"] for entry in answer["rankings"]]
    assert logits == sorted(logits, reverse=True)
    for entry in answer["rankings"]:
        assert sorted(entry) == ["index", "logit"]
        assert np.float32(entry["logit"]) == np.float32(expected[entry["index"]])
    order = [entry["index"] for entry in answer["rankings"]]
    assert order.index(0) < order.index(3), "equal logits keep the request's order"
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] > 0


@pytest.mark.parametrize("name", ["top_n", "top_k"])
def test_the_best(name: str, reranker: Served) -> None:
    whole = reranker.post("/v1/ranking", **body())["rankings"]
    for most, count in ((None, 4), (0, 4), (2, 2), (9, 4)):
        assert reranker.post("/v1/ranking", **body(**{name: most}))["rankings"] == whole[:count]


def test_models_that_are_no_rerankers(dense: Served, m3: Served) -> None:
    for served in (dense, m3):
        scores = {
            entry["index"]: entry["score"] for entry in served.post("/score", text_1=QUERY, text_2=PASSAGES)["data"]
        }
        ranked = {entry["index"]: entry["logit"] for entry in served.post("/v1/ranking", **body())["rankings"]}
        assert ranked == scores


@pytest.mark.parametrize(
    ("more", "message", "param"),
    [
        ({"passages": []}, "passages is an empty list", "passages"),
        ({"passages": ["a"]}, "passages[0]: expected object", "passages[0]"),
        ({"query": "a"}, "query: expected object", "query"),
        ({"passages": [{"text": "a", "image": "data:x"}]}, "passages[0].image: a text model is served", None),
        ({"top_n": -1}, "top_n: -1 is below 0", "top_n"),
        ({"truncate": "NONE", "query": {"text": "a " * 90}}, "set truncate to END", "passages[0].text"),
        ({"truncate": "MIDDLE"}, "allowed: 'NONE', 'START', 'END'", "truncate"),
        ({"passages": [{"text": "a"}] * 51}, "51 inputs are over the limit of 50", "passages"),
    ],
)
def test_refusals(more: dict[str, Any], message: str, param: str | None, reranker: Served) -> None:
    error = reranker.refuse("/v1/ranking", **body(**more))
    assert message in error["message"] and error["param"] == (param or "passages[0].image")


def test_the_hosted_apis_path(reranker: Served) -> None:
    """LiteLLM and Weaviate post to NVIDIA's own API's path, which spells the model's name otherwise than the body."""
    plain = reranker.post("/v1/ranking", **body())
    for name in ("nvidia", "nvidia/llama-3_2-nv-rerankqa-1b-v2"):
        assert reranker.post(f"/v1/retrieval/{name}/reranking", **body()) == plain
    assert reranker.client.get("/v1/retrieval/nvidia/reranking").status_code == 405


def test_probes(reranker: Served) -> None:
    for path in ("/v1/health/ready", "/v1/health/live"):
        assert reranker.client.get(path).status_code == 200
