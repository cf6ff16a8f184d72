"""CLIP's tower for texts against transformers: random weights, odd shapes, every backend; beside another, and alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.checkpoint import read_json
from rtp_llm.config_files import check_model, text_model
from rtp_llm.core import QuantizedWeight
from rtp_llm.errors import CheckpointError
from rtp_llm.models import find_model_type
from rtp_llm.models.clip import ClipConfig
from rtp_llm.ops.int8 import quantize_weight
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
from tests.models.test_layers import layers
from tests.models.test_wanted import assert_same, last_states

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

COMMON = {"vocab_size": 101, "max_position_embeddings": 77, "attn_implementation": "eager", "projection_dim": 24}
SHAPES: dict[str, dict[str, Any]] = {
    "even": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "odd": {"hidden_size": 60, "intermediate_size": 77, "num_hidden_layers": 3, "num_attention_heads": 5},
    # As OpenCLIP's have it.
    "gelu": {"hidden_size": 48, "intermediate_size": 50, "num_hidden_layers": 2, "num_attention_heads": 3,
             "hidden_act": "gelu", "layer_norm_eps": 1e-3},
}  # fmt: skip
LENGTHS = (1, 2, 17, 64, 7, 77)
VISION = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 4, "patch_size": 2}  # fmt: skip


def save(folder: Path, shape: str, kind: str = "CLIPTextModel", **changes: Any) -> Any:
    """A random checkpoint whose norms and biases are not trivial."""
    config = transformers.CLIPTextConfig(**{**COMMON, **SHAPES[shape], **changes})
    return saved(folder, getattr(transformers, kind), config)


def save_towers(folder: Path, shape: str, **changes: Any) -> Any:
    """The same with a tower for images, as most checkpoints are; config.json is changed to that of the texts."""
    config = transformers.CLIPConfig(
        text_config={**COMMON, **SHAPES[shape], **changes}, vision_config=VISION, projection_dim=24
    )
    model = saved(folder, transformers.CLIPModel, config)
    hf = read_json(folder, "config.json")
    flat = text_model(hf)
    check_model("config.json", flat)
    (folder / "config.json").write_text(json.dumps(flat))
    return model


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_transformers(shape: str, backend: str, tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, shape), untyped(make_items(LENGTHS)), BACKENDS[backend]()
    model = load(tmp_path, ops)
    assert model.causal and model.max_positions == 77
    assert_as_exact(theirs, hidden_states(model, ops, items), items)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["CLIPTextModelWithProjection", "CLIPModel"])
def test_projected(kind: str, backend: str, tmp_path: Path) -> None:
    theirs = save_towers(tmp_path, "odd") if kind == "CLIPModel" else save(tmp_path, "odd", kind)
    items, ops = untyped(make_items(LENGTHS)), BACKENDS[backend]()
    model = load(tmp_path, ops)
    assert model.hidden_size == 24
    ours = hidden_states(model, ops, items)

    def projected() -> list[Any]:
        rows = map(torch.from_numpy, reference(theirs.text_model, items))
        with torch.no_grad():
            return [theirs.text_projection(states).numpy() for states in rows]

    in_fp32 = projected()
    theirs.double()
    truth = projected()
    assert worst(ours, truth) <= 2 * worst(in_fp32, truth)


@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_equals_alone_in_any_order_bit_for_bit(shape: str, backend: str, tmp_path: Path) -> None:
    save(tmp_path, shape, "CLIPTextModelWithProjection")
    ops, items = BACKENDS[backend](), untyped(make_items(LENGTHS))
    assert_alone_and_in_any_order(load(tmp_path, ops), ops, items)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wanted_rows_and_every_layer(backend: str, tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, "odd"), untyped(make_items((5, 1, 33, 17, 2))), BACKENDS[backend]()
    model = load(tmp_path, ops)
    every = last_states(model, ops, items, "all")
    assert_same(backend, last_states(model, ops, items, "last"), np.stack([rows[-1] for rows in every]))
    expected = []
    with torch.no_grad():
        for item in items:
            out = theirs(input_ids=torch.from_numpy(item.input_ids).long()[None], output_hidden_states=True)
            expected.append([rows[0].numpy() for rows in (*out.hidden_states[:-1], out.last_hidden_state)])
    ours = layers(model, ops, items)
    assert max(map(worst, ours, map(list, zip(*expected, strict=True)))) <= 1e-5


def test_older_names_and_a_projection_that_is_left_out(tmp_path: Path) -> None:
    """Files of transformers before 5 have the prefix, and a table of positions; a CLIPTextModel projects nothing."""
    from safetensors.numpy import load_file, save_file

    theirs, items, ops = save(tmp_path, "odd"), untyped(make_items(LENGTHS)), BACKENDS["numpy"]()
    tensors = {f"text_model.{name}": values for name, values in load_file(tmp_path / "model.safetensors").items()}
    tensors["text_model.embeddings.position_ids"] = np.arange(77)[None]
    tensors["text_projection.weight"] = np.ones((24, 60), np.float32)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    assert worst(hidden_states(load(tmp_path, ops), ops, items), reference(theirs, items)) <= 1e-5
    hf = read_json(tmp_path, "config.json")
    (tmp_path / "config.json").write_text(json.dumps({**hf, "architectures": None}))
    assert load(tmp_path, ops).hidden_size == 24
    del tensors["text_projection.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    assert load(tmp_path, ops).hidden_size == 60
    (tmp_path / "config.json").write_text(json.dumps({**hf, "architectures": ["CLIPTextModelWithProjection"]}))
    with pytest.raises(CheckpointError, match="1 missing: text_projection.weight"):
        load(tmp_path, ops)


def test_weights_in_8_bits_are_divided_by_their_scales(tmp_path: Path) -> None:
    from rtp_llm.models.clip import _divided

    weight = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    stored = quantize_weight(weight)
    ours = _divided(stored, np.float32(1.702))
    assert isinstance(ours, QuantizedWeight)
    assert np.array_equal(ours.values, stored.values)
    assert np.array_equal(ours.scales, stored.scales / np.float32(1.702))


def test_config_defaults_are_those_of_transformers() -> None:
    theirs, ours = transformers.CLIPTextConfig(), ClipConfig.from_hf({})
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "max_position_embeddings", "layer_norm_eps", "projection_dim")  # fmt: skip
    assert {key: getattr(ours, key) for key in same} == {key: getattr(theirs, key) for key in same}
    assert (
        theirs.hidden_act == "quick_gelu"
        and ours.activation_scale != 1 == ClipConfig.from_hf({"hidden_act": "gelu"}).activation_scale
    )


@pytest.mark.parametrize("text_config", [None, {"hidden_size": 64, "vocab_size": 5}])
def test_the_older_text_config_dict_comes_first(text_config: Any) -> None:
    given = {"model_type": "clip", "text_config": text_config, "projection_dim": 7}
    older = {**given, "text_config_dict": {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1}}
    for hf in (given, older):
        ours, theirs = text_model(hf), transformers.CLIPConfig(**{k: v for k, v in hf.items() if k != "model_type"})
        assert find_model_type("auto", ours) == "clip_text_model"
        config = ClipConfig.from_hf(ours)
        assert (config.hidden_size, config.vocab_size, config.projection_dim) == (
            theirs.text_config.hidden_size, theirs.text_config.vocab_size, theirs.projection_dim,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 7}, "hidden_size 60 is not a multiple of num_attention_heads 7"),
        ({"hidden_act": "xielu"}, "hidden_act 'xielu' is not one of gelu"),
    ],
)
def test_config_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        ClipConfig.from_hf({**SHAPES["odd"], **change})
