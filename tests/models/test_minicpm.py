"""MiniCPM up to any of its layers against transformers' Granite, whose layers are the same by other names."""

import json
from pathlib import Path
from typing import Any

import pytest

from rtp_llm.errors import CheckpointError
from rtp_llm.models import find_model_type
from rtp_llm.models.minicpm import MiniCpm
from tests.backends import BACKENDS
from tests.models.oracle import (
    add_noise,
    assert_alone_and_in_any_order,
    hidden_states,
    load,
    make_items,
    untyped,
    worst,
)
from tests.models.test_qwen import reference
from tests.ops.data import assert_as_exact

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# config.json of bge-reranker-v2-minicpm-layerwise, in small.
HUB: dict[str, Any] = {
    "architectures": ["LayerWiseMiniCPMForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "auto_map": {"AutoModelForCausalLM": "modeling_minicpm_reranker.LayerWiseMiniCPMForCausalLM"}, "bos_token_id": 1,
    "dim_model_base": 16, "eos_token_id": 2, "head_multi": True, "head_type": "simple", "hidden_act": "silu",
    "hidden_size": 64, "initializer_range": 0.1, "intermediate_size": 96, "max_position_embeddings": 2048,
    "model_type": "minicpm", "num_attention_heads": 4, "num_hidden_layers": 5, "num_key_value_heads": 4,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "scale_depth": 1.4, "scale_emb": 12,
    "start_layer": 2, "torch_dtype": "bfloat16", "vocab_size": 101,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "all": {},
    "some": {"cutoff_layers": [3]},
    "the first that has a head": {"cutoff_layers": 2, "num_key_value_heads": 2},
    "odd": {"hidden_size": 60, "num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 77},
    "a large eps": {"rms_norm_eps": 0.1, "scale_depth": 0.5, "attention_bias": True},
}
LENGTHS = (1, 2, 17, 64, 7, 90)


def save(folder: Path, **changes: Any) -> Any:
    """A random checkpoint with a head for each of its later layers -> transformers' model, and the heads."""
    safetensors = pytest.importorskip("safetensors.torch")
    torch.manual_seed(0)
    config = {**HUB, **changes}
    layers, asked = config["num_hidden_layers"], config.get("cutoff_layers")
    shared = {
        key: config[key] for key in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "rms_norm_eps", "attention_bias", "initializer_range", "max_position_embeddings",
        )
    }  # fmt: skip
    granite = transformers.GraniteConfig(
        **shared,
        embedding_multiplier=config["scale_emb"],
        residual_multiplier=config["scale_depth"] / layers**0.5,
        attention_multiplier=(config["hidden_size"] // config["num_attention_heads"]) ** -0.5,
    )
    model = transformers.GraniteModel(granite).eval()
    add_noise(model)
    heads = {
        f"lm_head.{i}.linear_head.weight": torch.randn(1, config["hidden_size"])
        for i in range(layers - config["start_layer"] + 1)
    }
    tensors = {f"model.{name}": values for name, values in model.state_dict().items()}
    safetensors.save_file({**tensors, **heads}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    model.layers = model.layers[: layers if asked is None else asked[0] if isinstance(asked, list) else asked]
    model.config.num_hidden_layers = len(model.layers)
    return model, heads


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_equals_transformers(case: str, backend: str, tmp_path: Path) -> None:
    (theirs, _), items, ops = save(tmp_path, **CASES[case]), untyped(make_items(LENGTHS)), BACKENDS[backend]()
    model = load(tmp_path, ops)
    ours, expected = hidden_states(model, ops, items), reference(theirs, items)
    assert worst(ours, expected) <= 1e-5 and model.shares_prefixes
    exact = [rows.astype("float64") for rows in reference(theirs.double(), items)]
    for rows, near, far in zip(ours, expected, exact, strict=True):
        assert_as_exact(rows, near, far, floor=1e-6)


@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_packed_equals_alone_in_any_order_bit_for_bit(backend: str, tmp_path: Path) -> None:
    save(tmp_path, **CASES["odd"])
    ops = BACKENDS[backend]()
    assert_alone_and_in_any_order(load(tmp_path, ops), ops, untyped(make_items(LENGTHS)))


def test_it_is_found_by_its_architecture() -> None:
    unnamed = {key: value for key, value in HUB.items() if key != "model_type"}
    assert find_model_type("auto", unnamed) == find_model_type("auto", HUB) == "minicpm"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cutoff_layers": [1]}, r"cutoff_layers \[1\]; one number from 2 to 5 is served"),
        ({"cutoff_layers": 6}, "cutoff_layers 6; one number from 2 to 5"),
        ({"cutoff_layers": [3, 4]}, r"cutoff_layers \[3, 4\]; one number"),
        ({"cutoff_layers": []}, r"cutoff_layers \[\]; one number"),
        ({"start_layer": None}, "start_layer is missing"),
        ({"is_causal": False}, "is_causal false; of MiniCPM only true"),
    ],
)
def test_config_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        MiniCpm.read_config({**HUB, **change})
