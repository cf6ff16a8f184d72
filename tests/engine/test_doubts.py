"""Lines for what no file of a checkpoint tells of a decoder."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.models.oracle import saved
from tests.models.test_qwen import SHAPE
from tests.tasks.checkpoints import loaded
from tests.tasks.checkpoints import save as save_bert

transformers = pytest.importorskip("transformers")
TEMPLATE = "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"
ASKING = TEMPLATE + "{# of the roles query and document #}"


def save(folder: Path, family: str, head: str, **changes: Any) -> None:
    """A decoder of random weights with a BERT's tokenizer."""
    save_bert(folder)
    config = getattr(transformers, f"{family}Config")(**SHAPE, num_labels=1, pad_token_id=0)
    saved(folder, getattr(transformers, f"{family}{head}"), config)
    hf = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**hf, **changes}))


def told(folder: Path, caplog: pytest.LogCaptureFixture) -> str:
    caplog.clear()
    with loaded(folder):
        return caplog.text


def test_pairs_that_are_scored_without_a_prompt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, "Qwen2", "ForSequenceClassification")
    assert "a Qwen2ForSequenceClassification: pairs are scored as they are, without a prompt" in told(tmp_path, caplog)
    with loaded(tmp_path) as model:
        plain = model.rerank("the weather", ["is lovely"], activation="none")[0].score
        as_told = model.rerank("query : the weather", ["document : is lovely"], activation="none")[0].score
    pytest.importorskip("jinja2")
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    assert "pairs go through a chat template that is not made for queries and documents" in told(tmp_path, caplog)
    (tmp_path / "chat_template.jinja").write_text(ASKING)
    assert "no file says" not in told(tmp_path, caplog)
    with loaded(tmp_path) as model:
        asked = model.rerank("the weather", ["is lovely"], activation="none")[0].score
    assert asked not in (plain, as_told)


@pytest.mark.parametrize(("name", "is_told"), [("my-reward-model", True), ("qwen3-reranker-seq-cls", False)])
def test_pairs_that_are_put_as_the_question_of_qwen3_reranker(
    name: str, is_told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path / name, "Qwen3", "ForSequenceClassification")
    line = "a Qwen3ForSequenceClassification: pairs are put as Qwen3-Reranker's question"
    assert (line in told(tmp_path / name, caplog)) == is_told


@pytest.mark.parametrize(
    ("changes", "is_told"), [({}, True), ({"is_causal": True}, False), ({"is_causal": False}, False)]
)
def test_a_mean_over_tokens_that_look_back(
    changes: dict[str, Any], is_told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, "Qwen2", "Model", **changes)
    assert ("a token sees those before it only" in told(tmp_path, caplog)) == is_told


def test_encoders_get_no_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_bert(tmp_path, "BertForSequenceClassification", num_labels=1)
    assert "no file says" not in told(tmp_path, caplog)
