"""Bert against transformers' BertModel: random weights of the real architecture, odd shapes, every backend."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.errors import CheckpointError
from rtp_llm.models.bert import BertConfig
from tests.backends import BACKENDS
from tests.models.oracle import (
    assert_alone_and_in_any_order,
    assert_as_exact,
    hidden_states,
    load,
    make_items,
    reference,
    saved,
    worst,
)

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SHAPES: dict[str, dict[str, Any]] = {
    "minilm": {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536, "num_hidden_layers": 2},
    "odd": {"hidden_size": 60, "num_attention_heads": 5, "intermediate_size": 77, "num_hidden_layers": 3},
    "one_head": {"hidden_size": 40, "num_attention_heads": 1, "intermediate_size": 100, "num_hidden_layers": 1},
    "tanh_gelu": {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "hidden_act": "gelu_new"},
    "relu": {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "hidden_act": "relu"},
    "silu": {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 96, "hidden_act": "silu"},
}
LENGTHS = (1, 2, 17, 64, 7, 90)


def save_bert(folder: Path, head: str = "BertModel", **shape: Any) -> Any:
    """A random checkpoint whose norms and biases are not trivial."""
    shape = {"num_hidden_layers": 2, "vocab_size": 101, "max_position_embeddings": 96, **shape}
    return saved(folder, getattr(transformers, head), transformers.BertConfig(**shape))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_transformers(shape: str, backend: str, tmp_path: Path) -> None:
    theirs, items, ops = save_bert(tmp_path, **SHAPES[shape]), make_items(LENGTHS), BACKENDS[backend]()
    ours = hidden_states(load(tmp_path, ops), ops, items)
    assert_as_exact(theirs, ours, items)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_decoder_is_causal(backend: str, tmp_path: Path) -> None:
    theirs, items, ops = save_bert(tmp_path, **SHAPES["odd"], is_decoder=True), make_items(LENGTHS), BACKENDS[backend]()
    model = load(tmp_path, ops)
    assert model.causal and worst(hidden_states(model, ops, items), reference(theirs, items)) <= 1e-5


@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_packed_equals_alone_in_any_order_bit_for_bit(backend: str, tmp_path: Path) -> None:
    save_bert(tmp_path, **SHAPES["odd"])
    ops = BACKENDS[backend]()
    model, items = load(tmp_path, ops), make_items(LENGTHS)
    assert_alone_and_in_any_order(model, ops, items)


@pytest.mark.parametrize("head", ["BertForMaskedLM", "BertForSequenceClassification"])
def test_prefixed_checkpoints_load_and_heads_are_ignored(head: str, tmp_path: Path) -> None:
    theirs, items, ops = save_bert(tmp_path, head, **SHAPES["relu"]), make_items(LENGTHS), BACKENDS["numpy"]()
    ours = hidden_states(load(tmp_path, ops), ops, items)
    assert worst(ours, reference(theirs.bert, items)) < 1e-5


def test_gamma_and_beta_and_buffers_load(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    save_bert(tmp_path, **SHAPES["relu"])
    path, ops, items = tmp_path / "model.safetensors", BACKENDS["numpy"](), make_items(LENGTHS)
    before = hidden_states(load(tmp_path, ops), ops, items)
    tensors = load_file(path)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for name in list(tensors):
        for new_name, old_name in old.items():
            if name.endswith(new_name):
                tensors[name.replace(new_name, old_name)] = tensors.pop(name)
    tensors |= {f"embeddings.{kind}_ids": np.zeros((1, 9), np.int64) for kind in ("position", "token_type")}
    save_file(tensors, path)
    assert worst(before, hidden_states(load(tmp_path, ops), ops, items)) == 0


def test_a_missing_and_an_unknown_tensor_are_both_named(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    save_bert(tmp_path, **SHAPES["relu"])
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["encoder.layer.0.adapter.weight"] = tensors.pop("encoder.layer.1.output.dense.bias")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        load(tmp_path, BACKENDS["numpy"]())
    assert "encoder.layer.1.output.dense.bias" in error.value.message
    assert "encoder.layer.0.adapter.weight" in error.value.message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "quick_gelu"}, "'quick_gelu' is not one of gelu"),
        ({"position_embedding_type": "relative_key"}, "only 'absolute'"),
        ({"num_attention_heads": 7}, "not a multiple of num_attention_heads 7"),
        ({"vocab_size": None}, "vocab_size is missing"),
    ],
)
def test_config_refusals(change: dict[str, Any], message: str) -> None:
    hf = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    hf = {key: value for key, value in {**hf, **change}.items() if value is not None}
    with pytest.raises(CheckpointError, match=message):
        BertConfig.from_hf(hf)


def test_a_null_is_as_if_the_key_were_absent() -> None:
    hf = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    assert BertConfig.from_hf({**hf, "max_position_embeddings": None}) == BertConfig.from_hf(hf)
