"""The first DeBERTa against transformers' DebertaModel."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.checkpoint import open_tensors, read_json
from rtp_llm.core import Item
from rtp_llm.errors import CheckpointError
from rtp_llm.models import find_model_type
from rtp_llm.models.deberta_v1 import DebertaV1
from rtp_llm.quantize.writing import write_weights
from tests.backends import BACKENDS
from tests.models.oracle import (
    add_noise,
    assert_alone_and_in_any_order,
    assert_as_exact,
    hidden_states,
    load,
    make_items,
    reference,
    untyped,
    worst,
)
from tests.models.test_layers import layers
from tests.models.test_layers import reference as every_layer
from tests.models.test_wanted import assert_same, last_states

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

COMMON = {"vocab_size": 101, "initializer_range": 0.1, "relative_attention": True}
ODD = {"hidden_size": 60, "num_attention_heads": 5, "intermediate_size": 77, "num_hidden_layers": 3}
EVEN = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "num_hidden_layers": 2}
SHAPES: dict[str, dict[str, Any]] = {
    # As microsoft/deberta-base. Some sequences under test are longer than the distances that it tells apart.
    "base": {**EVEN, "position_biased_input": False, "pos_att_type": "c2p|p2c", "max_position_embeddings": 64},
    "odd": {
        **ODD, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 20, "max_position_embeddings": 301,
        "type_vocab_size": 3, "embedding_size": 17,
    },
    "far": {**ODD, "position_biased_input": False, "pos_att_type": ["c2p", "p2c"], "hidden_act": "gelu_new"},
    "c2p": {**ODD, "position_biased_input": False, "pos_att_type": ["c2p"]},
    "p2c": {**EVEN, "position_biased_input": False, "pos_att_type": "p2c"},
    # The scale counts what is not there.
    "absolute": {**EVEN, "relative_attention": False, "pos_att_type": ["p2c", "c2p"]},
    "no kind": {**EVEN},
}  # fmt: skip
LENGTHS = (1, 2, 17, 64, 7, 300, 33)


def save(folder: Path, shape: str, head: str = "Model", **changes: Any) -> Any:
    """A random checkpoint in which distance matters."""
    torch.manual_seed(0)
    config = transformers.DebertaConfig(**{**COMMON, **SHAPES[shape], **changes})
    model = getattr(transformers, f"Deberta{head}")(config).eval()
    add_noise(model)
    if config.relative_attention:
        with torch.no_grad():
            model.base_model.encoder.rel_embeddings.weight.normal_()
    model.save_pretrained(folder)
    return model


def items_of(shape: str, lengths: tuple[int, ...] = LENGTHS) -> list[Item]:
    items = make_items(lengths)
    return items if "type_vocab_size" in SHAPES[shape] else untyped(items)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_transformers(shape: str, backend: str, tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, shape), items_of(shape), BACKENDS[backend]()
    ours = hidden_states(load(tmp_path, ops), ops, items)
    assert_as_exact(theirs, ours, items)


@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.parametrize("shape", ["base", "odd"])
def test_packed_equals_alone_in_any_order_bit_for_bit(shape: str, backend: str, tmp_path: Path) -> None:
    save(tmp_path, shape)
    ops, items = BACKENDS[backend](), items_of(shape)
    assert_alone_and_in_any_order(load(tmp_path, ops), ops, items)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wanted_rows_and_every_layer(backend: str, tmp_path: Path) -> None:
    theirs, ops = save(tmp_path, "base"), BACKENDS[backend]()
    items = items_of("base", (5, 1, 33, 17, 2))
    model = load(tmp_path, ops)
    every = last_states(model, ops, items, "all")
    assert_same(backend, last_states(model, ops, items, "first"), np.stack([rows[0] for rows in every]))
    assert_same(backend, last_states(model, ops, items, "last"), np.stack([rows[-1] for rows in every]))
    assert max(map(worst, layers(model, ops, items), every_layer(theirs, items))) <= 1e-5


@pytest.mark.parametrize("head", ["ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"])
def test_prefixed_checkpoints_load_and_heads_are_ignored(head: str, tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, "base", head), items_of("base"), BACKENDS["numpy"]()
    assert worst(hidden_states(load(tmp_path, ops), ops, items), reference(theirs.base_model, items)) <= 1e-5
    architecture = {"architectures": read_json(tmp_path, "config.json")["architectures"]}
    assert find_model_type("auto", architecture) == "deberta"


def test_a_checkpoint_in_8_bits(tmp_path: Path) -> None:
    """Its rows are put in order as they are stored."""
    ops, folder = BACKENDS["numpy"](), tmp_path / "whole"
    save(folder, "base")
    source, items = open_tensors(folder), items_of("base")
    weights = [name for name in source.tensors if name.endswith("in_proj.weight")]
    write_weights(source, weights, tmp_path / "model.safetensors", lambda _: None)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    stored, whole = (hidden_states(load(place, ops), ops, items) for place in (tmp_path, folder))
    assert 0 < worst(stored, whole) <= 0.1 * max(float(np.abs(rows).max()) for rows in whole)


def test_heads_that_are_mixed_are_refused(tmp_path: Path) -> None:
    save(tmp_path, "base")
    config = read_json(tmp_path, "config.json")
    (tmp_path / "config.json").write_text(json.dumps({**config, "talking_head": True}))
    with pytest.raises(CheckpointError, match="talking_head is true; a DeBERTa is served whose heads"):
        load(tmp_path, BACKENDS["numpy"]())


def test_config_defaults_are_those_of_transformers() -> None:
    theirs = transformers.DebertaConfig()
    needed = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    config = DebertaV1.read_config({key: getattr(theirs, key) for key in needed})
    names = ("type_vocab_size", "layer_norm_eps", "position_biased_input", "relative_attention")
    assert [getattr(config, name) for name in names] == [getattr(theirs, name) for name in names]
    assert (config.pos_att_type, config.max_relative_positions, config.position_buckets) == ((), 512, 0)
