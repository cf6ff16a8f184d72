"""A late-interaction checkpoint behind every route that gives its vectors or its scores."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.server.rtp_clients import Served, serving
from tests.tasks import late
from tests.tasks.late import SKIPPED

pytest.importorskip("torch")
sentence_transformers = pytest.importorskip("sentence_transformers")
pytest.importorskip("sentence_transformers.multi_vector_encoder")

QUERY = "the weather is lovely"
DOCUMENTS = ["a b c .", "the weather is lovely today", "", "he drove to stadium ! !", "so sunny outside"]
EXPANSION = {"strategy": "fixed", "attend": False, "length": 12}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    def make(folder: Any) -> None:
        late.save(folder, lengths={"query_expansion": EXPANSION}, mask={"skiplist_words": SKIPPED})
        for file in (folder / "saved").iterdir():
            file.rename(folder / file.name)

    yield from serving(make, tmp_path_factory, "late")


@pytest.fixture(scope="module")
def scores(served: Served) -> Any:
    """MultiVectorEncoder's, for each document."""
    theirs = sentence_transformers.MultiVectorEncoder(served.model._engine.config.checkpoint_path, device="cpu")
    queries, documents = theirs.encode_query([QUERY]), theirs.encode_document(DOCUMENTS)
    return theirs.similarity(queries, documents).numpy()[0]


@pytest.mark.parametrize("side", ["query", "document"])
@pytest.mark.parametrize("field", ["input_type", "task", "prompt_name"])
@pytest.mark.parametrize("path", ["/v1/embeddings/colbert", "/v1/embeddings", "/embeddings"])
def test_vectors_by_side(path: str, field: str, side: str, served: Served) -> None:
    expected = served.model.embed_colbert(DOCUMENTS, prompt_name=side)
    data = served.post(path, input=DOCUMENTS, **{field: side})["data"]
    for item, vectors in zip(data, expected, strict=True):
        assert item["object"] == "colbert_embedding"
        np.testing.assert_allclose(np.array(item["embedding"]).reshape(vectors.shape), vectors, rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", ["query", "document"])
@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/v1/multi-vector", {"embedding_type": "float", "dimensions": 16}),
        ("/v1/multi-vector", {"return_multivector": None}),
        ("/v1/embeddings", {"return_multivector": True, "truncate": True}),
    ],
)
def test_jinas_form(path: str, more: dict[str, Any], side: str, served: Served) -> None:
    """What Jina answers with under `embeddings`: of /v1/multi-vector, and of /v1/embeddings with return_multivector."""
    if more.get("dimensions"):
        more = more | {"dimensions": served.model.info.dimension}
    expected = served.model.embed_colbert(DOCUMENTS, prompt_name=side)
    data = served.post(path, input=[{"text": text} for text in DOCUMENTS], input_type=side, **more)["data"]
    for index, (item, vectors) in enumerate(zip(data, expected, strict=True)):
        assert sorted(item) == ["embeddings", "index", "object"]
        assert (item["object"], item["index"]) == ("embeddings", index)
        np.testing.assert_allclose(np.array(item["embeddings"]).reshape(vectors.shape), vectors, rtol=0, atol=1e-6)
    plain = served.post("/v1/embeddings", input=QUERY, return_multivector=False)["data"][0]
    assert plain["object"] == "colbert_embedding"


def test_words_of_other_apis_and_none(served: Served) -> None:
    queries, documents = (served.model.embed_colbert([QUERY], prompt_name=side)[0] for side in ("query", "document"))
    assert len(queries) == 12 and len(documents) < 12
    for word, expected in (("search_query", queries), ("retrieval.query", queries), ("retrieval.passage", documents)):
        (item,) = served.post("/v1/embeddings/colbert", input=QUERY, input_type=word)["data"]
        assert len(item["embedding"]) == len(expected)
    (item,) = served.post("/v1/embeddings/colbert", input=QUERY)["data"]
    assert len(item["embedding"]) == len(documents)
    kinds = served.post("/v1/embeddings", input=QUERY, output=["colbert", "tokens"], input_type="query")["data"][0]
    assert len(kinds["colbert_embedding"]) == 12 and len(kinds["token_ids"]) == 12


def test_pooling(served: Served) -> None:
    for side in ("query", "document"):
        expected = served.model.embed_colbert(DOCUMENTS, prompt_name=side)
        data = served.post("/pooling", input=DOCUMENTS, task="token_embed", input_type=side)["data"]
        assert [len(item["data"]) for item in data] == [len(vectors) for vectors in expected]


def test_hidden_states(served: Served) -> None:
    (rows,) = served.client.post("/embed_all", json={"inputs": "he drove"}).json()
    assert np.shape(rows) == (4, 32)


def test_similarity(served: Served, scores: Any) -> None:
    answer = served.post("/v1/embeddings/similarity", left=[QUERY], right=DOCUMENTS)["similarity"]
    np.testing.assert_allclose(answer[0], scores, rtol=1e-5)
    np.testing.assert_allclose(served.model.similarity([QUERY], DOCUMENTS, kind="colbert")[0], scores, rtol=1e-5)


def by_index(results: Any, name: str) -> list[float]:
    order = [result["index"] for result in results]
    assert order == sorted(order, key=lambda index: -results[order.index(index)][name])
    return [result[name] for result in sorted(results, key=lambda result: result["index"])]


def test_rerank(served: Served, scores: Any) -> None:
    sums = {"/rerank": {"raw_scores": True}, "/v1/rerank": {"raw_scores": True}, "/v1/reranker": {}}
    means: dict[str, dict[str, Any]] = {"/rerank": {}, "/v2/rerank": {}, "/v1/reranker": {"normalize": True}}
    for bodies, wanted in ((sums, scores), (means, scores / 12)):
        for path, own in bodies.items():
            results = served.post(path, query=QUERY, documents=DOCUMENTS, **own)["results"]
            np.testing.assert_allclose(by_index(results, "relevance_score"), wanted, rtol=1e-5)
    for raw, wanted in ((True, scores), (False, scores / 12)):
        results = served.client.post("/rerank", json={"query": QUERY, "texts": DOCUMENTS, "raw_scores": raw}).json()
        np.testing.assert_allclose(by_index(results, "score"), wanted, rtol=1e-5)
    data = served.post("/score", text_1=QUERY, text_2=DOCUMENTS)["data"]
    np.testing.assert_allclose([entry["score"] for entry in data], scores, rtol=1e-5)


def test_the_library_ranks(served: Served, scores: Any) -> None:
    ranked = served.model.rerank(QUERY, DOCUMENTS, top_k=3)
    assert [entry.index for entry in ranked] == np.argsort(-scores, kind="stable").tolist()[:3]
    np.testing.assert_allclose([entry.score for entry in ranked], np.sort(scores)[::-1][:3], rtol=1e-5)


@pytest.mark.parametrize(
    ("path", "field"), [("/v1/reranker", "documents"), ("/rerank", "texts"), ("/rerank", "documents")]
)
def test_errors_name_the_field(path: str, field: str, served: Served) -> None:
    whole = {"truncation": False} if path == "/v1/reranker" else {"truncate": False}
    for body, place in (
        ({"query": "a", field: ["b", "a " * 90]}, f"{field}[1]"),
        ({"query": "a " * 90, field: ["b"]}, "query"),
    ):
        answer = served.client.post(path, json={**body, **whole})
        assert answer.status_code in (400, 422) and f"{place} has at least 92 tokens" in answer.text
