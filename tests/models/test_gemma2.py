"""Gemma and Gemma 2 against transformers: random weights, odd shapes, every backend, windows and caps."""

import json
from pathlib import Path
from typing import Any

import pytest

from rtp_llm.errors import CheckpointError
from rtp_llm.models.gemma import Gemma, Gemma2
from tests.backends import BACKENDS
from tests.models.oracle import (
    assert_alone_and_in_any_order,
    assert_decodes_as,
    hidden_states,
    load,
    make_items,
    saved,
    worst,
)
from tests.models.test_qwen import SHAPE, reference

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LENGTHS = (1, 2, 17, 64, 7, 90)
GEMMA: dict[str, Any] = {**SHAPE, "head_dim": 24, "pad_token_id": 0}
GEMMA2: dict[str, Any] = {**GEMMA, "query_pre_attn_scalar": 20, "sliding_window": 8, "attn_logit_softcapping": 3.0}
ODD = {"hidden_size": 60, "num_attention_heads": 6, "intermediate_size": 77, "num_hidden_layers": 3}
KINDS = ["full_attention", "sliding_attention"]
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("Gemma", GEMMA),
    "gemma, odd": ("Gemma", {**GEMMA, **ODD, "attention_bias": True}),
    "gemma, one key head": ("Gemma", {**GEMMA, "num_key_value_heads": 1, "hidden_act": "gelu"}),
    "gemma 2": ("Gemma2", GEMMA2),
    "gemma 2, odd": ("Gemma2", {**GEMMA2, **ODD, "attn_logit_softcapping": 0.7}),
    "gemma 2, no cap": ("Gemma2", {**GEMMA2, "attn_logit_softcapping": None, "layer_types": KINDS}),
    "gemma 2, long window": ("Gemma2", {**GEMMA2, "sliding_window": 50, "head_dim": 40, "attention_bias": True}),
}


def save(folder: Path, shape: str, head: str = "Model", **changes: Any) -> Any:
    """A random checkpoint -> transformers' model, whose attention has the cap."""
    stem, options = SHAPES[shape]
    config = getattr(transformers, f"{stem}Config")(**{**options, **changes})
    config._attn_implementation = "eager"
    return saved(folder, getattr(transformers, stem + head), config)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_transformers(shape: str, backend: str, tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, shape), make_items((*LENGTHS, 180)), BACKENDS[backend]()
    model = load(tmp_path, ops)
    assert model.causal and model.shares_prefixes
    assert_decodes_as(theirs, hidden_states(model, ops, items), items)


@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.parametrize("shape", ["gemma, odd", "gemma 2, odd"])
def test_packed_equals_alone_in_any_order_bit_for_bit(shape: str, backend: str, tmp_path: Path) -> None:
    save(tmp_path, shape)
    ops = BACKENDS[backend]()
    assert_alone_and_in_any_order(load(tmp_path, ops), ops, make_items((*LENGTHS, 180)))


@pytest.mark.parametrize("shape", ["gemma", "gemma 2"])
@pytest.mark.parametrize("head", ["ForCausalLM", "ForSequenceClassification"])
def test_prefixed_checkpoints_load_and_heads_are_ignored(head: str, shape: str, tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, shape, head), make_items(LENGTHS), BACKENDS["numpy"]()
    assert worst(hidden_states(load(tmp_path, ops), ops, items), reference(theirs.model, items)) <= 1e-5


def test_config_json_of_older_files(tmp_path: Path) -> None:
    """bge-multilingual-gemma2's and gemma-2b's, of transformers 4."""
    theirs = save(tmp_path, "gemma 2", num_hidden_layers=4)
    path = tmp_path / "config.json"
    hf = json.loads(path.read_text())
    for key in ("rope_parameters", "layer_types", "use_bidirectional_attention"):
        hf.pop(key, None)
    path.write_text(
        json.dumps({**hf, "rope_theta": 10000.0, "hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid"})
    )
    items, ops = make_items(LENGTHS), BACKENDS["native"]()
    model: Any = load(tmp_path, ops)
    assert model.config.windows == (8, None, 8, None) and model.config.softcap == 3.0
    assert worst(hidden_states(model, ops, items), reference(theirs, items)) <= 1e-5
    old = {**GEMMA, "hidden_act": "gelu", "hidden_activation": None, "rope_theta": 10000.0, "rope_scaling": None}
    assert Gemma.read_config(old).activation == "gelu_tanh"


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (Gemma, {"hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu' is not one of gelu"),
        (Gemma, {"is_causal": False}, "is_causal False; of Gemma and Gemma 2 only True"),
        (Gemma2, {"use_bidirectional_attention": True}, "use_bidirectional_attention True; of Gemma and Gemma 2"),
        (Gemma2, {"sliding_window": None}, "sliding_window null; layers of sliding_attention need one"),
        (Gemma, {"auto_map": {"AutoModel": "modeling.Own"}}, "auto_map has AutoModel 'modeling.Own'"),
        (Gemma2, {"layer_types": ["full_attention"]}, "2 of full_attention, sliding_attention are needed"),
    ],
)
def test_config_refusals(kind: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        kind.read_config({**GEMMA2, **change})
