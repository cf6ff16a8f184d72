"""Llama, EuroBERT and Mistral against transformers: odd shapes, every backend, windows, Llama 3's rope."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.errors import CheckpointError
from rtp_llm.models.llama import EuroBert, Llama, Ministral3, Ministral3Bidirectional, Mistral
from rtp_llm.models.rope import Rope
from tests.backends import BACKENDS
from tests.models.oracle import assert_alone_and_in_any_order, hidden_states, load, make_items, worst
from tests.models.test_qwen import SHAPE, reference, save
from tests.ops.data import assert_as_exact

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LENGTHS = (1, 2, 17, 64, 7, 90)
ODD = {"hidden_size": 60, "num_attention_heads": 6, "intermediate_size": 77}
ODD_HEADS = {"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 34}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
MINISTRAL = {
    "rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 96, "mscale": 1.0,
    "mscale_all_dim": 1.0, "beta_fast": 32.0, "beta_slow": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, odd": ("Llama", ODD),
    "llama, biases": ("Llama", {**ODD_HEADS, "attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}),
    "llama, both ways": ("Llama", {"is_causal": False, "num_key_value_heads": 4}),
    "llama 3": ("Llama", {"rope_parameters": LLAMA3}),
    "eurobert": ("EuroBert", {**ODD_HEADS, "pad_token_id": 0, "attention_bias": True, "mlp_bias": True}),
    "ministral 3": ("Ministral3", {**ODD_HEADS, "rope_parameters": MINISTRAL, "rms_norm_eps": 1e-4}),
    "ministral 3, both ways": ("Ministral3", {"rope_parameters": MINISTRAL, "is_causal": False, "head_dim": 16}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral, window": ("Mistral", {**ODD, "sliding_window": 9}),
    "mistral, window both ways": ("Mistral", {**ODD_HEADS, "sliding_window": 9, "is_causal": False}),
}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_equals_transformers(case: str, backend: str, tmp_path: Path) -> None:
    family, changes = CASES[case]
    theirs, items, ops = save(tmp_path, family, **changes), make_items(LENGTHS), BACKENDS[backend]()
    model = load(tmp_path, ops)
    ours, expected = hidden_states(model, ops, items), reference(theirs, items)
    assert worst(ours, expected) <= 1e-5
    assert model.causal == model.shares_prefixes == (changes.get("is_causal", True) and family != "EuroBert")
    exact = [rows.astype(np.float64) for rows in reference(theirs.double(), items)]
    for rows, near, far in zip(ours, expected, exact, strict=True):
        assert_as_exact(rows, near, far, floor=1e-6)


@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.parametrize("case", ["llama, biases", "llama 3", "mistral, window", "mistral, window both ways"])
def test_packed_equals_alone_in_any_order_bit_for_bit(case: str, backend: str, tmp_path: Path) -> None:
    family, changes = CASES[case]
    save(tmp_path, family, **changes)
    ops = BACKENDS[backend]()
    model, items = load(tmp_path, ops), make_items((1, 2, 17, 64, 39, 70))
    assert_alone_and_in_any_order(model, ops, items)


def test_ministral_3_ends_where_its_queries_would_grow(tmp_path: Path) -> None:
    save(tmp_path, "Ministral3", rope_parameters=MINISTRAL)
    model = load(tmp_path, BACKENDS["numpy"]())
    assert (model.max_positions, model.learnt_positions) == (96, True)
    shape = {key: SHAPE[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size")}
    ours, theirs = Ministral3.read_config({**shape, "num_attention_heads": 16}), transformers.Ministral3Config()
    assert (ours.rope.factor, ours.rope.original_positions) == (16.0, 16384)
    assert (ours.head_dim, ours.num_key_value_heads, ours.rms_norm_eps) == (128, 8, theirs.rms_norm_eps)
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"] and ours.causal
    both_ways = Ministral3Bidirectional.read_config({**shape, "num_attention_heads": 16, "is_causal": True})
    assert not both_ways.causal


@pytest.mark.parametrize("length", [33, 300])
def test_llama_3_beyond_its_lengths(length: int, tmp_path: Path) -> None:
    theirs = save(tmp_path, "Llama", max_position_embeddings=64, rope_parameters=LLAMA3)
    ops, items = BACKENDS["native"](), make_items((length, 5))
    model = load(tmp_path, ops)
    assert model.max_positions == 64
    assert worst(hidden_states(model, ops, items), reference(theirs, items)) <= 1e-5


@pytest.mark.parametrize("original", [32, 8192])
@pytest.mark.parametrize(("factor", "low", "high"), [(8.0, 1.0, 4.0), (32.0, 1.0, 4.0), (3.3, 0.7, 1.9), (1, 2, 32)])
@pytest.mark.parametrize(("head_dim", "theta"), [(128, 500000.0), (64, 500000.0), (34, 1234.5)])
def test_llama_3_angles_are_transformers_bits(
    head_dim: int, theta: float, factor: float, low: float, high: float, original: int
) -> None:
    parameters: dict[str, Any] = {
        "rope_type": "llama3", "rope_theta": theta, "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }  # fmt: skip
    shape = {**SHAPE, "head_dim": head_dim, "max_position_embeddings": 131072}
    config = transformers.LlamaConfig(**shape, rope_parameters=dict(parameters))
    expected = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config).inv_freq.numpy()
    for spelling in ({"rope_parameters": parameters}, {"rope_theta": theta, "rope_scaling": parameters}):
        assert np.array_equal(Rope.from_hf(spelling, head_dim, 131072)._frequencies(0), expected)


@pytest.mark.parametrize(
    ("family", "head"),
    [
        *((family, head) for family in ("Llama", "Mistral") for head in ("ForCausalLM", "ForSequenceClassification")),
        *(("EuroBert", head) for head in ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")),
    ],
)
def test_prefixed_checkpoints_load_and_heads_are_ignored(family: str, head: str, tmp_path: Path) -> None:
    theirs = save(tmp_path, family, head, pad_token_id=0)
    items, ops = make_items(LENGTHS), BACKENDS["numpy"]()
    assert worst(hidden_states(load(tmp_path, ops), ops, items), reference(theirs.model, items)) <= 1e-5


def test_defaults_are_those_of_the_authors() -> None:
    shape = {key: SHAPE[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size")}
    llama, mistral = (family.read_config({**shape, "num_attention_heads": 16}) for family in (Llama, Mistral))
    assert (llama.num_key_value_heads, llama.rope.max_positions, llama.windows) == (16, 2048, (None, None))
    eurobert = EuroBert.read_config({**shape, "num_attention_heads": 16})
    assert (eurobert.rope.max_positions, eurobert.rms_norm_eps, eurobert.causal) == (8192, 1e-5, False)
    assert (mistral.num_key_value_heads, mistral.rope.max_positions) == (8, 131072)
    assert mistral.windows == (4096, 4096) and llama.rope.theta == mistral.rope.theta == 10000.0
    assert (
        Mistral.read_config({**shape, "num_attention_heads": 16, "num_key_value_heads": None}).num_key_value_heads == 16
    )


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        (Llama, {"hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu' is not one of gelu"),
        (Llama, {"vocab_size": None}, "vocab_size is missing"),
        (EuroBert, {"is_causal": True}, "is_causal true; of EuroBERT only false is supported"),
        (Llama, {"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}}, "low_freq_factor 4.0, high_freq_factor 4.0"),
        (Llama, {"rope_scaling": {**LLAMA3, "high_freq_factor": None}}, "high_freq_factor None; llama3 needs both"),
        (Llama, {"rope_scaling": {**LLAMA3, "factor": 0.5}}, "rope factor 0.5"),
        (Ministral3, {"sliding_window": 9}, "sliding_window 9; of Ministral 3 only null is"),
        (Mistral, {"sliding_window": 0}, "sliding_window 0 is not a positive whole number"),
        (Mistral, {"layer_types": ["full_attention", "sliding_attention"]}, "the sliding_window of a Mistral is every"),
        (Mistral, {"layer_types": ["full_attention"]}, "2 of full_attention, sliding_attention are needed"),
    ],
)
def test_config_refusals(family: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        family.read_config({**SHAPE, **change})
