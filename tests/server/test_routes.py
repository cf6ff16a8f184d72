"""A checkpoint that looks queries up, behind every route that gives sparse vectors; and one whose routes are dense."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import SparseVector
from tests.server.rtp_clients import Served, served, serving
from tests.tasks import routers

pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")
pytest.importorskip("sentence_transformers.sparse_encoder.modules")

TEXTS = ["the weather is lovely", "so so sunny", ""]
WORDS = {
    "query": ("query", "search_query", "retrieval.query", "code.query"),
    "document": ("document", "search_document", "retrieval.passage", "passage", "corpus", "code.passage"),
}


def raised(folder: Path, saved: Path) -> None:
    """The checkpoint's files, into the folder that is served."""
    for file in saved.iterdir():
        file.rename(folder / file.name)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from serving(lambda folder: raised(folder, routers.save_sparse(folder)), tmp_path_factory, "sparse")


@pytest.fixture(scope="module")
def unsaid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    def make(folder: Path) -> None:
        raised(folder, routers.save_sparse(folder, default_route=None, allow_empty_key=False))

    yield from serving(make, tmp_path_factory, "unsaid")


def plain(vector: SparseVector) -> dict[str, float]:
    return dict(zip(map(str, vector.indices.tolist()), vector.values.tolist(), strict=True))


@pytest.mark.parametrize("side", WORDS)
@pytest.mark.parametrize("field", ["input_type", "task"])
@pytest.mark.parametrize("path", ["/v1/embeddings/sparse", "/v1/embeddings"])
def test_sides_by_every_word(path: str, field: str, side: str, sparse: Served) -> None:
    expected = [plain(vector) for vector in sparse.model.embed_sparse(TEXTS, prompt_name=side)]
    for word in WORDS[side]:
        data = sparse.post(path, input=TEXTS, **{field: word})["data"]
        assert [item["embedding"] for item in data] == [pytest.approx(weights, abs=1e-6) for weights in expected]


def test_prompt_name_and_none(sparse: Served) -> None:
    for body, side in (({"prompt_name": "query"}, "query"), ({}, "document"), ({"task": "text-matching"}, "document")):
        data = sparse.post("/v1/embeddings/sparse", input=TEXTS, **body)["data"]
        (vector, *_) = sparse.model.embed_sparse(TEXTS, prompt_name=side)
        assert data[0]["embedding"] == pytest.approx(plain(vector), abs=1e-6)


@pytest.mark.parametrize("side", WORDS)
def test_tei(side: str, sparse: Served) -> None:
    expected = sparse.model.embed_sparse(TEXTS[:2], prompt_name=side)
    rows = sparse.client.post("/embed_sparse", json={"inputs": TEXTS[:2], "prompt_name": side}).json()
    assert [[value["index"] for value in row] for row in rows] == [vector.indices.tolist() for vector in expected]


def test_an_empty_query(sparse: Served) -> None:
    answer = sparse.post("/v1/embeddings/sparse", input="", input_type="query", sparse_format="arrays")
    assert answer["data"][0]["embedding"] == {"indices": [], "values": []}
    assert answer["usage"] == {"prompt_tokens": 0, "total_tokens": 0}


def test_similarity(sparse: Served) -> None:
    table = sparse.post("/v1/embeddings/similarity", left=TEXTS[:2], right=TEXTS, kind="sparse")["similarity"]
    np.testing.assert_allclose(table, sparse.model.similarity(TEXTS[:2], TEXTS, kind="sparse"), rtol=1e-6)


def test_max_active_dims(sparse: Served) -> None:
    for side in WORDS:
        (item,) = sparse.post("/v1/embeddings/sparse", input=TEXTS[0], input_type=side, max_active_dims=2)["data"]
        assert len(item["embedding"]) == 2
        whole = plain(sparse.model.embed_sparse(TEXTS[:1], prompt_name=side)[0])
        assert min(map(abs, item["embedding"].values())) >= sorted(map(abs, whole.values()))[-2] - 1e-6
    error = sparse.refuse("/v1/embeddings/sparse", input="a", max_active_dims=0)
    assert error["param"] == "max_active_dims"


def test_what_nothing_is_said_of(unsaid: Served) -> None:
    error = unsaid.refuse("/v1/embeddings/sparse", input=TEXTS)
    assert error["param"] == "input_type" and "one of query, document" in error["message"]
    assert unsaid.client.post("/embed_sparse", json={"inputs": TEXTS}).status_code in (400, 413, 422)
    assert unsaid.client.post("/embed_sparse", json={"inputs": TEXTS, "prompt_name": "query"}).status_code == 200
    assert len(unsaid.post("/v1/embeddings", input=TEXTS, input_type="passage")["data"]) == len(TEXTS)
    unsaid.post("/v1/embeddings/similarity", left=TEXTS, right=TEXTS, kind="sparse")


def test_dense_routes(tmp_path: Path) -> None:
    with served(routers.save_dense(tmp_path, default_route="document")) as server:
        for side, words in WORDS.items():
            expected = server.model.embed(TEXTS, prompt_name=side)
            for word in words:
                data: Any = server.post("/v1/embeddings", input=TEXTS, input_type=word)["data"]
                np.testing.assert_allclose([item["embedding"] for item in data], expected, rtol=0, atol=1e-6)
        queries, documents = (server.model.embed(TEXTS, prompt_name=side) for side in WORDS)
        ranked = server.post("/score", text_1=TEXTS[0], text_2=TEXTS[1:])["data"]
        scores = documents[1:] @ queries[0]
        np.testing.assert_allclose([item["score"] for item in ranked], scores, rtol=0, atol=1e-5)
