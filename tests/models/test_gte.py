"""Gte against transformers' GteModel: token types or none, NTK scaling, both spellings of the tensors' names."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.errors import CheckpointError
from rtp_llm.models.gte import Gte, New
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

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LENGTHS = (1, 2, 17, 64, 7, 90)
SHAPE: dict[str, Any] = {
    "vocab_size": 101, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
    "max_position_embeddings": 128, "type_vocab_size": 2, "initializer_range": 0.1,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "odd": {"hidden_size": 60, "num_attention_heads": 6, "intermediate_size": 77, "num_hidden_layers": 3},
    "one_head": {"hidden_size": 40, "num_attention_heads": 1, "num_hidden_layers": 1},
    "no_types": {"type_vocab_size": 0},
    "silu": {"hidden_act": "silu", "layer_norm_eps": 1e-3},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}},
}
# What config.json of gte-base-en-v1.5 has beside the shape.
HUB: dict[str, Any] = {
    "model_type": "new", "architectures": ["NewModel"],
    "auto_map": {"AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel"}, "hidden_act": "gelu",
    "layer_norm_type": "layer_norm", "layer_norm_eps": 1e-12, "logn_attention_clip1": False,
    "logn_attention_scale": False, "pack_qkv": True, "position_embedding_type": "rope",
    "rope_scaling": {"factor": 2.0, "type": "ntk"}, "rope_theta": 5000, "unpad_inputs": False,
    "use_memory_efficient_attention": False,
}  # fmt: skip


def save(folder: Path, head: str = "Model", *, by_hub: bool = True, **changes: Any) -> Any:
    """A random checkpoint; `by_hub`: tensors by the names of the authors' code, which transformers writes as well."""
    config = transformers.GteConfig(**{**SHAPE, **changes})
    return saved(folder, getattr(transformers, f"Gte{head}"), config, save_original_format=by_hub)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_transformers(shape: str, backend: str, tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, **SHAPES[shape]), make_items((*LENGTHS, 150)), BACKENDS[backend]()
    ours = hidden_states(load(tmp_path, ops), ops, items)
    assert_as_exact(theirs, ours, items)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ntk_scaling_of_the_authors_code(backend: str, tmp_path: Path) -> None:
    """https://kexue.fm/archives/9706, equation 6, put into transformers' model."""
    theirs, items, ops = save(tmp_path, type_vocab_size=0), make_items((*LENGTHS, 150)), BACKENDS[backend]()
    head_dim, factor, theta = 16, 2.0, 5000.0
    exponents = torch.arange(0, head_dim, 2).float() / head_dim
    theirs.rotary_emb.inv_freq = 1 / (theta * factor) ** exponents / factor ** (2 / head_dim)
    (tmp_path / "config.json").write_text(json.dumps({**SHAPE, **HUB, "type_vocab_size": 0}))
    model = load(tmp_path, ops)
    assert model.max_positions == 128
    assert worst(hidden_states(model, ops, items), reference(theirs, items)) <= 1e-5


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
    items = make_items(LENGTHS)
    expected = reference(getattr(theirs, "gte", theirs), items)
    assert worst(hidden_states(load(tmp_path, ops), ops, items), expected) <= 1e-5


def test_unpacked_qkv_and_the_authors_prefix(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    theirs, items, ops = save(tmp_path), make_items(LENGTHS), BACKENDS["numpy"]()
    path, tensors = tmp_path / "model.safetensors", {}
    for name, tensor in load_file(path).items():
        if "qkv_proj" in name:
            for letter, part in zip("qkv", np.split(tensor, 3), strict=True):
                tensors["new." + name.replace("qkv_proj", f"{letter}_proj")] = part.copy()
        else:
            tensors["new." + name] = tensor
    save_file(tensors, path)
    assert worst(hidden_states(load(tmp_path, ops), ops, items), reference(theirs, items)) <= 1e-5


@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_layers_in_8_bits_are_the_same_in_either_spelling(backend: str, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    ops, items, rows = BACKENDS[backend](), make_items(LENGTHS), []
    for by_hub in (True, False):
        save(folder := tmp_path / str(by_hub), by_hub=by_hub)
        path, tensors = folder / "model.safetensors", {}
        for name, tensor in load_file(path).items():
            if name.endswith("_proj.weight"):
                scale = np.abs(tensor).max(axis=1, keepdims=True) / 127
                tensors[f"{name}_scale"], tensor = scale, np.rint(tensor / scale).astype(np.int8)
            tensors[name] = tensor
        save_file(tensors, path)
        rows.append(hidden_states(load(folder, ops), ops, items))
    assert worst(*rows) == 0


def test_defaults_are_those_of_the_code_that_model_type_names() -> None:
    hf = {key: value for key, value in SHAPE.items() if key != "max_position_embeddings"}
    assert [(read.rope.theta, read.max_positions) for read in (Gte.read_config(hf), New.read_config(hf))] == [
        (160_000.0, 8192), (10_000.0, 2048),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu' is not one of gelu"),
        ({"num_attention_heads": 7}, "not a multiple of num_attention_heads 7"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"position_embedding_type": "absolute"}, "position_embedding_type 'absolute'; only 'rope'"),
        ({"layer_norm_type": "rms_norm"}, "layer_norm_type 'rms_norm'; only 'layer_norm'"),
        ({"logn_attention_scale": True}, "logn_attention_scale True; only False"),
        ({"rope_scaling": {"type": "ntk", "factor": 2.0, "mixed_b": 0.6}}, "without mixed_b"),
        ({"rope_scaling": {"type": "ntk"}}, "a factor of at least 1"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "supported are default, linear"),
    ],
)
def test_config_refusals(change: dict[str, Any], message: str) -> None:
    hf = {key: value for key, value in {**SHAPE, **HUB, **change}.items() if value is not None}
    with pytest.raises(CheckpointError, match=message):
        New.read_config(hf)
