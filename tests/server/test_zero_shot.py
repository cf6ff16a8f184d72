"""Labels that a request brings, against transformers' zero-shot pipeline."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.rtp_clients import Served, serving
from tests.server.test_tei import refused
from tests.tasks.checkpoints import LIMIT, save, tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

HEAD = "BertForSequenceClassification"
NAMES = {
    "mnli": {0: "contradiction", 1: "neutral", 2: "entailment"},
    "two": {0: "Entailment", 1: "not_entailment"},
    "first": {0: "entailment", 1: "neutral", 2: "contradiction"},
}
TEXTS = ["so sunny outside", "the weather is lovely today .", "he drove to stadium " * 40]
LABELS = ["sunny", "the query passage", "lovely today outside"]
TEMPLATES = [None, "it is {} .", "{} and {}", "so sunny " * 20 + "{}"]


@pytest.fixture(scope="module", params=NAMES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Any]]:
    """A server of a classifier, and transformers' pipeline of it."""

    def make(folder: Path) -> None:
        names = NAMES[request.param]
        theirs = save(folder, HEAD, id2label=names, label2id={label: place for place, label in names.items()})
        kept.append(
            transformers.pipeline("zero-shot-classification", theirs, tokenizer=tokenizer(folder), device="cpu")
        )
        kept[0].tokenizer.model_max_length = LIMIT

    kept: list[Any] = []
    for served in serving(make, tmp_path_factory, request.param):
        yield served, kept[0]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("multi_label", [None, False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_equals_the_pipeline(count: int, multi_label: bool | None, template: str | None, both: Any) -> None:
    served, pipeline = both
    labels = LABELS[:count]
    asked = {"candidate_labels": labels, "multi_label": multi_label, "hypothesis_template": template}
    options = {key: value for key, value in asked.items() if value is not None}
    if template is not None and template.count("{}") > 1:
        options["hypothesis_template"] = template.replace("{}", "{0}")
    answers = served.post("/", inputs=TEXTS, parameters=asked)
    for text, answer in zip(TEXTS, answers, strict=True):
        expected = pipeline(text, **options)
        assert [entry["label"] for entry in answer] == expected["labels"]
        np.testing.assert_allclose([entry["score"] for entry in answer], expected["scores"], atol=1e-6)
    alone = served.post("/predict", inputs=TEXTS[0], parameters={**asked, "top_k": 2})
    assert alone == answers[0][:2]


def test_what_was_cut_is_told(both: Any) -> None:
    served, _ = both
    body = {"inputs": TEXTS, "parameters": {"candidate_labels": LABELS}}
    assert served.client.post("/predict", json=body).headers["x-truncated"] == "2"
    status, kind, message = refused(served, "/predict", **body, truncate=False)
    assert (status, kind) == (422, "Validation") and message.startswith("inputs[2] has at least")


@pytest.mark.parametrize(
    ("body", "parameters", "message"),
    [
        ({"inputs": "a"}, {"candidate_labels": []}, "`parameters.candidate_labels` cannot be empty"),
        ({"inputs": []}, {}, "`inputs` cannot be empty"),
        ({"inputs": ["a", ["a", "b"]]}, {}, "inputs[1]: expected a text; with candidate_labels, the second text"),
        ({"inputs": "a"}, {"hypothesis_template": "it is"}, "hypothesis_template: 'it is' has no {}, where a label"),
        ({"inputs": "a"}, {"top_k": 0}, "parameters.top_k: 0 is below 1"),
        ({"inputs": "a", "raw_scores": True}, {}, "raw_scores: candidate_labels have probabilities; leave it out"),
        ({"inputs": "a"}, {"function_to_apply": "none"}, "parameters.function_to_apply: candidate_labels have"),
        ({"inputs": ["a"] * 20}, {}, "60 inputs are over the limit of 50 (max_client_batch_size)"),
    ],
)
def test_refusals(body: dict[str, Any], parameters: dict[str, Any], message: str, both: Any) -> None:
    status, kind, told = refused(both[0], "/predict", **body, parameters={"candidate_labels": LABELS, **parameters})
    assert message in told and (status, kind) in ((422, "Validation"), (400, "Empty"))


def test_a_small_body_makes_no_large_hypotheses(both: Any) -> None:
    asked = {"candidate_labels": ["a" * 20_000], "hypothesis_template": "{}" * 5_000}
    status, _, message = refused(both[0], "/predict", inputs="a", parameters=asked)
    assert status == 422 and "for 1 labels it has 100000000 characters, the limit is" in message


def test_a_hypothesis_is_not_cut(both: Any) -> None:
    asked = {"candidate_labels": ["sunny", "so sunny " * LIMIT]}
    status, kind, message = refused(both[0], "/predict", inputs="a", parameters=asked)
    assert (status, kind) == (422, "Validation")
    assert message.startswith("inputs has 1") and "tokens in the second text of its pair, a label's" in message


def test_labels_are_a_classifiers_to_judge(dense: Served) -> None:
    """And no text of an embedder's, whose answer would be a vector."""
    for path in ("/", "/invocations", "/predict"):
        status, _, message = refused(dense, path, inputs="a", parameters={"candidate_labels": ["b"]})
        assert status == 424 and "a model that was trained on NLI is needed" in message
        assert dense.post("/", inputs="a", parameters={"candidate_labels": None})


def test_a_model_without_entailment_refuses(classifier: Served) -> None:
    status, kind, message = refused(classifier, "/", inputs="a", parameters={"candidate_labels": ["b"]})
    assert (status, kind) == (424, "Backend")
    assert "one of whose labels begins with entail; this model's are joy, anger, none; leave" in message
