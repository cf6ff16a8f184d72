"""LFM2 against transformers, and LFM2.5, which looks both ways, against transformers with its authors' changes."""

import json
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import Item, pack
from rtp_llm.errors import CheckpointError
from rtp_llm.models.lfm2 import Lfm2, Lfm2Bidirectional
from tests.backends import BACKENDS
from tests.models import oracle
from tests.models.oracle import (
    assert_alone_and_in_any_order,
    hidden_states,
    load,
    make_items,
    saved,
    untyped,
    worst,
)
from tests.ops.data import assert_as_exact

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LENGTHS = (1, 2, 17, 64, 3, 90)
SHAPE: dict[str, Any] = {
    "vocab_size": 101, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "block_multiple_of": 16, "max_position_embeddings": 128, "initializer_range": 0.1,
    "layer_types": ["conv", "full_attention", "conv", "full_attention"],
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "odd": {
        "hidden_size": 60, "num_attention_heads": 6, "intermediate_size": 77, "block_auto_adjust_ff_dim": False,
        "conv_L_cache": 5,
    },
    "odd heads": {
        "hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 34, "conv_L_cache": 2,
        "block_ffn_dim_multiplier": 1.3,
    },
    "ends with a convolution": {
        "layer_types": ["full_attention", "conv", "conv"], "num_hidden_layers": 3, "norm_eps": 1e-3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 70.0},
    },
}  # fmt: skip
BOTH_WAYS = {"architectures": ["Lfm2BidirectionalModel"], "auto_map": {"AutoModel": "modeling.Lfm2BidirectionalModel"}}


def save(folder: Path, head: str = "Model", *, both_ways: bool = False, **changes: Any) -> Any:
    """A random checkpoint -> transformers' model of it, with the changes of LFM2.5's authors where it is theirs."""
    model = saved(folder, getattr(transformers, f"Lfm2{head}"), transformers.Lfm2Config(**{**SHAPE, **changes}))
    if both_ways:
        edit(folder, **BOTH_WAYS)
        look_both_ways(model)
    return model


def edit(folder: Path, **changes: Any) -> None:
    """config.json with other values; None: without the key."""
    path = folder / "config.json"
    hf = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in hf.items() if value is not None}))


def look_both_ways(model: Any) -> None:
    """Attention of all tokens, and convolutions with as many on either side: their modeling_lfm2_bidirectional.py."""
    model.config.is_causal = False
    for layer in model.layers:
        if not layer.is_attention_layer:
            layer.conv.forward = MethodType(_centred, layer.conv)


def _centred(self: Any, hidden_states: Any, **_: Any) -> Any:
    before, after, values = self.in_proj(hidden_states).transpose(1, 2).chunk(3, dim=1)
    weight, length = self.conv.weight, hidden_states.shape[1]
    inputs = before * values
    y = torch.nn.functional.conv1d(inputs, weight, padding=weight.shape[-1] // 2, groups=len(weight))[..., :length]
    return self.out_proj((after * y).transpose(1, 2))


def reference(model: Any, items: list[Item]) -> list[Any]:
    return oracle.reference(model, untyped(items), use_cache=False)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_transformers(shape: str, both_ways: bool, backend: str, tmp_path: Path) -> None:
    theirs, items = save(tmp_path, both_ways=both_ways, **SHAPES[shape]), make_items(LENGTHS)
    ops = BACKENDS[backend]()
    model = load(tmp_path, ops)
    assert (model.causal, model.shares_prefixes, model.max_positions) == (not both_ways, False, 128)
    ours, expected = hidden_states(model, ops, items), reference(theirs, items)
    assert worst(ours, expected) <= 1e-5
    exact = [rows.astype(np.float64) for rows in reference(theirs.double(), items)]
    for rows, near, far in zip(ours, expected, exact, strict=True):
        assert_as_exact(rows, near, far, floor=1e-6)


def test_the_two_differ(tmp_path: Path) -> None:
    one, other, items = save(tmp_path / "a"), save(tmp_path / "b", both_ways=True), make_items((9,))
    assert worst(reference(one, items), reference(other, items)) > 0.1


@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("shape", ["odd", "ends with a convolution"])
def test_packed_equals_alone_in_any_order_bit_for_bit(
    shape: str, both_ways: bool, backend: str, tmp_path: Path
) -> None:
    save(tmp_path, both_ways=both_ways, **SHAPES[shape])
    ops = BACKENDS[backend]()
    assert_alone_and_in_any_order(load(tmp_path, ops), ops, make_items(LENGTHS))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("shape", ["plain", "ends with a convolution"])
def test_wanted_rows(shape: str, both_ways: bool, backend: str, tmp_path: Path) -> None:
    save(tmp_path, both_ways=both_ways, **SHAPES[shape])
    ops, items = BACKENDS[backend](), make_items(LENGTHS)
    model = load(tmp_path, ops)
    every = hidden_states(model, ops, items)
    for reads, place in (("first", 0), ("last", -1)):
        batch = model.prepare(pack(items, reads))  # type: ignore[arg-type]
        rows = ops.to_numpy(model(ops, ops.upload(batch)))
        np.testing.assert_allclose(rows, np.stack([rows[place] for rows in every]), atol=1e-5 * (backend == "torch"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("both_ways", [False, True])
def test_tokens_that_are_not_seen(both_ways: bool, backend: str, tmp_path: Path) -> None:
    """As transformers masks them in either kind of layer; the authors of LFM2.5 mask them in attention alone."""
    theirs, ops, (item,) = save(tmp_path, both_ways=both_ways), BACKENDS[backend](), untyped(make_items((20,)))
    item.num_unseen = 7
    mask = torch.ones(1, 20, dtype=torch.long)
    mask[:, 13:] = 0
    (expected,) = oracle.reference(theirs, [item], use_cache=False, attention_mask=mask)
    (ours,) = hidden_states(load(tmp_path, ops), ops, [item])
    assert np.abs(ours - expected).max() <= 1e-5


@pytest.mark.parametrize("prefix", ["model.", "lfm2."])
def test_prefixed_checkpoints_load_and_heads_are_ignored(prefix: str, tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, "ForCausalLM"), make_items(LENGTHS), BACKENDS["numpy"]()
    if prefix == "lfm2.":  # of Lfm2BidirectionalForMaskedLM
        files = pytest.importorskip("safetensors.torch")
        tensors = files.load_file(tmp_path / "model.safetensors")
        tensors = {name.replace("model.", prefix, 1): values for name, values in tensors.items()}
        files.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        edit(tmp_path, architectures=["Lfm2BidirectionalForMaskedLM"])
        look_both_ways(theirs.model)
    assert worst(hidden_states(load(tmp_path, ops), ops, items), reference(theirs.model, items)) <= 1e-5


@pytest.mark.parametrize("older", ["full_attn_idxs", "block_ff_dim", "rope_theta"])
def test_older_names(older: str, tmp_path: Path) -> None:
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 70.0}}
    changes: dict[str, Any] = rope if older == "rope_theta" else {}
    theirs, items, ops = save(tmp_path, **changes), make_items(LENGTHS), BACKENDS["numpy"]()
    if older == "full_attn_idxs":
        edit(tmp_path, layer_types=None, full_attn_idxs=[1, 3])
    elif older == "block_ff_dim":
        edit(tmp_path, intermediate_size=None, block_ff_dim=96)
    else:
        edit(tmp_path, rope_parameters=None, rope_theta=70.0)
    assert worst(hidden_states(load(tmp_path, ops), ops, items), reference(theirs, items)) <= 1e-5


def test_defaults_are_those_of_transformers() -> None:
    theirs = transformers.Lfm2Config()
    shape = {key: getattr(theirs, key) for key in ("vocab_size", "hidden_size", "intermediate_size")}
    ours = Lfm2.read_config({**shape, "num_hidden_layers": 32, "num_attention_heads": 32})
    assert (ours.num_key_value_heads, ours.norm_eps, ours.kernel) == (8, theirs.norm_eps, theirs.conv_L_cache)
    assert ours.kinds == tuple(theirs.layer_types) and ours.rope.max_positions == theirs.max_position_embeddings
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"] and ours.causal and not ours.centred
    # LFM2-350M's: 6656 in config.json, 4608 in its tensors.
    assert Lfm2.read_config({**SHAPE, "intermediate_size": 6656, "block_multiple_of": 256}).intermediate_size == 4608


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv_bias": True}, "conv_bias true; of LFM2 only false is supported"),
        ({"layer_types": ["conv", "full_attention"]}, "4 of full_attention, conv are needed"),
        ({"layer_types": ["conv", "sliding_attention"] * 2}, "4 of full_attention, conv are needed"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        (
            {"architectures": ["Lfm2BidirForSequenceRouting"]},
            "Lfm2BidirForSequenceRouting looks both ways and has a head of its authors' own",
        ),
        ({"auto_map": {"AutoModel": "modeling.X"}}, "auto_map has AutoModel 'modeling.X'"),
    ],
)
def test_config_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Lfm2.read_config({**SHAPE, **change})


def test_both_ways_whatever_config_json_says() -> None:
    config = Lfm2Bidirectional.read_config({**SHAPE, **BOTH_WAYS, "is_causal": True})
    assert config.centred and not config.causal
