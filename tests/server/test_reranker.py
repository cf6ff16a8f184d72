"""/v1/reranker, /v1/classifier, /tokenize and /tokenizer/encode over tiny random checkpoints, field by field."""

from typing import Any

import httpx
import numpy as np
import pytest

from tests.server.rtp_clients import Served
from tests.tasks.checkpoints import LIMIT, VOCAB

pytest.importorskip("torch")

QUERY, DOCUMENTS = "so sunny outside", ["the weather", "", "he drove to stadium", "lovely " * 90, "the weather"]


def raw_scores(served: Served) -> dict[int, float]:
    return {entry.index: entry.score for entry in served.model.rerank(QUERY, DOCUMENTS, activation="none")}


def test_reranker_answer(reranker: Served) -> None:
    answer = reranker.post("/v1/reranker", query=QUERY, documents=DOCUMENTS)
    assert sorted(answer) == ["results", "total_tokens"]
    assert [sorted(result) for result in answer["results"]] == [["document", "index", "relevance_score"]] * 5
    scores, given = raw_scores(reranker), [result["relevance_score"] for result in answer["results"]]
    assert given == sorted(given, reverse=True)
    for result in answer["results"]:
        assert result["document"] == DOCUMENTS[result["index"]]
        assert np.float32(result["relevance_score"]) == np.float32(scores[result["index"]])
    order = [result["index"] for result in answer["results"]]
    assert order.index(0) < order.index(4), "equal scores keep the request's order"
    assert answer["total_tokens"] == 5 * 6 + 2 + 0 + 4 + (LIMIT - 6) + 2


def test_reranker_unsorted_and_cut(reranker: Served) -> None:
    answer = reranker.post("/v1/reranker", query=QUERY, documents=DOCUMENTS, sorted=False, top_k=3)
    assert [result["index"] for result in answer["results"]] == [0, 1, 2]
    best = reranker.post("/v1/reranker", query=QUERY, documents=DOCUMENTS, top_k=2)["results"]
    whole = reranker.post("/v1/reranker", query=QUERY, documents=DOCUMENTS)["results"]
    assert best == whole[:2]
    assert len(reranker.post("/v1/reranker", query=QUERY, documents=["a"], top_k=9)["results"]) == 1


def test_reranker_without_documents(reranker: Served) -> None:
    answer = reranker.post("/v1/reranker", query=QUERY, documents=DOCUMENTS[:2], return_documents=False)
    assert [sorted(result) for result in answer["results"]] == [["index", "relevance_score"]] * 2


def test_reranker_normalize_is_sigmoid(reranker: Served) -> None:
    scores = raw_scores(reranker)
    for result in reranker.post("/v1/reranker", query=QUERY, documents=DOCUMENTS, normalize=True)["results"]:
        assert result["relevance_score"] == pytest.approx(1 / (1 + np.exp(-scores[result["index"]])), abs=1e-6)


@pytest.mark.parametrize("truncation", [True, "longest_first", None, "only_second"])
def test_reranker_truncation(truncation: Any, reranker: Served) -> None:
    long_query = "query " * 90
    answer = reranker.post("/v1/reranker", query=long_query, documents=["he drove"], truncation=truncation)
    kept = LIMIT * 3 // 4 + 3 + 2 if truncation == "only_second" else LIMIT
    assert answer["total_tokens"] == kept


def test_reranker_nulls_are_absent(reranker: Served) -> None:
    optional = ("top_k", "sorted", "return_documents", "normalize", "truncation", "instruction", "model")
    plain = reranker.post("/v1/reranker", query=QUERY, documents=DOCUMENTS)
    nulls: dict[str, Any] = dict.fromkeys(optional)
    assert reranker.post("/v1/reranker", query=QUERY, documents=DOCUMENTS, unknown=1, **nulls) == plain


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({"documents": []}, "documents is an empty list", "documents"),
        ({"documents": "a"}, "documents: expected array", "documents"),
        ({"documents": ["a", 1]}, "expected str, got int", "documents[1]"),
        ({"query": None}, "query: expected str, got null", "query"),
        ({"query": ["a"]}, "got array", "query"),
        ({"top_k": 0}, "top_k: 0 is below 1", "top_k"),
        ({"top_k": -1}, "top_k: -1 is below 1", "top_k"),
        ({"top_k": 1.5}, "got float", "top_k"),
        ({"truncation": "left"}, "truncation", "truncation"),
        (
            {"truncation": False, "documents": ["a", "a " * 90]},
            "documents[1] has at least 94 tokens with the other text of its pair and the limit is 64; "
            "shorten or split one of them, or set truncation to true",
            "documents[1]",
        ),
        ({"documents": ["a"] * 51}, "51 inputs are over the limit of 50", "documents"),
    ],
)
def test_reranker_refusals(body: dict[str, Any], message: str, param: str, reranker: Served) -> None:
    error = reranker.refuse("/v1/reranker", **{"query": "a", "documents": ["b"], **body})
    assert message in error["message"] and error["param"] == param


def test_a_missing_query_is_named(reranker: Served) -> None:
    assert reranker.refuse("/v1/reranker", documents=["a"])["param"] == "query"


def test_a_reranker_answers_as_classifier_too(reranker: Served) -> None:
    answer = reranker.post("/v1/classifier", input=[[QUERY, document] for document in DOCUMENTS])
    scores = raw_scores(reranker)
    assert answer.pop("truncated") == [False, False, False, True, False]
    assert answer == {"object": "list", "score": [[pytest.approx(scores[i], abs=1e-6)] for i in range(5)]}


INPUTS: list[Any] = ["so sunny", ["he drove", "to stadium"], "", ["", ""]]


def test_classifier_gives_raw_logits(classifier: Served) -> None:
    answer = classifier.post("/v1/classifier", input=INPUTS)
    given = [tuple(value) if isinstance(value, list) else value for value in INPUTS]
    assert sorted(answer) == ["object", "score"] and answer["object"] == "list"
    np.testing.assert_array_equal(np.float32(answer["score"]), classifier.model.classify(given, activation="none"))


def test_classifier_takes_one_text(classifier: Served) -> None:
    assert len(classifier.post("/v1/classifier", input="so sunny", model="")["score"]) == 1


@pytest.mark.parametrize("activation", [None, "softmax", "sigmoid", "none"])
def test_classifier_labels(activation: Any, classifier: Served) -> None:
    answer = classifier.post("/v1/classifier", input=["so sunny", "he drove"], labels=True, activation=activation)
    expected = classifier.model.classify(["so sunny", "he drove"], activation=activation or "softmax")
    np.testing.assert_array_equal(np.float32(answer["score"]), expected)
    for row, entry in zip(answer["score"], answer["labels"], strict=True):
        assert entry["scores"] == dict(zip(["joy", "anger", "none"], row, strict=True))
        assert entry["score"] == max(row) == entry["scores"][entry["label"]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "empty list"),
        ([["a"]], "expected array of length 2"),
        ([["a", "b", "c"]], "expected array of length 2"),
        ([["a", None]], "expected str, got null"),
        ([1], "got int"),
        (None, "got null"),
        (["a"] * 51, "over the limit of 50"),
    ],
)
def test_classifier_refusals(given: Any, message: str, classifier: Served) -> None:
    assert message in classifier.refuse("/v1/classifier", input=given)["message"]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/embeddings/sparse", "/v1/reranker"])
def test_what_a_classifier_does_not_do(path: str, classifier: Served) -> None:
    error = classifier.refuse(path, input="a", query="a", documents=["b"])
    assert error["code"] == "unsupported_task" and "offers classify" in error["message"]


def test_tokenize(classifier: Served) -> None:
    words = ["[CLS]", "so", "sunny", "[SEP]"]
    ids = [VOCAB.index(word) for word in words]
    answer = classifier.post("/tokenize", prompt="so sunny")
    assert answer == {"token_ids": ids, "tokens": ids, "count": 4, "max_model_len": LIMIT, "token_strs": None}
    bare = classifier.post("/tokenize", prompt="so sunny", add_special_tokens=False, return_token_strs=True, model="m")
    assert (bare["tokens"], bare["token_strs"]) == (ids[1:3], ["so", "sunny"])
    assert classifier.post("/detokenize", tokens=ids, model="m") == {"prompt": "[CLS] so sunny [SEP]"}
    assert "out of this model's vocabulary" in classifier.refuse("/detokenize", tokens=[10_000])["message"]
    assert classifier.post("/tokenizer/encode", prompt="so sunny") == {"token_ids": ids, "tokens": words, "error": ""}
    assert classifier.post("/tokenizer/encode", prompt="so sunny", return_offsets_mapping=True) == {
        "offset_mapping": [[0, 0], [0, 2], [3, 8], [0, 0]],
        "token_ids": ids,
        "tokens": [],
        "error": "",
    }


def test_a_long_text_is_tokenised_whole(classifier: Served) -> None:
    assert len(classifier.post("/tokenize", prompt="so sunny " * 5000)["token_ids"]) == 10_002


@pytest.mark.parametrize("path", ["/tokenize", "/tokenizer/encode"])
@pytest.mark.parametrize("body", [b"{}", b'{"prompt":1}', b"", b"[", b'{"prompt":"\xff"}', rb'{"prompt":"\ud800"}'])
def test_bad_bodies(path: str, body: bytes, classifier: Served) -> None:
    answer = classifier.client.post(path, content=body)
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


def test_get_is_not_allowed(classifier: Served) -> None:
    answer: httpx.Response = classifier.client.get("/tokenize")
    assert answer.status_code == 405 and answer.headers["allow"] == "POST"
