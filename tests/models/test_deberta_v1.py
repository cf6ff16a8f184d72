"""What the first DeBERTa has for itself; tests/models/test_deberta.py compares it with transformers' DebertaModel."""

import json
from pathlib import Path

import numpy as np
import pytest

from rtp_llm.checkpoint import open_tensors, read_json
from rtp_llm.errors import CheckpointError
from rtp_llm.models.deberta_v1 import DebertaV1
from rtp_llm.quantize.writing import write_weights
from tests.backends import BACKENDS
from tests.models.oracle import hidden_states, load, worst
from tests.models.test_deberta import items_of, save

transformers = pytest.importorskip("transformers")


def test_a_checkpoint_in_8_bits(tmp_path: Path) -> None:
    """Its rows are put in order as they are stored."""
    ops, folder = BACKENDS["numpy"](), tmp_path / "whole"
    save(folder, "v1")
    source, items = open_tensors(folder), items_of("v1")
    weights = [name for name in source.tensors if name.endswith("in_proj.weight")]
    write_weights(source, weights, tmp_path / "model.safetensors", lambda _: None)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    stored, whole = (hidden_states(load(place, ops), ops, items) for place in (tmp_path, folder))
    assert 0 < worst(stored, whole) <= 0.1 * max(float(np.abs(rows).max()) for rows in whole)


def test_heads_that_are_mixed_are_refused(tmp_path: Path) -> None:
    save(tmp_path, "v1")
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
