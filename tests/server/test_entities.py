"""A token classifier on every route that answers for one: /v1/classifier, /predict, POST / and /pooling."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import TAGS
from tests.server.rtp_clients import Served, served
from tests.tasks.checkpoints import LIMIT, save

pytest.importorskip("torch")

INPUTS = ["the weather is lovely today .", "", "he drove to stadium", "so sunny " * 90]
ALL: dict[str, Any] = {"aggregation_strategy": "none", "ignore_labels": []}
HEAD = "BertForTokenClassification"


def expected(tagger: Served, texts: Any = INPUTS, **options: Any) -> list[list[dict[str, Any]]]:
    return [[entity.as_dict() for entity in entities] for entities in tagger.model.entities(texts, **options)]


def same(answer: Any, entities: list[list[dict[str, Any]]]) -> bool:
    """Bit for bit: a score is written in the shortest form that gives its fp32 back."""
    for row in answer:
        for entity in row:
            entity["score"] = float(np.float32(entity["score"]))
    return bool(answer == entities)


@pytest.mark.parametrize("strategy", [None, "none", "simple", "first", "average", "max"])
def test_classifier(strategy: Any, tagger: Served) -> None:
    options = {"aggregation_strategy": strategy} if strategy else {}
    answer = tagger.post("/v1/classifier", input=INPUTS, aggregation_strategy=strategy, ignore_labels=None)
    assert list(answer) == ["object", "entities", "truncated"]
    assert same(answer["entities"], expected(tagger, **options)) and any(answer["entities"])
    assert answer["truncated"] == [False, False, False, True]
    assert tagger.post("/", input=INPUTS, **options) == tagger.post("/v1/classifier", input=INPUTS, **options)


def test_every_token_has_a_place(tagger: Served) -> None:
    (row,) = tagger.post("/v1/classifier", input=INPUTS[0], **ALL)["entities"]
    assert [sorted(entity) for entity in row] == [["end", "entity", "index", "score", "start", "word"]] * 6
    assert [INPUTS[0][entity["start"] : entity["end"]] for entity in row] == INPUTS[0].split()
    assert [entity["index"] for entity in row] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({"input": [["a", "b"]]}, "input 0 is a pair of texts; entities are found in single texts", "input"),
        ({"activation": "none"}, "activation: none; entities have the scores of softmax", "activation"),
        (
            {"aggregation_strategy": "best"},
            "allowed: 'none', 'simple', 'first', 'average', 'max'",
            "aggregation_strategy",
        ),
        ({"ignore_labels": "O"}, "ignore_labels: expected array | null, got str", "ignore_labels"),
    ],
)
def test_classifier_refusals(body: dict[str, Any], message: str, param: str, tagger: Served) -> None:
    error = tagger.refuse("/v1/classifier", **{"input": "a", **body})
    assert message in error["message"] and error["param"] == param


@pytest.mark.parametrize("path", ["/predict", "/", "/invocations"])
def test_as_hugging_face(path: str, tagger: Served) -> None:
    rows = expected(tagger)
    assert same(tagger.post(path, inputs=INPUTS), rows)
    assert same([tagger.post(path, inputs=INPUTS[0], parameters={})], rows[:1])
    assert same(tagger.post(path, inputs=[[INPUTS[0]], INPUTS[2]]), [rows[0], rows[2]])
    answer = tagger.client.post(path, json={"inputs": INPUTS, "parameters": {**ALL, "aggregation_strategy": "max"}})
    assert same(answer.json(), expected(tagger, aggregation_strategy="max", ignore_labels=[]))
    assert answer.headers["x-truncated"] == "3"
    last = tagger.post(path, inputs=INPUTS[3], truncation_direction="left", parameters=ALL)
    assert last[-1]["end"] == len(INPUTS[3].rstrip()) and len(last) == LIMIT - 2


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"parameters": {"stride": 62}}, "stride: 62 is not below 62, the tokens of a text that a window"),
        ({"parameters": {"stride": -1}}, "stride: -1 is below 0"),
        ({"parameters": {"stride": 4, "aggregation_strategy": "none"}}, "stride is for entities by an aggregation"),
        ({"parameters": {"stride": "4"}}, "parameters.stride: expected int | null, got str"),
        (
            {"parameters": {"aggregation_strategy": "best"}},
            "parameters.aggregation_strategy: invalid enum value 'best', allowed: 'none'",
        ),
        ({"parameters": {"ignore_labels": "O"}}, "parameters.ignore_labels: expected array | null, got str"),
        ({"inputs": [["a", "b"]]}, "inputs[0] is a pair of texts; entities are found in single texts"),
        ({"inputs": [["a", "b", "c"]]}, "inputs[0]: expected a list of one text or of two"),
        ({"raw_scores": True}, "raw_scores: entities have the scores of softmax"),
        ({"inputs": INPUTS, "truncate": False}, "inputs[3] has at least 182 tokens and the limit is 64"),
    ],
)
def test_hugging_faces_refusals(body: dict[str, Any], message: str, tagger: Served) -> None:
    answer = tagger.client.post("/predict", json={"inputs": "a", **body})
    assert answer.status_code == 422 and message in answer.json()["error"], answer.text


@pytest.mark.parametrize("parameters", [{"function_to_apply": "none"}, {"top_k": 1}])
def test_what_only_a_classifier_of_texts_can_do(parameters: dict[str, Any], tagger: Served) -> None:
    """huggingface_hub's text_classification, which would read entities as labels."""
    answer = tagger.client.post("/predict", json={"inputs": "a", "parameters": parameters})
    assert answer.status_code == 424 and "is for classifiers of texts; this model labels tokens" in answer.text


def test_a_long_text_in_windows(tagger: Served) -> None:
    """The pipeline's stride: all of the text has entities, and nothing is cut."""
    rows = expected(tagger, stride=20)
    assert max(entity["end"] for entity in rows[3]) > max(entity["end"] for entity in expected(tagger)[3])
    answer = tagger.post("/v1/classifier", input=INPUTS, stride=20)
    assert same(answer["entities"], rows) and answer["truncated"] == [False] * 4
    sent = tagger.client.post("/predict", json={"inputs": INPUTS, "parameters": {"stride": 20}, "truncate": False})
    assert same(sent.json(), rows) and sent.headers["x-truncated"] == ""


@pytest.mark.parametrize("task", [None, "token_classify"])
@pytest.mark.parametrize("use_activation", [None, True, False])
def test_pooling(task: Any, use_activation: Any, tagger: Served) -> None:
    inputs: list[Any] = [[7, 8, 9]] if task else INPUTS
    answer = tagger.post("/pooling", input=inputs, task=task, use_activation=use_activation)
    rows = tagger.model.classify_tokens(inputs, activation="none" if use_activation is False else None)
    for entry, row in zip(answer["data"], rows, strict=True):
        assert entry["object"] == "pooling"
        np.testing.assert_array_equal(np.array(entry["data"], np.float32), row)
    packed = tagger.post("/pooling", input=inputs, use_activation=use_activation, encoding_format="base64")
    first = np.frombuffer(base64.b64decode(packed["data"][0]["data"]), "<f4")
    np.testing.assert_array_equal(first, rows[0].reshape(-1))


def test_pooling_of_one_label_is_its_sigmoid(tmp_path: Path) -> None:
    save(tmp_path, HEAD, num_labels=1)
    with served(tmp_path) as one:
        (entry,) = one.post("/pooling", input=INPUTS[0])["data"]
        (logits,) = one.model.classify_tokens(INPUTS[:1], activation="none")
        np.testing.assert_allclose(entry["data"], 1 / (1 + np.exp(-logits)), atol=1e-6)


def test_what_a_token_classifier_does_not_do(tagger: Served, classifier: Served) -> None:
    for path, body in (("/classify", {"input": "a"}), ("/v1/embeddings", {"input": "a"})):
        assert "this model offers token_classify, not" in tagger.refuse(path, **body)["message"]
    error = classifier.refuse("/v1/classifier", input="a", aggregation_strategy="simple")
    assert error["message"] == "aggregation_strategy is for token classifiers; this model offers classify"
    answer = classifier.client.post("/predict", json={"inputs": "a", "parameters": {"aggregation_strategy": "max"}})
    assert answer.status_code == 424 and "for token classifiers" in answer.json()["error"]
    assert classifier.refuse("/v1/classifier", input="a", stride=4)["param"] == "stride"
    assert "not token_classify" in classifier.refuse("/pooling", input="a", task="token_classify")["message"]


def test_what_is_told_of_it(tagger: Served) -> None:
    assert tagger.client.get("/v1/models").json()["data"][0]["tasks"] == ["token_classify"]
    labels = tagger.client.get("/info").json()["model_type"]["classifier"]["id2label"]
    assert labels == {str(place): label for place, label in TAGS.items()}


def test_without_auto_truncate(tmp_path: Path) -> None:
    save(tmp_path, HEAD, id2label=TAGS)
    with served(tmp_path, auto_truncate=False) as strict:
        assert "has at least 182 tokens and the limit is 64" in strict.refuse("/v1/classifier", input=INPUTS)["message"]


def test_truncated_inputs_are_counted(tagger: Served) -> None:
    def count() -> float:
        lines = tagger.client.get("/metrics").text.splitlines()
        own = [line for line in lines if line.startswith("rtp_llm_truncated_inputs_total")]
        return sum(float(line.rpartition(" ")[2]) for line in own)

    before = count()
    tagger.post("/v1/classifier", input=INPUTS)
    assert count() == before + 1
