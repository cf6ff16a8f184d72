"""/score, /classify, /pooling and /version over tiny random checkpoints."""

from typing import Any

import numpy as np
import pytest

from rtp_llm import __version__
from tests.server.rtp_clients import Served

pytest.importorskip("torch")

QUERY, DOCUMENTS = "so sunny outside", ["the weather", "he drove", ""]


def scores(answer: Any) -> list[float]:
    assert [entry["index"] for entry in answer["data"]] == list(range(len(answer["data"])))
    return [entry["score"] for entry in answer["data"]]


@pytest.mark.parametrize(
    "names", [("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2")]
)
@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_one_with_each(names: tuple[str, str], path: str, reranker: Served) -> None:
    answer = reranker.post(path, **{names[0]: QUERY, names[1]: DOCUMENTS, "model": "any"})
    expected = {entry.index: entry.score for entry in reranker.model.rerank(QUERY, DOCUMENTS, activation="sigmoid")}
    np.testing.assert_array_equal(np.array(scores(answer), np.float32), [np.float32(expected[i]) for i in range(3)])
    assert (answer["object"], answer["model"], answer["data"][0]["object"]) == ("list", "tiny", "score")


@pytest.mark.parametrize("name", ["reranker", "m3"])
def test_each_with_its_own(name: str, request: pytest.FixtureRequest) -> None:
    served: Served = request.getfixturevalue(name)
    together = scores(served.post("/score", text_1=[QUERY, "he"], text_2=DOCUMENTS[:2]))
    alone = [
        scores(served.post("/score", text_1=a, text_2=b))[0] for a, b in zip([QUERY, "he"], DOCUMENTS, strict=False)
    ]
    assert together == alone


def test_max_sim_is_a_sum(m3: Served) -> None:
    query, *documents = m3.model.embed_colbert([QUERY, *DOCUMENTS])
    expected = [float((query @ document.T).max(axis=1).sum()) for document in documents]
    np.testing.assert_allclose(scores(m3.post("/score", queries=[QUERY], documents=DOCUMENTS)), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({"text_1": "a"}, "two sides are missing", "queries"),
        ({"text_1": "a", "text_2": []}, "text_2 is an empty list", "text_2"),
        ({"text_1": ["a", "b"], "text_2": ["c"] * 3}, "text_1 has 2 texts and text_2 3", "text_1"),
        ({"text_1": "a", "text_2": ["b"] * 51}, "51 inputs are over", "text_2"),
        ({"text_1": "a", "text_2": "b", "max_tokens_per_doc": -1}, "below 0", "max_tokens_per_doc"),
    ],
)
def test_score_refusals(body: dict[str, Any], message: str, param: str, reranker: Served) -> None:
    error = reranker.refuse("/score", **body)
    assert message in error["message"] and error["param"] == param


@pytest.mark.parametrize("activation", [True, False])
def test_classify(activation: bool, classifier: Served) -> None:
    answer = classifier.post("/classify", input=DOCUMENTS, use_activation=activation)
    rows = classifier.model.classify(DOCUMENTS, activation=None if activation else "none")
    for entry, row in zip(answer["data"], rows, strict=True):
        np.testing.assert_array_equal(np.array(entry["probs"], np.float32), row)
        assert (entry["label"], entry["num_classes"]) == (["joy", "anger", "none"][int(row.argmax())], 3)


@pytest.mark.parametrize("raw", [True, False])
def test_classify_in_infinitys_form(raw: bool, classifier: Served) -> None:
    answer = classifier.post("/classify", input=DOCUMENTS, raw_scores=raw)
    assert answer["object"] == "classify"
    rows = classifier.model.classify(DOCUMENTS, activation="none" if raw else None)
    for entries, row in zip(answer["data"], rows, strict=True):
        np.testing.assert_array_equal(np.array([entry["score"] for entry in entries], np.float32), np.sort(row)[::-1])
        assert {entry["label"] for entry in entries} == {"joy", "anger", "none"}


def test_pooling(m3: Served, classifier: Served) -> None:
    vectors = m3.model.embed(DOCUMENTS)
    matrices = m3.model.embed_colbert(DOCUMENTS)
    for place, entry in enumerate(m3.post("/pooling", input=DOCUMENTS)["data"]):
        np.testing.assert_array_equal(np.array(entry["data"], np.float32), vectors[place])
    for place, entry in enumerate(m3.post("/pooling", input=DOCUMENTS, task="token_embed")["data"]):
        np.testing.assert_array_equal(
            np.array(entry["data"], np.float32).reshape(matrices[place].shape), matrices[place]
        )
    coded = m3.post("/pooling", input="a", encoding_format="base64", dimensions=4)["data"][0]
    assert isinstance(coded["data"], str) and coded["object"] == "pooling"
    (row,) = classifier.post("/pooling", input="a")["data"]
    assert len(row["data"]) == 3


def test_version(m3: Served) -> None:
    assert m3.client.get("/version").json() == {"version": __version__}


def test_texts_in_parts(reranker: Served) -> None:
    part = {"type": "text", "text": "the weather"}
    plain = scores(reranker.post("/score", text_1=QUERY, text_2=["the weather", "he drove"]))
    assert scores(reranker.post("/score", text_1=QUERY, text_2=[{"content": [part]}, "he drove"])) == plain
    assert scores(reranker.post("/score", text_1=QUERY, text_2={"content": [part]})) == plain[:1]
    error = reranker.refuse("/score", text_1=QUERY, text_2=[{"content": [{"type": "image_url"}]}])
    assert error["param"] == "text_2[0].content"


def test_truncate_prompt_tokens(reranker: Served) -> None:
    whole = scores(reranker.post("/score", text_1="he", text_2="so sunny"))
    assert scores(reranker.post("/score", text_1="he", text_2="so sunny outside", truncate_prompt_tokens=6)) == whole
    assert "no room beside 3" in reranker.refuse("/score", text_1="he", text_2="a", truncate_prompt_tokens=3)["message"]


def test_vllms_word_for_normalize(m3: Served) -> None:
    raw, unit = (
        m3.post("/v1/embeddings", input="so sunny", use_activation=value)["data"][0]["embedding"]
        for value in (False, True)
    )
    np.testing.assert_array_equal(np.array(raw, np.float32), m3.model.embed(["so sunny"], normalize=False)[0])
    np.testing.assert_array_equal(np.array(unit, np.float32), m3.model.embed(["so sunny"], normalize=True)[0])
