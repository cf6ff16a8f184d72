"""TEI's routes over tiny random checkpoints: bodies, answers, statuses, headers, and what differs on purpose."""

import json
from typing import Any

import numpy as np
import pytest

from tests.server.rtp_clients import Served, serving
from tests.tasks.checkpoints import LIMIT, VOCAB, save

pytest.importorskip("torch")

HEAD = "BertForSequenceClassification"
TEXTS = ["so sunny outside", "", "the weather is lovely today ."]


def refused(served: Served, path: str, **body: Any) -> tuple[int, str, str]:
    answer = served.client.post(path, json=body)
    told = answer.json()
    assert sorted(told) == ["error", "error_type"], told
    return answer.status_code, told["error_type"], told["error"]


@pytest.mark.parametrize("path", ["/embed", "/", "/invocations"])
@pytest.mark.parametrize("normalize", [None, True, False])
def test_embed(path: str, normalize: bool | None, m3: Served) -> None:
    answer = m3.post(path, inputs=TEXTS, normalize=normalize)
    np.testing.assert_array_equal(np.float32(answer), m3.model.embed(TEXTS, normalize=normalize is not False))
    assert np.shape(m3.post(path, inputs="a", dimensions=4)) == (1, 4)


def test_embed_takes_ids_as_they_stand(m3: Served) -> None:
    ids = [VOCAB.index(word) for word in ("[CLS]", "so", "[SEP]")]
    alone = m3.post("/embed", inputs=ids)
    assert m3.post("/embed", inputs=["so", ids, "a"])[0] == alone[0] == m3.post("/embed", inputs=[ids])[0]


def test_embed_truncates(m3: Served) -> None:
    long = "so sunny " * 60 + "he"
    right, left = (m3.post("/embed", inputs=long, truncation_direction=side) for side in ("Right", "left"))
    assert right == m3.post("/embed", inputs="so sunny " * 31) and left != right
    assert refused(m3, "/embed", inputs=long, truncate=False)[:2] == (422, "Validation")


def test_embed_all_is_not_normalised(m3: Served) -> None:
    answer = m3.post("/embed_all", inputs=TEXTS)
    for rows, text in zip(answer, TEXTS, strict=True):
        assert len(rows) == len(text.split()) + 2
    assert abs(np.linalg.norm(answer[0][0]) - 1) > 1e-3


def test_embed_sparse(m3: Served) -> None:
    answer = m3.post("/embed_sparse", inputs=TEXTS)
    for entries, vector in zip(answer, m3.model.embed_sparse(TEXTS), strict=True):
        assert [entry["index"] for entry in entries] == vector.indices.tolist()
        np.testing.assert_array_equal(np.array([entry["value"] for entry in entries], np.float32), vector.values)


@pytest.mark.parametrize("path", ["/similarity", "/"])
def test_similarity(path: str, m3: Served) -> None:
    answer = m3.post(path, inputs={"source_sentence": "so sunny", "sentences": TEXTS}, parameters={"truncate": None})
    one, *others = m3.model.embed(["so sunny", *TEXTS], normalize=True)
    np.testing.assert_allclose(answer, [float(other @ one) for other in others], atol=1e-6)


@pytest.mark.parametrize("path", ["/predict", "/", "/invocations"])
def test_predict_tells_a_pair_from_a_batch(path: str, classifier: Served) -> None:
    names = np.array(["joy", "anger", "none"])
    given: list[Any] = ["he drove", ("he drove", "to stadium"), "so sunny"]
    scores = classifier.model.classify(given)
    single = classifier.post(path, inputs="he drove")
    pair = classifier.post(path, inputs=["he drove", "to stadium"])
    batch = classifier.post(path, inputs=[["he drove"], ["he drove", "to stadium"], ["so sunny"]])
    assert batch[:2] == [single, pair]
    for entries, row in zip(batch, scores, strict=True):
        order = np.argsort(-row)
        assert [entry["label"] for entry in entries] == names[order].tolist()
        np.testing.assert_array_equal(np.array([entry["score"] for entry in entries], np.float32), row[order])


def test_predict_raw_scores(classifier: Served) -> None:
    logits = np.sort(classifier.model.classify(["he drove"], activation="none")[0])[::-1]
    answer = classifier.post("/predict", inputs="he drove", raw_scores=True)
    np.testing.assert_array_equal(np.array([entry["score"] for entry in answer], np.float32), logits)


@pytest.mark.parametrize("path", ["/predict", "/"])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax", "none", None])
def test_predict_with_hugging_faces_parameters(path: str, activation: Any, classifier: Served) -> None:
    """Its inference API's text_classification has `function_to_apply` and `top_k`."""
    (row,) = classifier.model.classify(["he drove"], activation=activation)
    parameters = {"function_to_apply": activation, "top_k": 2}
    (best,) = classifier.post(path, inputs="he drove", parameters=parameters)
    assert [entry["score"] for entry in best] == pytest.approx(sorted(row.tolist())[:0:-1], abs=1e-6)
    assert len(classifier.post(path, inputs="he drove", parameters={**parameters, "top_k": 9})[0]) == 3
    status, _, message = refused(classifier, path, inputs="a", parameters={"top_k": 0})
    assert status == 422 and "parameters.top_k: 0 is below 1" in message


def test_several_labels_at_once_are_sigmoids(tmp_path_factory: pytest.TempPathFactory) -> None:
    options = {"num_labels": 3, "problem_type": "multi_label_classification"}
    for served in serving(lambda folder: save(folder, HEAD, **options), tmp_path_factory, "multi"):
        logits = np.sort(served.model.classify(["he drove"], activation="none")[0])[::-1]
        scores = [entry["score"] for entry in served.post("/predict", inputs="he drove")]
        np.testing.assert_allclose(scores, 1 / (1 + np.exp(-logits)), atol=1e-6)


@pytest.mark.parametrize("path", ["/rerank", "/", "/invocations"])
def test_rerank_with_ties_backwards(path: str, reranker: Served) -> None:
    texts = ["the weather", "he drove", "the weather", ""]
    answer = reranker.post(path, query="so sunny", texts=texts, return_text=True)
    scores = {entry.index: entry.score for entry in reranker.model.rerank("so sunny", texts, activation="sigmoid")}
    order = [entry["index"] for entry in answer]
    assert order == sorted(order, key=lambda index: (-scores[index], -index))
    for entry in answer:
        assert entry["text"] == texts[entry["index"]]
        assert np.float32(entry["score"]) == np.float32(scores[entry["index"]])


def test_tokenize_counts_bytes(m3: Served) -> None:
    (tokens,) = m3.post("/tokenize", inputs="é so")
    assert [token["text"] for token in tokens] == ["[CLS]", "é", "so", "[SEP]"]
    assert [(token["start"], token["stop"], token["special"]) for token in tokens] == [
        (None, None, True), (0, 2, False), (3, 5, False), (None, None, True)
    ]  # fmt: skip
    bare = m3.post("/tokenize", inputs=["so", "sunny"], add_special_tokens=False, prompt_name="query")
    assert [[token["id"] for token in row] for row in bare] == [[VOCAB.index("so")], [VOCAB.index("sunny")]]


def test_decode(m3: Served) -> None:
    ids = [VOCAB.index(word) for word in ("[CLS]", "so", "sunny", "[SEP]")]
    assert m3.post("/decode", ids=ids) == ["so sunny"]
    assert m3.post("/decode", ids=[ids, ids[1:2]], skip_special_tokens=False) == ["[CLS] so sunny [SEP]", "so"]


def test_vertex(m3: Served, reranker: Served) -> None:
    answer = m3.post("/vertex", instances=[{"inputs": "a"}, {"inputs": ["b", "c"]}])
    assert answer == {"predictions": [m3.post("/embed", inputs="a"), m3.post("/embed", inputs=["b", "c"])]}
    body = {"query": "so sunny", "texts": ["the weather", "he"]}
    assert reranker.post("/vertex", instances=[body]) == {"predictions": [reranker.post("/rerank", **body)]}


def test_info(m3: Served, reranker: Served, classifier: Served) -> None:
    info = m3.client.get("/info").json()
    assert info["model_type"] == {"embedding": {"pooling": "cls"}}
    assert (info["max_input_length"], info["max_client_batch_size"], info["model_id"]) == (LIMIT, 50, "tiny")
    names = reranker.client.get("/info").json()["model_type"]["reranker"]
    assert names == {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    assert classifier.client.get("/info").json()["model_type"]["classifier"]["id2label"]["1"] == "anger"
    assert (m3.client.get("/ping").status_code, m3.client.get("/ping").content) == (200, b"")


def test_headers(m3: Served) -> None:
    headers = m3.client.post("/embed", json={"inputs": ["so sunny", "a"]}).headers
    assert (headers["x-compute-tokens"], headers["x-compute-characters"]) == ("7", "9")
    for name in ("compute", "total", "tokenization", "queue", "inference"):
        assert headers[f"x-{name}-time"].isdigit()


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "message"),
    [
        ("/embed", {"inputs": []}, 400, "Empty", "cannot be empty"),
        ("/embed", {}, 422, "Validation", "inputs is missing"),
        ("/embed", {"inputs": "a", "dimensions": 0}, 422, "Validation", "not between 1 and 32"),
        ("/embed", {"inputs": "a", "prompt_name": "no"}, 422, "Validation", "'no' is not one of query, document"),
        ("/embed", {"inputs": ["a"] * 51}, 422, "Validation", "51 inputs are over the limit of 50"),
        ("/embed", {"inputs": [1, "a"]}, 422, "Validation", "inputs[1] is no token id"),
        ("/embed", {"inputs": ["a", 1]}, 422, "Validation", "inputs[1] is a token id"),
        ("/embed", {"inputs": [10_000]}, 422, "Validation", "outside this model's vocabulary"),
        ("/embed", {"inputs": "a", "truncation_direction": "up"}, 422, "Validation", "truncation_direction"),
        ("/predict", {"inputs": "a"}, 424, "Backend", "this model offers dense"),
        ("/predict", {"inputs": [["a", "b", "c"]]}, 422, "Validation", "inputs[0]: expected a list of one text"),
        ("/predict", {"inputs": ["a", "b", "c"]}, 422, "Validation", "a batch of texts is a list of lists"),
        ("/rerank", {"query": "a", "texts": []}, 400, "Empty", "cannot be empty"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, 400, "Empty", "cannot be empty"),
        ("/tokenize", {"inputs": []}, 400, "Empty", "cannot be empty"),
        ("/decode", {"ids": [[1], 2]}, 422, "Validation", "ids[1]"),
        ("/decode", {"ids": [9999]}, 422, "Validation", "vocabulary"),
        ("/vertex", {"instances": [{"inputs": []}]}, 400, "Empty", "cannot be empty"),
        ("/", {}, 422, "Validation", "inputs is missing"),
    ],
)
def test_refusals(path: str, body: dict[str, Any], status: int, kind: str, message: str, m3: Served) -> None:
    told = refused(m3, path, **body)
    assert told[:2] == (status, kind) and message in told[2]


def test_vectors_of_tokens_rank_and_those_of_texts_do_not(m3: Served, dense: Served) -> None:
    body = {"query": "a b", "texts": ["so sunny", "a b"]}
    assert [entry["index"] for entry in m3.post("/rerank", **body)] == [1, 0]
    status, kind, message = refused(dense, "/rerank", **body)
    assert (status, kind) == (424, "Backend") and "not rerank" in message


def test_a_body_over_the_limit(m3: Served) -> None:
    answer = m3.client.post("/embed", content=b" " * (33 << 20))
    assert (answer.status_code, answer.json()["error_type"]) == (413, "Validation")


def test_rtps_own_bodies_on_the_root(m3: Served, reranker: Served, classifier: Served) -> None:
    assert m3.post("/", input="a")["object"] == "list"
    assert m3.post("/", left=["a"], right=["b"])["similarity"]
    quoted = m3.client.post("/", json=json.dumps({"input": "a"}))
    assert quoted.json()["data"] == m3.post("/", input="a")["data"]
    for body in (b'"{}"', b'"a"', rb'"\ud800"', b'"'):
        assert m3.client.post("/", content=body).status_code in (400, 422)
    assert reranker.post("/", query="a", documents=["b"])["results"][0]["document"] == "b"
    assert classifier.post("/", input=["a"])["score"]
