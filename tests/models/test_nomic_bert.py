"""NomicBert against transformers' NomicBertModel: both spellings of config.json and of the tensors' names."""

import json
from pathlib import Path
from typing import Any

import pytest

from rtp_llm.errors import CheckpointError
from rtp_llm.models.nomic_bert import NomicBert
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

LENGTHS = (1, 2, 17, 64, 7, 90)
SHAPE: dict[str, Any] = {
    "vocab_size": 101, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
    "max_position_embeddings": 128, "initializer_range": 0.1,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "odd": {"hidden_size": 60, "num_attention_heads": 6, "intermediate_size": 77, "num_hidden_layers": 3},
    "one_head": {"hidden_size": 40, "num_attention_heads": 1, "num_hidden_layers": 1, "type_vocab_size": 5},
    "gelu": {"hidden_act": "gelu", "layer_norm_eps": 1e-3},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 70.0}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1000.0}},
}
# config.json of nomic-embed-text-v1.5, in small.
HUB: dict[str, Any] = {
    "model_type": "nomic_bert", "architectures": ["NomicBertModel"],
    "auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"},
    "activation_function": "swiglu", "attn_pdrop": 0.0, "causal": False, "dense_seq_output": True,
    "fused_bias_fc": True, "layer_norm_epsilon": 1e-12, "max_trained_positions": 128, "mlp_fc1_bias": False,
    "mlp_fc2_bias": False, "n_embd": 64, "n_head": 4, "n_inner": 96, "n_layer": 2, "n_positions": 256,
    "parallel_block": False, "prenorm": False, "qkv_proj_bias": False, "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False, "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None, "scale_attn_weights": True, "type_vocab_size": 2, "use_flash_attn": True,
    "use_rms_norm": False, "vocab_size": 101,
}  # fmt: skip


def save(folder: Path, head: str = "Model", *, by_hub: bool = True, **changes: Any) -> Any:
    """A random checkpoint; `by_hub`: tensors by the names of the authors' code, which transformers writes as well."""
    config = transformers.NomicBertConfig(**{**SHAPE, **changes})
    return saved(folder, getattr(transformers, f"NomicBert{head}"), config, save_original_format=by_hub)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_transformers(shape: str, backend: str, tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, **SHAPES[shape]), make_items((*LENGTHS, 150)), BACKENDS[backend]()
    ours = hidden_states(load(tmp_path, ops), ops, items)
    assert_as_exact(theirs, ours, items)


@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_packed_equals_alone_in_any_order_bit_for_bit(backend: str, tmp_path: Path) -> None:
    save(tmp_path, **SHAPES["odd"])
    ops = BACKENDS[backend]()
    model, items = load(tmp_path, ops), make_items((*LENGTHS, 150))
    assert_alone_and_in_any_order(model, ops, items)


@pytest.mark.parametrize("by_hub", [False, True])
@pytest.mark.parametrize("head", ["Model", "ForMaskedLM", "ForSequenceClassification"])
def test_either_spelling_and_any_head_loads(head: str, by_hub: bool, tmp_path: Path) -> None:
    theirs, ops = save(tmp_path, head, by_hub=by_hub), BACKENDS["numpy"]()
    config, items = tmp_path / "config.json", make_items(LENGTHS)
    expected = reference(getattr(theirs, "nomic_bert", theirs), items)
    assert worst(hidden_states(load(tmp_path, ops), ops, items), expected) <= 1e-5
    config.write_text(json.dumps(HUB))
    model = load(tmp_path, ops)
    assert model.max_positions == 256 and worst(hidden_states(model, ops, items), expected) <= 1e-5
    # As the hub's files are today: with both.
    config.write_text(json.dumps({**HUB, **SHAPE, "hidden_act": "silu", "rope_parameters": {"rope_theta": 1000.0}}))
    assert worst(hidden_states(load(tmp_path, ops), ops, items), expected) <= 1e-5


def test_the_authors_scaling_is_dynamic_ntk(tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, **SHAPES["dynamic"]), make_items((140, 3, 200)), BACKENDS["numpy"]()
    (tmp_path / "config.json").write_text(json.dumps({**HUB, "rotary_scaling_factor": 2}))
    model = load(tmp_path, ops)
    assert model.max_positions == 256
    assert worst(hidden_states(model, ops, items), reference(theirs, items)) <= 1e-5


@pytest.mark.parametrize(("name", "activation"), [("swiglu", "silu"), ("geglu", "gelu"), ("glu", "sigmoid")])
def test_gates(name: str, activation: str) -> None:
    assert NomicBert.read_config({**HUB, "activation_function": name}).activation == activation


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_function": "gelu_new"}, "activation_function 'gelu_new' is not one of swiglu, geglu, glu, gelu"),
        ({"hidden_act": "gelu"}, "activation_function is 'swiglu', but hidden_act is 'gelu'; remove one"),
        ({"activation_function": None, "hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu' is not one of gelu"),
        ({"n_head": 7}, "hidden_size 64 is not num_attention_heads 7 times"),
        ({"head_dim": 8}, "num_attention_heads 4 times a whole head_dim"),
        ({"n_embd": None}, "hidden_size is missing, and so is n_embd"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"hidden_size": 32}, "hidden_size is 32, but n_embd is 64"),
        ({"rope_parameters": {"rope_theta": 5.0}}, "rotary_emb_base is 1000, but rope_parameters have 5.0"),
        ({"prenorm": True}, "prenorm True; only False is supported"),
        ({"is_causal": True}, "is_causal True; only False is supported"),
        ({"rotary_emb_fraction": 0.5}, "rotary_emb_fraction 0.5; only 1"),
        ({"moe_every_n_layers": 2, "n_layer": 2}, "moe_every_n_layers is 2, but num_experts 0"),
    ],
)
def test_config_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        NomicBert.read_config({**HUB, **change})
