"""Qwen2 and Qwen3 against transformers: random weights, odd shapes, every backend, both directions, every rope."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import Item, pack
from rtp_llm.errors import CheckpointError
from rtp_llm.models import rope
from rtp_llm.models.qwen import Qwen2
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

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

LENGTHS = (1, 2, 17, 64, 7, 90)
SHAPE: dict[str, Any] = {
    "vocab_size": 101, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "max_position_embeddings": 128,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "odd": {"hidden_size": 60, "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 77},
    "odd_heads": {"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 34},
    "no_groups": {"num_key_value_heads": 4, "num_hidden_layers": 3, "hidden_act": "gelu"},
    "bidirectional": {"is_causal": False},
    "window": {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    "window_both_ways": {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1, "is_causal": False},
    "layer_types": {
        "use_sliding_window": True, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"],
    },
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0}},
}  # fmt: skip
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "yarn_factor": {
        "rope_type": "yarn", "factor": 4.0, "attention_factor": 0.9, "beta_fast": 16, "beta_slow": 2, "truncate": False,
    },
    "yarn_mscale": {"rope_type": "yarn", "factor": 3.0, "mscale": 0.7, "mscale_all_dim": 1.3},
}  # fmt: skip


def save(folder: Path, family: str = "Qwen2", head: str = "Model", **changes: Any) -> Any:
    """A random checkpoint; Qwen3 with heads of 24 unless `changes` say otherwise."""
    shape = {**SHAPE, **({"head_dim": 24} if family == "Qwen3" else {}), **changes}
    return saved(folder, getattr(transformers, family + head), getattr(transformers, f"{family}Config")(**shape))


def reference(model: Any, items: list[Item]) -> list[Any]:
    return oracle.reference(model, untyped(items), use_cache=False)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["Qwen2", "Qwen3"])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_transformers(shape: str, family: str, backend: str, tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, family, **SHAPES[shape]), make_items(LENGTHS), BACKENDS[backend]()
    model = load(tmp_path, ops)
    assert worst(hidden_states(model, ops, items), reference(theirs, items)) <= 1e-5
    assert model.causal == SHAPES[shape].get("is_causal", True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rope", ROPES)
def test_scaled_ropes_beyond_the_trained_length(rope: str, backend: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"max_position_embeddings": 40, "rope_parameters": {"rope_theta": 10000.0, **ROPES[rope]}}
    theirs, ops = save(tmp_path, "Qwen3", **changes), BACKENDS[backend]()
    items = make_items((1, 17, 39, 41, 60, 79))
    model = load(tmp_path, ops)
    assert model.max_positions >= 79
    assert worst(hidden_states(model, ops, items), reference(theirs, items)) <= 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rope", ["default", *ROPES])
def test_ropes_beyond_what_they_were_made_for(rope: str, backend: str, tmp_path: Path) -> None:
    """transformers has no end there, and a sentence-transformers folder may ask for more."""
    parameters = {"rope_theta": 10000.0, **ROPES.get(rope, {"rope_type": "default"})}
    changes: dict[str, Any] = {"max_position_embeddings": 8, "rope_parameters": parameters}
    theirs, ops = save(tmp_path, "Qwen3", **changes), BACKENDS[backend]()
    items = make_items((1, 7, 150, 9))
    model = load(tmp_path, ops)
    assert model.max_positions < 150
    assert worst(hidden_states(model, ops, items), reference(theirs, items)) <= 1e-5


def test_angles_beyond_the_largest_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, "Qwen3")
    ops, items = BACKENDS["numpy"](), make_items((1, 7, 90, 9))
    expected = hidden_states(load(tmp_path, ops), ops, items)
    monkeypatch.setattr(rope, "_MOST_ROWS", 8)
    model = load(tmp_path, ops)
    assert model.max_positions == 128
    assert all(map(np.array_equal, hidden_states(model, ops, items), expected))


@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("Qwen2", SHAPES["odd"]),
        ("Qwen3", SHAPES["window"]),
        ("Qwen3", {"max_position_embeddings": 40, "rope_parameters": {"rope_theta": 1e4, **ROPES["dynamic"]}}),
    ],
)
def test_packed_equals_alone_in_any_order_bit_for_bit(
    family: str, changes: dict[str, Any], backend: str, tmp_path: Path
) -> None:
    save(tmp_path, family, **changes)
    ops = BACKENDS[backend]()
    model, items = load(tmp_path, ops), make_items((1, 2, 17, 64, 39, 70))
    assert_alone_and_in_any_order(model, ops, items)


@pytest.mark.parametrize("head", ["ForCausalLM", "ForSequenceClassification"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["Qwen2", "Qwen3"])
def test_prefixed_checkpoints_load_and_heads_are_ignored(family: str, tied: bool, head: str, tmp_path: Path) -> None:
    theirs = save(tmp_path, family, head, tie_word_embeddings=tied, pad_token_id=0)
    items, ops = make_items(LENGTHS), BACKENDS["numpy"]()
    assert worst(hidden_states(load(tmp_path, ops), ops, items), reference(theirs.model, items)) <= 1e-5


def test_attention_bias_of_qwen3(tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, "Qwen3", attention_bias=True), make_items(LENGTHS), BACKENDS["numpy"]()
    assert worst(hidden_states(load(tmp_path, ops), ops, items), reference(theirs, items)) <= 1e-5


def test_qwen_2_embedding_looks_both_ways(tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, is_causal=False), make_items(LENGTHS), BACKENDS["numpy"]()
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"is_causal": false', '"is_causal": true'))
    model = load(tmp_path, ops, "qwen_2_embedding")
    assert not model.causal and load(tmp_path, ops, "qwen_2").causal
    assert worst(hidden_states(model, ops, items), reference(theirs, items)) <= 1e-5


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", ["plain", "odd_heads"])
def test_pplx_embed_looks_both_ways(shape: str, backend: str, tmp_path: Path) -> None:
    theirs = save(tmp_path, "Qwen3", **{**SHAPES[shape], "is_causal": False})
    code = {"AutoModel": "modeling.PPLXQwen3Model"}
    change_config(tmp_path, model_type="bidirectional_pplx_qwen3", is_causal=True, auto_map=code)
    ops, items = BACKENDS[backend](), make_items(LENGTHS)
    model = load(tmp_path, ops)
    assert not model.causal and worst(hidden_states(model, ops, items), reference(theirs, items)) <= 1e-5


def test_pplx_embed_context_reads_several_chunks_at_once(tmp_path: Path) -> None:
    """Its authors' code gives a vector for each of a document's chunks, which no request here can ask for."""
    theirs = save(tmp_path, "Qwen3", is_causal=False)
    code = {"AutoModel": "modeling.PPLXQwen3ContextualModel"}
    change_config(tmp_path, architectures=["PPLXQwen3Model"], model_type="bidirectional_pplx_qwen3", auto_map=code)
    ops, items = BACKENDS["numpy"](), make_items(LENGTHS)
    with pytest.raises(
        CheckpointError, match="'modeling.PPLXQwen3ContextualModel', as pplx-embed-context-v1: .*chunks"
    ):
        load(tmp_path, ops)
    change_config(tmp_path, auto_map={})
    assert worst(hidden_states(load(tmp_path, ops), ops, items), reference(theirs, items)) <= 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [80, 37])
def test_voyage_has_a_linear_layer_at_its_end(rows: int, backend: str, tmp_path: Path) -> None:
    theirs = save(tmp_path, "Qwen3", is_causal=False)
    weights = {f"model.{name}": values for name, values in theirs.state_dict().items()}
    weights["linear.weight"] = linear = torch.randn(rows, 64) * 0.1
    safetensors.save_file(weights, tmp_path / "model.safetensors")
    own = {"architectures": ["VoyageQwen3BidirectionalEmbedModel"], "num_labels": rows, "id2label": None}
    change_config(tmp_path, **own, is_causal=True, auto_map={"AutoModel": "modeling.Voyage"})
    ops, items = BACKENDS[backend](), make_items(LENGTHS)
    model = load(tmp_path, ops)
    expected = [states @ linear.numpy().T for states in reference(theirs, items)]
    assert model.hidden_size == rows and not model.causal
    assert worst(hidden_states(model, ops, items), expected) <= 1e-5
    batch = pack(items)
    last = np.cumsum([item.num_tokens for item in items]).astype(np.int32) - 1
    wanted = replace(batch, wanted=last)
    rows_of = ops.to_numpy(model(ops, ops.upload(model.prepare(wanted))))
    assert worst([rows_of], [np.stack([states[-1] for states in expected])]) <= 1e-5


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3", "Llama", "Mistral"])
def test_code_of_the_checkpoints_own_must_be_spoken_for(family: str, tmp_path: Path) -> None:
    """Such code may let a decoder look both ways, which its tensors do not show."""
    theirs, ops, items = save(tmp_path, family, is_causal=False), BACKENDS["numpy"](), make_items(LENGTHS)
    hf = json.loads((tmp_path / "config.json").read_text())
    hf.pop("is_causal", None)
    code = {"AutoConfig": "configuration.Config", "AutoModel": "modeling.Qwen2BiModel"}
    (tmp_path / "config.json").write_text(json.dumps({**hf, "auto_map": code}))
    with pytest.raises(CheckpointError, match='auto_map has AutoModel .modeling.Qwen2BiModel., .*"is_causal": false'):
        load(tmp_path, ops)
    change_config(tmp_path, is_causal=False)
    assert worst(hidden_states(load(tmp_path, ops), ops, items), reference(theirs, items)) <= 1e-5
    change_config(tmp_path, is_causal=True)
    assert load(tmp_path, ops).causal
    (tmp_path / "config.json").write_text(json.dumps({**hf, "auto_map": {"AutoConfig": "modeling_zeranker.ZEConfig"}}))
    assert load(tmp_path, ops).causal


def test_so_must_code_of_a_head_alone(tmp_path: Path) -> None:
    save(tmp_path, "Qwen3")
    own = {"AutoModelForSequenceClassification": "modeling.Qwen3BiForSequenceClassification"}
    change_config(tmp_path, auto_map=own)
    assert load(tmp_path, BACKENDS["numpy"]()).causal
    change_config(tmp_path, architectures=["Qwen3BiForSequenceClassification"])
    with pytest.raises(CheckpointError, match=r"auto_map has AutoModelForSequenceClassification 'modeling\.Qwen3BiFor"):
        load(tmp_path, BACKENDS["numpy"]())


@pytest.mark.parametrize("named", ["Qwen2BiModel", "Qwen2BiForMNTP", "Encoder", "LlamaBidirectionalModel"])
def test_so_must_a_class_that_is_not_of_transformers(named: str, tmp_path: Path) -> None:
    """As LLM2Vec saves its own, without an auto_map."""
    save(tmp_path)
    change_config(tmp_path, architectures=[named])
    with pytest.raises(CheckpointError, match=f"config.json: architectures has '{named}', code of its authors' own"):
        load(tmp_path, BACKENDS["numpy"]())
    for plain in (["Qwen2ForCausalLM"], ["FSDPQwen2ForCausalLM"], ["Qwen2ForRewardModel"], [], None):
        change_config(tmp_path, architectures=plain)
        assert load(tmp_path, BACKENDS["numpy"]()).causal


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sharded_half_precision_is_widened(dtype: str, tmp_path: Path) -> None:
    items, ops = make_items(LENGTHS), BACKENDS["numpy"]()
    save(tmp_path / "whole", "Qwen3").to(getattr(torch, dtype)).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len([*tmp_path.glob("model-*.safetensors")]) > 1
    theirs = transformers.Qwen3Model.from_pretrained(tmp_path, dtype=torch.float32)
    assert worst(hidden_states(load(tmp_path, ops), ops, items), reference(theirs, items)) <= 1e-5


HF = {**SHAPE, "model_type": "qwen2"}


def test_the_two_spellings_of_rope_are_one() -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    old = Qwen2.read_config({**HF, "rope_theta": 1e6, "rope_scaling": scaling})
    new = Qwen2.read_config({**HF, "rope_parameters": {"rope_theta": 1e6, **ROPES["yarn"]}})
    assert np.array_equal(old.rope.rows(200), new.rope.rows(200))
    assert old.rope.max_positions == new.rope.max_positions == 128


@pytest.mark.parametrize(
    "more",
    [
        {"rope_theta": 5e5, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
        {"rope_parameters": {"rope_type": "default"}},
        {"rope_scaling": {"type": "linear", "factor": 2.0, "rope_theta": 3e5}, "rope_parameters": {"rope_theta": 1e6}},
    ],
)
def test_rope_scaling_beside_rope_parameters_has_the_theta_of_transformers(more: dict[str, Any]) -> None:
    hf = {**HF, "rope_scaling": {"type": "linear", "factor": 2.0}, **more}
    theirs = transformers.Qwen2Config.from_dict(deepcopy(hf)).rope_parameters
    rope = Qwen2.read_config(hf).rope
    assert (rope.theta, rope.rope_type, rope.factor) == (theirs["rope_theta"], theirs["rope_type"], theirs["factor"])


def test_rope_scaling_whose_theta_stands_in_rope_parameters_alone_is_refused() -> None:
    """transformers would leave that theta unread, which nobody means."""
    plain = {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}
    hf = {**HF, **plain, "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert transformers.Qwen2Config.from_dict(deepcopy(hf)).rope_parameters["rope_theta"] == 10000.0
    with pytest.raises(CheckpointError, match="that of rope_parameters is 1000000.0; transformers would read 10000"):
        Qwen2.read_config(hf)


def test_a_rope_of_the_default_type_stretches_nothing() -> None:
    rope = Qwen2.read_config({**HF, "rope_parameters": {"rope_type": "default", "factor": 4.0}}).rope
    assert rope.max_positions == HF["max_position_embeddings"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "quick_gelu"}, "'quick_gelu' is not one of gelu"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"hidden_size": "64"}, "hidden_size '64' is not a positive whole number"),
        ({"layer_types": ["full_attention"]}, "2 of full_attention, sliding_attention are needed"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "are needed"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "use_sliding_window is not true"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "supported are default, linear, dynamic, yarn"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0}, "rope_theta": 1},
            "rope_theta 1, .* yarn has no frequencies",
        ),
        ({"rope_scaling": "yarn"}, "supported are default"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "supported are default"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "rope factor 0.5; a number of at least 1"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5; only whole heads"),
        ({"head_dim": 33}, "head_dim 33"),
    ],
)
def test_config_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Qwen2.read_config({**HF, **change})


def test_a_null_is_as_if_the_key_were_absent() -> None:
    hf = {**HF, "use_sliding_window": True, "sliding_window": 8}
    assert Qwen2.read_config({**hf, "max_window_layers": None}) == Qwen2.read_config(hf)
