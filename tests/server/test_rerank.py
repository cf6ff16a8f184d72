"""/rerank, /v1/rerank and /v2/rerank over tiny random checkpoints: every client's fields, with any kind of model."""

from typing import Any

import numpy as np
import pytest

from tests.server.rtp_clients import Served
from tests.tasks.checkpoints import LIMIT

pytest.importorskip("torch")

QUERY, DOCUMENTS = "so sunny outside", ["the weather", "", "he drove to stadium", "lovely " * 90, "the weather"]
PATHS = ["/rerank", "/v1/rerank", "/v2/rerank"]


def expected(served: Served, activation: str = "sigmoid") -> dict[int, float]:
    return {entry.index: entry.score for entry in served.model.rerank(QUERY, DOCUMENTS, activation=activation)}


@pytest.mark.parametrize("path", PATHS)
def test_answer(path: str, reranker: Served) -> None:
    answer = reranker.post(path, query=QUERY, documents=DOCUMENTS, model="any")
    assert sorted(answer) == ["data", "id", "meta", "model", "object", "results", "usage"]
    assert (answer["object"], answer["model"]) == ("rerank", "tiny") and answer["id"].startswith("rerank-")
    total = 5 * 6 + 2 + 0 + 4 + (LIMIT - 6) + 2
    assert answer["usage"] == {"prompt_tokens": total, "total_tokens": total}
    assert answer["meta"]["billed_units"] == {"search_units": 1}
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True) and all(0 <= score <= 1 for score in scores)
    for result in answer["results"]:
        assert sorted(result) == ["index", "relevance_score"]
        assert np.float32(result["relevance_score"]) == np.float32(expected(reranker)[result["index"]])
    order = [result["index"] for result in answer["results"]]
    assert order.index(0) < order.index(4), "equal scores keep the request's order"


@pytest.mark.parametrize(("field", "value"), [("raw_scores", True), ("use_activation", False)])
def test_raw_scores(field: str, value: bool, reranker: Served) -> None:
    for result in reranker.post("/rerank", query=QUERY, documents=DOCUMENTS, **{field: value})["results"]:
        assert np.float32(result["relevance_score"]) == np.float32(expected(reranker, "none")[result["index"]])


@pytest.mark.parametrize(("top", "count"), [(None, 5), (0, 5), (2, 2), (5, 5), (99, 5)])
@pytest.mark.parametrize("name", ["top_n", "top_k"])
def test_top_n(name: str, top: int | None, count: int, reranker: Served) -> None:
    whole = reranker.post("/rerank", query=QUERY, documents=DOCUMENTS)["results"]
    assert reranker.post("/rerank", query=QUERY, documents=DOCUMENTS, **{name: top})["results"] == whole[:count]


def test_documents_are_objects_in_and_out(reranker: Served) -> None:
    given = ["the weather", {"text": "he drove", "title": "x"}, {"content": [{"type": "text", "text": "so sunny"}]}]
    answer = reranker.post("/rerank", query=QUERY, documents=given, return_documents=True, rank_fields=["text"])
    texts = {result["index"]: result["document"] for result in answer["results"]}
    assert texts == {0: {"text": "the weather"}, 1: {"text": "he drove"}, 2: {"text": "so sunny"}}
    plain = reranker.post("/rerank", query=QUERY, documents=["the weather", "he drove", "so sunny"])
    assert [r["relevance_score"] for r in plain["results"]] == [r["relevance_score"] for r in answer["results"]]


def test_max_tokens_per_doc(reranker: Served) -> None:
    cut = reranker.post("/rerank", query="he", documents=["so sunny outside today"], max_tokens_per_doc=2)
    whole = reranker.post("/rerank", query="he", documents=["so sunny"])
    assert cut["results"] == whole["results"] and cut["usage"] == whole["usage"]


def test_voyage(reranker: Served) -> None:
    answer = reranker.post("/v1/rerank", query=QUERY, documents=DOCUMENTS, top_k=2, truncation=True, model="rerank-2")
    assert answer["object"] == "list"
    assert answer["data"] == answer["results"] and len(answer["data"]) == 2
    told = reranker.post("/v1/rerank", query=QUERY, documents=DOCUMENTS, top_k=None, return_documents=True)
    assert {entry["index"]: entry["document"] for entry in told["data"]} == dict(enumerate(DOCUMENTS))


def test_voyage_without_words_of_its_own(reranker: Served) -> None:
    """Voyage's `top_k` and `truncation` may both be left out, and its answer has `data` whatever is sent."""
    answer = reranker.post("/v1/rerank", query=QUERY, documents=DOCUMENTS, model="rerank-2", return_documents=True)
    plain = [{name: entry[name] for name in ("index", "relevance_score")} for entry in answer["results"]]
    assert answer["data"] == [{**entry, "document": DOCUMENTS[entry["index"]]} for entry in plain]
    assert answer["object"] == "rerank", "Infinity's client takes no other"
    assert "data" not in reranker.post("/v1/rerank", query=QUERY, documents=DOCUMENTS, top_n=2)


@pytest.mark.parametrize("document", ["the weather", {"text": "the weather"}])
def test_one_document_alone(document: Any, reranker: Served) -> None:
    """vLLM's RerankRequest has `documents: ScoreInput | list[ScoreInput]`."""
    alone = reranker.post("/rerank", query=QUERY, documents=document, return_documents=True)
    listed = reranker.post("/rerank", query=QUERY, documents=[document], return_documents=True)
    assert alone["results"] == listed["results"] and len(alone["results"]) == 1
    error = reranker.refuse("/rerank", query=QUERY, documents="a " * 90, truncate=False)
    assert error["param"] == "documents"


def test_a_body_with_texts_is_in_teis_form(reranker: Served) -> None:
    answer = reranker.post("/rerank", query=QUERY, texts=DOCUMENTS)
    assert [sorted(entry) for entry in answer] == [["index", "score"]] * 5
    refused = reranker.client.post("/rerank", json={"query": 1, "texts": []})
    assert refused.status_code == 422 and sorted(refused.json()) == ["error", "error_type"]


def test_nulls_are_absent(reranker: Served) -> None:
    names = ("top_n", "return_documents", "max_tokens_per_doc", "instruction", "raw_scores", "use_activation", "model")
    plain = reranker.post("/rerank", query=QUERY, documents=DOCUMENTS)
    nulls: dict[str, Any] = dict.fromkeys((*names, "truncate"))
    answer = reranker.post("/rerank", query=QUERY, documents=DOCUMENTS, unknown=1, max_chunks_per_doc=1, **nulls)
    assert {**answer, "id": ""} == {**plain, "id": ""}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({"documents": []}, "documents is an empty list", "documents"),
        ({"documents": 1}, "documents: expected str | object | array", "documents"),
        ({"documents": [{}]}, "documents[0]: an object must have `text`", "documents[0]"),
        ({"documents": ["a", {"content": [{"type": "image_url"}]}]}, "documents[1]: an object", "documents[1]"),
        ({"query": None}, "query: expected str", "query"),
        ({"top_n": -1}, "top_n: -1 is below 0", "top_n"),
        ({"top_n": 1.5}, "got float", "top_n"),
        ({"max_tokens_per_doc": -1}, "max_tokens_per_doc: -1", "max_tokens_per_doc"),
        ({"truncate": False, "query": "a " * 90}, "the limit is 64", "documents[0]"),
        ({"truncation": False, "query": "a " * 90}, "documents[0] has at least", "documents[0]"),
        ({"documents": ["a"] * 51}, "51 inputs are over the limit of 50", "documents"),
    ],
)
def test_refusals(path: str, body: dict[str, Any], message: str, param: str, reranker: Served) -> None:
    answer = reranker.client.post(path, json={"query": "a", "documents": ["b"], **body})
    told = answer.json()
    assert answer.status_code in (400, 413)
    assert message in told["message"]
    if path != "/v2/rerank":
        assert told["detail"] == told["error"]["message"] and told["error"]["param"] == param


def test_max_sim(m3: Served) -> None:
    query, *documents = m3.model.embed_colbert([QUERY, *DOCUMENTS])
    sums = [float((query @ d.T).max(axis=1).sum()) if len(d) else 0.0 for d in documents]
    raw = m3.post("/rerank", query=QUERY, documents=DOCUMENTS, raw_scores=True)["results"]
    mean = m3.post("/rerank", query=QUERY, documents=DOCUMENTS)["results"]
    for one, other in zip(raw, mean, strict=True):
        assert one["relevance_score"] == pytest.approx(sums[one["index"]], abs=1e-5)
        assert other["relevance_score"] == pytest.approx(sums[other["index"]] / len(query), abs=1e-6)


def test_cosine_of_dense_vectors(dense: Served) -> None:
    query, *documents = dense.model.embed([QUERY, *DOCUMENTS], normalize=True)
    for result in dense.post("/v2/rerank", query=QUERY, documents=DOCUMENTS)["results"]:
        assert result["relevance_score"] == pytest.approx(float(documents[result["index"]] @ query), abs=1e-6)


@pytest.mark.parametrize("name", ["m3", "dense"])
def test_max_tokens_per_doc_of_vectors(name: str, request: pytest.FixtureRequest) -> None:
    """It cuts documents, and not the query."""
    served: Served = request.getfixturevalue(name)
    cut = served.post("/rerank", query=QUERY, documents=["so sunny outside today", "lovely"], max_tokens_per_doc=2)
    whole = served.post("/rerank", query=QUERY, documents=["so sunny", "lovely"])
    assert cut["results"] == whole["results"] and cut["usage"] == whole["usage"]
    score = served.post("/score", text_1=QUERY, text_2=["so sunny outside today", "lovely"], max_tokens_per_doc=2)
    plain = served.post("/score", text_1=QUERY, text_2=["so sunny", "lovely"])
    assert score["data"] == plain["data"]
