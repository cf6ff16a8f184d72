"""EmbeddingGemma 2 against transformers: random weights, odd shapes, every backend; among its towers, and alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.config_files import check_model, text_model
from rtp_llm.errors import CheckpointError
from rtp_llm.models import find_model_type
from rtp_llm.models.embedding_gemma2 import EmbeddingGemma2Config
from tests.backends import BACKENDS
from tests.models.oracle import add_noise, assert_alone_and_in_any_order, hidden_states, load, make_items, worst
from tests.models.test_qwen import reference
from tests.ops.data import assert_as_exact

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.19")

LENGTHS = (1, 2, 17, 64, 7, 90)
# config.json's text_config, in small.
SHAPE: dict[str, Any] = {
    "vocab_size": 101, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "sliding_window": 8,
    "hidden_size_per_layer_input": 24, "embedding_dim": 40, "pad_token_id": 0, "sliding_window_pattern": 3,
    "global_head_dim": 32, "num_global_key_value_heads": 1,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "odd": {
        "hidden_size": 60, "intermediate_size": 77, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 10,
        "hidden_size_per_layer_input": 21, "embedding_dim": 37, "num_hidden_layers": 4, "sliding_window_pattern": 2,
        "global_head_dim": 34, "num_global_key_value_heads": 2, "sliding_window": 1,
    },
    "all see all": {"sliding_window_pattern": 1, "num_hidden_layers": 2, "hidden_activation": "gelu"},
    "thetas": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 70.0},
            "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 30.0},
        }
    },
}  # fmt: skip


def save(folder: Path, shape: str, *, towers: bool = False) -> Any:
    """A random checkpoint, whose layers' scalars are not 1 -> transformers' model for texts."""
    torch.manual_seed(0)
    settings = {**SHAPE, **SHAPES[shape]}
    config = transformers.EmbeddingGemma2TextConfig(**settings)
    model: Any = transformers.EmbeddingGemma2TextModel(config).eval()
    add_noise(model)
    for number, layer in enumerate(model.layers):
        layer.layer_scalar.fill_(0.4 + 0.3 * number)
    if not towers:
        model.save_pretrained(folder)
        return model
    whole = transformers.EmbeddingGemma2Config(text_config=config, vision_config=None, audio_config=None)
    around = transformers.EmbeddingGemma2Model(whole).eval()
    around.language_model.load_state_dict(model.state_dict())
    around.save_pretrained(folder)
    return model


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_transformers(shape: str, backend: str, tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, shape), make_items((*LENGTHS, 180)), BACKENDS[backend]()
    model = load(tmp_path, ops)
    ours, expected = hidden_states(model, ops, items), reference(theirs, items)
    assert model.hidden_size == theirs.config.embedding_dim and not model.causal and model.max_positions >= 128
    exact = [rows.astype(np.float64) for rows in reference(theirs.double(), items)]
    for rows, near, far in zip(ours, expected, exact, strict=True):
        assert_as_exact(rows, near, far, floor=1e-6)


@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_packed_equals_alone_in_any_order_bit_for_bit(backend: str, tmp_path: Path) -> None:
    save(tmp_path, "odd")
    ops = BACKENDS[backend]()
    assert_alone_and_in_any_order(load(tmp_path, ops), ops, make_items((*LENGTHS, 180)))


def test_among_its_towers(tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, "plain", towers=True), make_items(LENGTHS), BACKENDS["numpy"]()
    path = tmp_path / "config.json"
    hf = json.loads(path.read_text())
    assert hf["model_type"] == "embedding_gemma2"
    flat = text_model(hf)
    check_model(path, flat)
    assert find_model_type("auto", flat) == "embedding_gemma2_text"
    path.write_text(json.dumps(flat))
    assert worst(hidden_states(load(tmp_path, ops), ops, items), reference(theirs, items)) <= 1e-5


def test_defaults_are_those_of_transformers() -> None:
    theirs = transformers.EmbeddingGemma2TextConfig()
    sizes = {key: getattr(theirs, key) for key in ("vocab_size", "hidden_size", "intermediate_size")}
    ours = EmbeddingGemma2Config.from_hf({**sizes, "num_hidden_layers": 24, "num_attention_heads": 4})
    assert ours.kinds == tuple(theirs.layer_types) and ours.window == theirs.sliding_window + 1
    assert ours.heads == tuple(
        (own.num_key_value_heads, own.head_dim) for own in map(theirs.per_layer_config.__getitem__, range(24))
    )
    assert (ours.signal, ours.dimension) == (theirs.hidden_size_per_layer_input, theirs.embedding_dim)
    assert {kind: rope.theta for kind, rope in ours.ropes.items()} == {
        kind: own["rope_theta"] for kind, own in theirs.rope_parameters.items()
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_bias": True}, "attention_bias true"),
        ({"per_layer_config": {"02": {"hidden_size": 3}}}, "per_layer_config 2: .* only head_dim, num_key_value_heads"),
        ({"per_layer_config": {"0": {"head_dim": 4}}}, r"layers of sliding_attention heads of sizes \[4, 16\]"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of layer 0's num_key_value_heads 3"),
        ({"layer_types": ["full_attention"]}, "3 of full_attention, sliding_attention are needed"),
    ],
)
def test_config_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        EmbeddingGemma2Config.from_hf({**SHAPE, **change})


@pytest.mark.parametrize("value", [{"a": {}}, {"1": 3}])
def test_layers_that_are_none(value: Any) -> None:
    with pytest.raises(CheckpointError, match="per_layer_config is .*; an object for a layer's number is needed"):
        check_model("config.json", {"model_type": "embedding_gemma2_text", "per_layer_config": value})
