"""Adapters with a head of their own: what they are served for, and what comes of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.adapter_head import with_code, with_head
from rtp_llm.config import EngineConfig
from rtp_llm.core import TaskType
from rtp_llm.errors import CheckpointError
from rtp_llm.model_config import read_model_config
from rtp_llm.verify.overlay import overlaid
from tests.checkpoint.test_lora import QUERY, pair, write_adapter
from tests.models.oracle import saved
from tests.tasks.checkpoints import SHAPES, TEXTS, loaded, save, tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
LLAMA: dict[str, Any] = {
    "vocab_size": 101, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "max_position_embeddings": 128,
}  # fmt: skip
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


QUERIES = "layers.0.self_attn.q_proj"
BOTH_WAYS = '{"is_causal": false}'


def save_decoder_adapter(folder: Path, own: dict[str, Any] | None, **settings: Any) -> Any:
    """An adapter of a Llama in a folder of its own, as LLM2Vec's -> transformers' model with both, looking both ways.

    own  the adapter's config.json; None: it has none
    """
    base = folder / "base"
    save(base)
    shape = {**LLAMA, "is_causal": False}
    theirs = saved(base, transformers.LlamaModel, transformers.LlamaConfig(**shape))
    hf = json.loads((base / "config.json").read_text())
    del hf["is_causal"]
    (base / "config.json").write_text(json.dumps({**hf, "architectures": ["LlamaForCausalLM"]}))
    parts = pair(QUERIES, LLAMA["hidden_size"], LLAMA["hidden_size"])
    write_adapter(folder / "adapter", parts, base_model_name_or_path=str(base), **settings)
    if own is not None:
        (folder / "adapter" / "config.json").write_text(json.dumps({**hf, **own}))
    a, b = map(torch.from_numpy, parts.values())
    with torch.no_grad():
        theirs.get_submodule(QUERIES).weight.add_(2 * b @ a)
    return theirs


def mean_of(theirs: Any, folder: Path) -> Any:
    """Of each text's hidden states, one text at a time."""
    encode = tokenizer(folder)
    with torch.no_grad():
        encoded = [encode(text, return_tensors="pt") for text in TEXTS[:3]]
        return np.stack([theirs(input_ids=one["input_ids"]).last_hidden_state[0].mean(0).numpy() for one in encoded])


@pytest.mark.parametrize(
    ("own", "settings", "message"),
    [
        (
            {"auto_map": {"AutoModel": "modeling_llama_encoder.LlamaEncoderModel"}},
            {},
            "config.json: auto_map has AutoModel 'modeling_llama_encoder.LlamaEncoderModel', code of its",
        ),
        (
            {"architectures": ["LlamaEncoderModel"]},
            {},
            "config.json: architectures has 'LlamaEncoderModel', code of its",
        ),
        (
            None,
            {"auto_mapping": {"base_model_class": "LlamaEncoderModel", "parent_library": "transformers_modules.x.y"}},
            "adapter_config.json: auto_mapping has 'transformers_modules.x.y.LlamaEncoderModel', code of its",
        ),
    ],
)
def test_code_of_the_adapters_own_must_be_spoken_for(
    own: dict[str, Any] | None, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    theirs = save_decoder_adapter(tmp_path, own, **settings)
    with pytest.raises(CheckpointError, match=f"{message}.*is_causal"), loaded(tmp_path / "adapter"):
        pass
    with loaded(tmp_path / "adapter", json_model_override_args=BOTH_WAYS) as model:
        assert np.abs(model.embed(TEXTS[:3]) - mean_of(theirs, tmp_path / "base")).max() <= 1e-5


@pytest.mark.parametrize("library", ["transformers.models.llama.modeling_llama", "torch.distributed.fsdp", None])
def test_a_class_of_a_library_is_no_code_of_its_own(library: str | None, tmp_path: Path) -> None:
    mapping = {"base_model_class": "LlamaModel", "parent_library": library}
    save_decoder_adapter(tmp_path, {}, auto_mapping=mapping)
    with loaded(tmp_path / "adapter") as model:
        assert model.info.pooling == "lasttoken"


def test_what_the_base_says_otherwise_gets_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_decoder_adapter(tmp_path, {"rms_norm_eps": 1e-3, "architectures": ["LlamaForCausalLM"]})
    with loaded(tmp_path / "adapter"):
        assert "adapter: the adapter's own config.json has rms_norm_eps otherwise than its base's" in caplog.text


@pytest.mark.parametrize("mapping", ["x", [1]])
def test_an_auto_mapping_of_another_kind(mapping: Any, tmp_path: Path) -> None:
    write_adapter(tmp_path, pair(QUERIES, 4, 4), auto_mapping=mapping)
    with pytest.raises(CheckpointError, match="adapter_config.json: auto_mapping is .*; an object is needed"):
        with_code(tmp_path, {})
