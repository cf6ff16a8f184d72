"""Gemma 3's text model against transformers: random weights, odd shapes, every backend, both directions, windows."""

import json
from pathlib import Path
from typing import Any

import pytest

from rtp_llm.errors import CheckpointError
from rtp_llm.models.gemma import Gemma3
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

# Longer than every window, to either side.
LENGTHS = (1, 2, 17, 64, 7, 90)
GEMMA: dict[str, Any] = {**SHAPE, "head_dim": 24, "query_pre_attn_scalar": 20, "sliding_window": 8, "pad_token_id": 0}
KINDS = ["sliding_attention", "full_attention"]
BOTH_WAYS = {"use_bidirectional_attention": True, "layer_types": KINDS}
SHAPES: dict[str, dict[str, Any]] = {
    "windows alone": {},
    "both ways": BOTH_WAYS,
    "both ways, odd window": {**BOTH_WAYS, "sliding_window": 9, "sliding_window_pattern": 1},
    "odd": {"hidden_size": 60, "num_attention_heads": 6, "intermediate_size": 77, "sliding_window_pattern": 2},
    "odd heads": {
        "hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 34, "attention_bias": True,
        "layer_types": KINDS,
    },
    "ropes": {
        "layer_types": KINDS, "num_hidden_layers": 2,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 50000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
        },
    },
}  # fmt: skip


def save(folder: Path, head: str = "Gemma3TextModel", **changes: Any) -> Any:
    """A random checkpoint -> transformers' model."""
    return saved(folder, getattr(transformers, head), transformers.Gemma3TextConfig(**{**GEMMA, **changes}))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_transformers(shape: str, backend: str, tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, **SHAPES[shape]), make_items(LENGTHS), BACKENDS[backend]()
    model = load(tmp_path, ops)
    assert model.causal == model.shares_prefixes == ("use_bidirectional_attention" not in SHAPES[shape])
    assert_decodes_as(theirs, hidden_states(model, ops, items), items)


@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.parametrize("shape", ["both ways", "odd"])
def test_packed_equals_alone_in_any_order_bit_for_bit(shape: str, backend: str, tmp_path: Path) -> None:
    save(tmp_path, **SHAPES[shape])
    ops = BACKENDS[backend]()
    model, items = load(tmp_path, ops), make_items((1, 2, 17, 64, 39, 70))
    assert_alone_and_in_any_order(model, ops, items)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rope", ["default", "dynamic"])
def test_beyond_what_it_was_made_for(rope: str, backend: str, tmp_path: Path) -> None:
    thetas = dict(zip(KINDS, (100.0, 1e4), strict=True))
    parameters: dict[str, Any] = {kind: {"rope_type": "default", "rope_theta": thetas[kind]} for kind in KINDS}
    parameters["full_attention"] |= {"rope_type": rope, **({"factor": 2.0} if rope == "dynamic" else {})}
    changes: dict[str, Any] = {"max_position_embeddings": 16, "rope_parameters": parameters, "layer_types": KINDS}
    theirs, ops, items = save(tmp_path, **changes), BACKENDS[backend](), make_items((1, 9, 15, 70))
    model = load(tmp_path, ops)
    assert model.max_positions < 70 and model.shares_prefixes == (rope == "default")
    assert worst(hidden_states(model, ops, items), reference(theirs, items)) <= 1e-5


def test_config_json_of_embedding_gemma(tmp_path: Path) -> None:
    """Its keys are those of transformers 4."""
    theirs = save(tmp_path, num_hidden_layers=6, use_bidirectional_attention=True)
    path = tmp_path / "config.json"
    hf = json.loads(path.read_text())
    del hf["rope_parameters"], hf["layer_types"]
    old = {"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "rope_scaling": None, "_sliding_window_pattern": 6}
    path.write_text(json.dumps({**hf, **old}))
    items, ops = make_items(LENGTHS), BACKENDS["native"]()
    model: Any = load(tmp_path, ops)
    assert model.config.windows == (5, 5, 5, 5, 5, None)
    assert (model.config.rope.theta, model.config.local_rope.theta) == (1e6, 1e4)
    assert worst(hidden_states(model, ops, items), reference(theirs, items)) <= 1e-5


def test_scaling_of_older_files_is_for_layers_without_a_window() -> None:
    config = Gemma3.read_config({**GEMMA, "rope_scaling": {"rope_type": "linear", "factor": 8.0}})
    assert (config.rope.rope_type, config.rope.factor, config.rope.theta) == ("linear", 8.0, 1e6)
    assert config.local_rope is not None and config.local_rope.rope_type == "default"


@pytest.mark.parametrize("head", ["Gemma3ForCausalLM", "Gemma3TextForSequenceClassification"])
def test_prefixed_checkpoints_load_and_heads_are_ignored(head: str, tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, head), make_items(LENGTHS), BACKENDS["numpy"]()
    assert worst(hidden_states(load(tmp_path, ops), ops, items), reference(theirs.model, items)) <= 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rope_scaling": {"type": "linear", "factor": 8.0}},
            "rope_scaling type 'linear'; transformers 5 does not read",
        ),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0; only null is supported"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0; only null"),
        ({"hidden_activation": "quick_gelu"}, "hidden_activation 'quick_gelu' is not one of gelu"),
        ({"is_causal": False}, "is_causal false; a Gemma has use_bidirectional_attention"),
        ({"auto_map": {"AutoModel": "modeling.Own"}}, "auto_map has AutoModel 'modeling.Own'"),
        ({"sliding_window": None}, "sliding_window null; layers of sliding_attention need one"),
        ({"layer_types": ["full_attention"]}, "2 of full_attention, sliding_attention are needed"),
        ({"rope_parameters": {"rope_type": "default"}}, "full_attention and sliding_attention have their own"),
        ({"rope_parameters": {"full_attention": 3}}, "full_attention and sliding_attention have their own"),
        ({"rope_parameters": {"full_attention": {"rope_type": "longrope"}}}, "supported are default"),
    ],
)
def test_config_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Gemma3.read_config({**GEMMA, **change})
