"""Adapters with a head of their own: what they are served for, and what comes of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.adapter_head import with_head
from rtp_llm.config import EngineConfig
from rtp_llm.core import TaskType
from rtp_llm.model_config import read_model_config
from rtp_llm.verify.overlay import overlaid
from tests.checkpoint.test_lora import QUERY, pair, write_adapter
from tests.tasks.checkpoints import SHAPES, TEXTS, loaded, save, tokenizer

torch = pytest.importorskip("torch")
HEAD_OF = {"SEQ_CLS": "BertForSequenceClassification", "TOKEN_CLS": "BertForTokenClassification"}


def save_adapter(folder: Path, task_type: str, num_labels: int, **settings: Any) -> Any:
    """Base and adapter in `folder` -> transformers' model with both."""
    shape = SHAPES[next(iter(SHAPES))]
    theirs = save(folder, HEAD_OF[task_type], num_labels=num_labels, **shape)
    (folder / "model.safetensors").unlink()
    theirs.bert.save_pretrained(folder)
    hf = json.loads((folder / "config.json").read_text())
    kept = {key: value for key, value in hf.items() if key not in ("id2label", "label2id", "num_labels")}
    (folder / "config.json").write_text(json.dumps({**kept, "architectures": ["BertModel"], **settings}))
    parts = pair(f"bert.{QUERY}", theirs.config.hidden_size, theirs.config.hidden_size)
    head = {f"classifier.{key}": value.numpy() for key, value in theirs.classifier.state_dict().items()}
    write_adapter(folder, {**parts, **head}, task_type=task_type, modules_to_save=["classifier"])
    a, b = map(torch.from_numpy, parts.values())
    with torch.no_grad():
        theirs.get_submodule(f"bert.{QUERY}").weight.add_(2 * b @ a)
    return theirs


@pytest.mark.parametrize("own", [{}, {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}])
@pytest.mark.parametrize("num_labels", [1, 3])
def test_a_classifier_of_texts(num_labels: int, own: dict[str, Any], tmp_path: Path) -> None:
    theirs = save_adapter(tmp_path, "SEQ_CLS", num_labels, **own)
    encoded = tokenizer(tmp_path)(TEXTS, padding=True, truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**encoded).logits.numpy()
    with loaded(tmp_path, "numpy", max_seq_len=16) as model:
        assert (TaskType.RERANK in model.info.tasks) == (num_labels == 1) and TaskType.CLASSIFY in model.info.tasks
        assert len(model.info.labels) == num_labels
        assert np.abs(model.classify(TEXTS, activation="none") - expected).max() <= 1e-5


def test_a_classifier_of_tokens(tmp_path: Path) -> None:
    save_adapter(tmp_path, "TOKEN_CLS", 5)
    with loaded(tmp_path, "numpy") as model:
        assert model.info.tasks == (TaskType.TOKEN_CLASSIFY,) and len(model.info.labels) == 5


def test_the_base_names_the_labels_where_it_has_as_many(tmp_path: Path) -> None:
    save_adapter(tmp_path, "SEQ_CLS", 2, id2label={"0": "bad", "1": "good"})
    with loaded(tmp_path, "numpy") as model:
        assert model.info.labels == ("bad", "good")


def test_a_task_without_a_head_gets_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_adapter(tmp_path, "SEQ_CLS", 2)
    write_adapter(tmp_path, pair(f"bert.{QUERY}", 32, 32), task_type="SEQ_CLS")
    hf = {"architectures": ["BertModel"]}
    assert with_head(tmp_path, hf) == hf
    assert "adapter_config.json: task_type is of a classifier, but there is no head" in caplog.text


def test_the_authors_code_reads_the_labels_too(tmp_path: Path) -> None:
    save_adapter(tmp_path, "SEQ_CLS", 3)
    config = EngineConfig(checkpoint_path=str(tmp_path))
    with overlaid(read_model_config(tmp_path, config), config) as folder:
        hf = json.loads((folder / "config.json").read_text())
    assert hf["num_labels"] == 3 and hf["architectures"] == ["BertForSequenceClassification"]
