"""Qwen3-VL's model for texts against transformers: random weights among a tower, odd shapes, every backend."""

import json
from pathlib import Path
from typing import Any

import pytest

from rtp_llm.checkpoint import open_tensors, read_json
from rtp_llm.config_files import check_model, text_model
from rtp_llm.errors import CheckpointError
from rtp_llm.models import Model, find_model_type, load_model
from rtp_llm.ops import Ops
from tests.backends import BACKENDS
from tests.models import oracle
from tests.models.oracle import assert_alone_and_in_any_order, hidden_states, make_items, saved, untyped, worst

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="4.57")

LENGTHS = (1, 2, 17, 64, 7, 90)
SHAPE: dict[str, Any] = {
    "vocab_size": 101, "hidden_size": 40, "num_hidden_layers": 4, "num_attention_heads": 5, "num_key_value_heads": 1,
    "head_dim": 34, "intermediate_size": 77, "max_position_embeddings": 128,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 5_000_000.0, "mrope_interleaved": True, "mrope_section": [7, 5, 5],
    },
}  # fmt: skip
VISION: dict[str, Any] = {
    "depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 24, "patch_size": 4,
    "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1],
}  # fmt: skip
CLASSES = ("Qwen3VLForConditionalGeneration", "Qwen3VLModel")


def save(folder: Path, name: str = CLASSES[0], *, tied: bool = True, **changes: Any) -> Any:
    """A random checkpoint with its tower -> transformers' model of it."""
    text = {**SHAPE, **changes}
    vision = {**VISION, "out_hidden_size": text["hidden_size"]}
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)
    config._attn_implementation = "eager"
    return saved(folder, getattr(transformers, name), config)


def load(folder: Path, ops: Ops) -> Model:
    hf = text_model(read_json(folder, "config.json"))
    check_model(folder / "config.json", hf)
    return load_model(find_model_type("auto", hf), hf, open_tensors(folder), ops)


def reference(theirs: Any, items: Any) -> list[Any]:
    """Of the whole model, as the authors' scripts call it: it finds the three positions of each token itself."""
    return oracle.reference(getattr(theirs, "model", theirs), untyped(items), use_cache=False)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CLASSES)
def test_equals_transformers(name: str, backend: str, tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, name), make_items(LENGTHS), BACKENDS[backend]()
    model = load(tmp_path, ops)
    assert model.causal and model.shares_prefixes and model.max_positions == 128
    assert worst(hidden_states(model, ops, items), reference(theirs, items)) <= 1e-5


@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_packed_equals_alone_in_any_order_bit_for_bit(backend: str, tmp_path: Path) -> None:
    save(tmp_path)
    ops = BACKENDS[backend]()
    assert_alone_and_in_any_order(load(tmp_path, ops), ops, make_items(LENGTHS))


def test_the_layout_of_transformers_4(tmp_path: Path) -> None:
    """Its config.json has the rope in two keys, and so have the checkpoints that are published."""
    theirs, items, ops = save(tmp_path), make_items(LENGTHS), BACKENDS["numpy"]()
    path = tmp_path / "config.json"
    hf = json.loads(path.read_text())
    rope = hf["text_config"].pop("rope_parameters")
    hf["text_config"] |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    path.write_text(json.dumps(hf))
    assert worst(hidden_states(load(tmp_path, ops), ops, items), reference(theirs, items)) <= 1e-5


def test_the_model_for_texts_alone(tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path), make_items(LENGTHS), BACKENDS["numpy"]()
    alone = tmp_path / "alone"
    theirs.model.language_model.save_pretrained(alone)
    hf = json.loads((alone / "config.json").read_text())
    assert hf["model_type"] == "qwen3_vl_text"
    (alone / "config.json").write_text(json.dumps({**hf, "architectures": ["Qwen3VLTextModel"]}))
    assert worst(hidden_states(load(alone, ops), ops, items), reference(theirs, items)) <= 1e-5


def test_the_theta_of_transformers_where_none_is_said(tmp_path: Path) -> None:
    theirs, ops = save(tmp_path), BACKENDS["numpy"]()
    hf = read_json(tmp_path, "config.json")
    for key in ("rope_theta", "rope_scaling", "rope_parameters"):
        hf["text_config"].pop(key, None)
    (tmp_path / "config.json").write_text(json.dumps(hf))
    own = type(theirs.config.text_config)(**hf["text_config"])
    expected = (getattr(own, "rope_parameters", None) or {}).get("rope_theta") or own.rope_theta
    model: Any = load(tmp_path, ops)
    assert model.config.ropes[0].theta == expected


def test_what_is_not_served(tmp_path: Path) -> None:
    save(tmp_path)
    path = tmp_path / "config.json"
    hf = json.loads(path.read_text())
    path.write_text(json.dumps({**hf, "text_config": {**hf["text_config"], "num_hidden_layers": 5}}))
    with pytest.raises(CheckpointError, match=r"does not fit .*missing: layers\.4"):
        load(tmp_path, BACKENDS["numpy"]())
    with pytest.raises(
        CheckpointError, match="reads images is not served, but for texts of CLIP, EmbeddingGemma 2, Qwen3-VL"
    ):
        find_model_type("auto", {"model_type": "qwen3_vl"})
