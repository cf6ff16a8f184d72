"""RTP-LLM's embeddings routes over a tiny BGE-M3: each kind's JSON, several kinds at once, similarity."""

import asyncio
import base64
import re
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from rtp_llm.core import SparseVector
from tests.server.rtp_clients import Served, serving
from tests.tasks.checkpoints import LIMIT, VOCAB, save

pytest.importorskip("torch")

TEXTS = ["so sunny outside", "", "the weather " * 60]
LEFT, RIGHT = ["so sunny", "he drove to stadium"], ["the weather is lovely", "so so", ""]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from serving(save, tmp_path_factory, "tokens", task_type="all_embedding")


def by_id(vector: SparseVector) -> dict[str, Any]:
    return dict(zip(map(str, vector.indices), map(np.float32, vector.values), strict=True))


def as_floats(weights: dict[str, float]) -> dict[str, Any]:
    return {key: np.float32(weight) for key, weight in weights.items()}


def frame(answer: Any) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key != "data"}


def test_dense_is_the_default(m3: Served) -> None:
    expected = m3.model.embed(TEXTS)
    for path in ("/v1/embeddings", "/embeddings", "/v1/embeddings/dense"):
        answer = m3.post(path, input=TEXTS)
        assert [item["object"] for item in answer["data"]] == ["embedding"] * 3
        np.testing.assert_array_equal(np.array([item["embedding"] for item in answer["data"]], np.float32), expected)


def test_sparse(m3: Served) -> None:
    answer = m3.post("/v1/embeddings/sparse", input=TEXTS)
    assert answer["object"] == "list" and answer["model"] == "tiny"
    assert [sorted(item) for item in answer["data"][:2]] == [["embedding", "index", "object"]] * 2
    for index, (item, vector) in enumerate(zip(answer["data"], m3.model.embed_sparse(TEXTS), strict=True)):
        assert item["object"] == "sparse_embedding" and item["index"] == index
        assert as_floats(item["embedding"]) == by_id(vector)
    assert answer["data"][2]["truncated"] is True
    assert answer["usage"] == {"prompt_tokens": 5 + 2 + LIMIT, "total_tokens": 5 + 2 + LIMIT}


def test_sparse_by_the_vocabularys_words(m3: Served) -> None:
    (item,) = m3.post("/v1/embeddings/sparse", input=TEXTS[0], return_decoded=True)["data"]
    (vector,) = m3.model.embed_sparse(TEXTS[:1])
    assert as_floats(item["embedding"]) == {VOCAB[int(key)]: weight for key, weight in by_id(vector).items()}


@pytest.mark.parametrize("decoded", [False, True])
def test_sparse_as_arrays(decoded: bool, m3: Served) -> None:
    (item,) = m3.post("/v1/embeddings/sparse", input=TEXTS[0], return_decoded=decoded, sparse_format="arrays")["data"]
    (vector,) = m3.model.embed_sparse(TEXTS[:1], return_tokens=True)
    assert item["embedding"]["indices"] == vector.indices.tolist()
    np.testing.assert_array_equal(np.float32(item["embedding"]["values"]), vector.values)
    assert item["embedding"].get("tokens") == (list(vector.tokens or ()) if decoded else None)


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_colbert(encoding_format: str, m3: Served) -> None:
    answer = m3.post("/v1/embeddings/colbert", input=TEXTS, encoding_format=encoding_format)
    for item, vectors in zip(answer["data"], m3.model.embed_colbert(TEXTS), strict=True):
        assert item["object"] == "colbert_embedding"
        rows = item["embedding"]
        if encoding_format == "base64":
            rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
        np.testing.assert_array_equal(np.float32(rows), vectors)


def test_no_vectors_are_an_empty_list(m3: Served) -> None:
    assert m3.post("/v1/embeddings/colbert", input=[5])["data"][0]["embedding"] == []


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/embeddings/sparse"])
def test_several_kinds_at_once(path: str, m3: Served) -> None:
    answer = m3.post(path, input=TEXTS, output=["colbert", "dense", "sparse", "dense"])
    dense, sparse, colbert = m3.model.embed(TEXTS), m3.model.embed_sparse(TEXTS), m3.model.embed_colbert(TEXTS)
    assert frame(answer)["object"] == "list"
    for place, item in enumerate(answer["data"]):
        assert item["object"] == "embedding" and item["index"] == place
        np.testing.assert_array_equal(np.float32(item["embedding"]), dense[place])
        np.testing.assert_array_equal(np.float32(item["colbert_embedding"]), colbert[place])
        assert as_floats(item["sparse_embedding"]) == by_id(sparse[place])


def test_one_kind_by_output_keeps_its_name(m3: Served) -> None:
    (item,) = m3.post("/v1/embeddings", input="a b", output=["sparse"])["data"]
    assert sorted(item) == ["index", "object", "sparse_embedding"]


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({"output": []}, "output is empty", "output"),
        ({"output": ["dense", "lexical"]}, "'lexical' is not one of dense, sparse, colbert, tokens", "output[1]"),
        ({"output": "dense"}, "expected array | null, got str", "output"),
        ({"output": [["dense"]]}, "expected str, got array", "output[0]"),
        ({"sparse_format": "csr"}, "'map', 'arrays'", "sparse_format"),
        ({"return_decoded": "yes"}, "got str", "return_decoded"),
        ({"dimensions": 33}, "33 is not between 1 and 32", "dimensions"),
    ],
)
def test_refusals(body: dict[str, Any], message: str, param: str | None, m3: Served) -> None:
    error = m3.refuse("/v1/embeddings", input="a", **body)
    assert message in error["message"] and error["param"] == param


@pytest.mark.parametrize("accept", ["application/octet-stream", "application/x-npy"])
@pytest.mark.parametrize("path", ["/v1/embeddings/sparse", "/v1/embeddings/colbert", "/v1/multi-vector"])
def test_raw_bytes_are_of_dense_vectors(path: str, accept: str, m3: Served) -> None:
    answer = m3.client.post(path, json={"input": TEXTS}, headers={"accept": accept})
    assert answer.status_code == 400 and "raw bytes and .npy hold dense vectors" in answer.json()["error"]["message"]


def test_all_embedding(tokens: Served) -> None:
    answer = tokens.post("/v1/embeddings", input=TEXTS)
    for item, vectors in zip(answer["data"], tokens.model.embed_all(TEXTS)["tokens"], strict=True):
        assert item["object"] == "embedding" and len(item["token_ids"]) == len(vectors)
        np.testing.assert_array_equal(np.float32(item["embedding"]), vectors)
    assert answer["data"][0]["token_ids"] == [VOCAB.index(word) for word in "[CLS] so sunny outside [SEP]".split()]
    raw = tokens.post("/v1/embeddings", input=TEXTS, normalize=False)["data"]
    assert abs(np.linalg.norm(raw[0]["embedding"][0]) - 1) > 1e-3
    assert tokens.refuse("/v1/embeddings/dense", input="a")["code"] == "unsupported_task"


@pytest.mark.parametrize("kind", [None, "dense", "sparse", "colbert", "hybrid"])
def test_similarity(kind: Any, m3: Served) -> None:
    answer = m3.post("/v1/embeddings/similarity", left=LEFT, right=RIGHT, kind=kind, return_response=True)
    assert answer.pop("similarity") == pytest.approx(
        m3.model.similarity(LEFT, RIGHT, kind=kind or "dense").astype(float), abs=1e-6
    )
    assert answer == {"model": "tiny", "left_response": None, "right_response": None}


def test_hybrid_weights(m3: Served) -> None:
    answer = m3.post("/v1/embeddings/similarity", left=LEFT, right=RIGHT, kind="hybrid", weights=[0.4, 0.2, 0.4])
    expected = m3.model.similarity(LEFT, RIGHT, kind="hybrid", weights=[0.4, 0.2, 0.4])
    assert np.allclose(answer["similarity"], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"left": []}, "left is an empty list"),
        ({"right": []}, "right is an empty list"),
        ({"left": "a"}, "left: expected array, got str"),
        ({"right": [1]}, r"right\[0\]: expected str"),
        ({"kind": "tokens"}, "'dense', 'sparse', 'colbert', 'hybrid'"),
        ({"kind": "hybrid", "weights": [1]}, "not three numbers"),
        ({"kind": "hybrid", "weights": [0, 0, 0]}, "all are 0"),
        ({"kind": "sparse", "weights": [1.5]}, "they go with kind 'hybrid', and kind 'sparse' was asked for"),
        ({"weights": [1, 1, 1]}, "they go with kind 'hybrid', and no kind was asked for"),
        ({"kind": "hybrid", "weights": [1, 1, -1]}, "not three numbers"),
        ({"left": ["a"] * 51}, "51 inputs are over the limit of 50"),
        ({"left": ["a"] * 30, "right": ["a"] * 30}, "60 inputs are over the limit of 50"),
    ],
)
def test_similarity_refusals(body: dict[str, Any], message: str, m3: Served) -> None:
    error = m3.refuse("/v1/embeddings/similarity", **{"left": ["a"], "right": ["b"], **body})
    assert re.search(message, error["message"])


def test_similarity_of_what_cannot_be_compared(tokens: Served) -> None:
    for kind in (None, "dense", "hybrid"):
        error = tokens.refuse("/v1/embeddings/similarity", left=["a"], right=["b"], kind=kind)
        assert error["code"] == "unsupported_task"


def test_kinds_of_different_requests_share_batches_and_keep_their_bits(m3: Served) -> None:
    expected = m3.model.embed_all(TEXTS)

    async def mixed() -> list[Any]:
        async with httpx.AsyncClient(base_url=m3.client.base_url, timeout=20, trust_env=False) as client:
            paths = [f"/v1/embeddings/{kind}" for kind in ("dense", "sparse", "colbert")] * 8
            answers = await asyncio.gather(*(client.post(path, json={"input": TEXTS}) for path in paths))
            return [answer.json()["data"] for answer in answers]

    for place, data in enumerate(asyncio.run(mixed())):
        kind = ("dense", "sparse", "colbert")[place % 3]
        for item, output in zip(data, expected[kind], strict=True):
            if kind == "sparse":
                assert as_floats(item["embedding"]) == by_id(output)
            else:
                np.testing.assert_array_equal(np.float32(item["embedding"]), output)
