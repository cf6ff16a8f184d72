"""ModernBert against transformers' ModernBertModel: windows, two ropes, biases, every backend."""

from pathlib import Path
from typing import Any

import pytest

from rtp_llm.errors import CheckpointError
from rtp_llm.models.modernbert import ModernBertConfig
from tests.backends import BACKENDS
from tests.models.oracle import (
    assert_alone_and_in_any_order,
    assert_as_exact,
    hidden_states,
    load,
    make_items,
    reference,
    saved,
    untyped,
    worst,
)

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LENGTHS = (1, 2, 17, 64, 7, 90)
SHAPE: dict[str, Any] = {
    "vocab_size": 101, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96,
    "max_position_embeddings": 128, "local_attention": 16, "initializer_range": 0.1, "pad_token_id": 0,
    "bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "odd": {"hidden_size": 60, "num_attention_heads": 6, "intermediate_size": 77, "local_attention": 7},
    "one_head": {"hidden_size": 40, "num_attention_heads": 1, "num_hidden_layers": 1},
    "biases": {"attention_bias": True, "mlp_bias": True, "norm_bias": True},
    "every_second": {"global_attn_every_n_layers": 2, "local_attention": 1},
    "local_first": {"layer_types": ["sliding_attention"] * 3 + ["full_attention"], "local_attention": 2},
    "local_alone": {"layer_types": ["sliding_attention"] * 4},
    "silu": {"hidden_activation": "silu", "norm_eps": 1e-3},
    "ropes": {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 90.0},
        }
    },
}


def save(folder: Path, head: str = "Model", **changes: Any) -> Any:
    """A random checkpoint whose norms and biases are not trivial."""
    config = transformers.ModernBertConfig(**{**SHAPE, **changes})
    return saved(folder, getattr(transformers, f"ModernBert{head}")._from_config, config, attn_implementation="eager")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_transformers(shape: str, backend: str, tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, **SHAPES[shape]), untyped(make_items(LENGTHS)), BACKENDS[backend]()
    ours = hidden_states(load(tmp_path, ops), ops, items)
    assert_as_exact(theirs, ours, items)


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_texts_much_longer_than_window_and_tables(backend: str, tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, local_attention=128), untyped(make_items((700, 3, 129))), BACKENDS[backend]()
    model = load(tmp_path, ops)
    assert model.max_positions == 128 and not model.learnt_positions
    ours, in_fp32 = hidden_states(model, ops, items), reference(theirs, items)
    truth = reference(theirs.double(), items)
    assert worst(ours, truth) <= 2 * worst(in_fp32, truth)


@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.parametrize("shape", ["odd", "biases"])
def test_packed_equals_alone_in_any_order_bit_for_bit(shape: str, backend: str, tmp_path: Path) -> None:
    save(tmp_path, **SHAPES[shape])
    ops = BACKENDS[backend]()
    model, items = load(tmp_path, ops), untyped(make_items((*LENGTHS, 140)))
    assert_alone_and_in_any_order(model, ops, items)


@pytest.mark.parametrize("head", ["ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"])
def test_prefixed_checkpoints_load_and_heads_are_ignored(head: str, tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, head, classifier_bias=True), untyped(make_items(LENGTHS)), BACKENDS["numpy"]()
    assert worst(hidden_states(load(tmp_path, ops), ops, items), reference(theirs.model, items)) <= 1e-5


HF: dict[str, Any] = {**SHAPE, "model_type": "modernbert"}


def test_older_keys_and_rope_parameters_say_the_same() -> None:
    older = {"global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "global_attn_every_n_layers": 3}
    newer = {
        "layer_types": ["full_attention", *["sliding_attention"] * 2, "full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 160000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    }
    assert ModernBertConfig.from_hf({**HF, **older}) == ModernBertConfig.from_hf({**HF, **newer})
    assert ModernBertConfig.from_hf(HF) == ModernBertConfig.from_hf({**HF, **newer})
    widths = [ModernBertConfig.from_hf({**HF, "local_attention": width}) for width in (None, 128)]
    assert widths[0] == widths[1]


def test_two_keys_for_the_window() -> None:
    """As transformers has it, one is half of the other and comes first."""
    for hf in ({}, {"local_attention": 12}, {"local_attention": 12, "sliding_window": 5}, {"sliding_window": None}):
        given = {key: value for key, value in hf.items() if value is not None}
        theirs = transformers.ModernBertConfig(**given).local_attention
        own = {key: value for key, value in HF.items() if key != "local_attention"}
        assert ModernBertConfig.from_hf({**own, **hf}).local_attention == theirs


def test_no_local_theta_is_the_global_one() -> None:
    config = ModernBertConfig.from_hf({**HF, "global_rope_theta": 77.0, "local_rope_theta": None})
    assert {rope.theta for rope in config.ropes.values()} == {77.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_activation": "quick_gelu"}, "hidden_activation 'quick_gelu' is not one of gelu"),
        ({"num_attention_heads": 7}, "not a multiple of num_attention_heads 7"),
        ({"is_causal": True}, "is_causal true; an encoder is served that looks both ways"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"layer_types": ["full_attention"]}, "4 of full_attention, sliding_attention are needed"),
        ({"layer_types": ["chunked_attention"] * 4}, "are needed"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling .*; rope_parameters of full_attention"),
        ({"rope_parameters": {"rope_type": "default"}}, "rope_parameters .* are supported"),
        ({"rope_parameters": {"full_attention": {"rope_type": "longrope"}}}, "supported are default, linear"),
    ],
)
def test_config_refusals(change: dict[str, Any], message: str) -> None:
    hf = {key: value for key, value in {**HF, **change}.items() if value is not None}
    with pytest.raises(CheckpointError, match=message):
        ModernBertConfig.from_hf(hf)
