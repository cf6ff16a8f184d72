"""DeBERTa-v2 and v3 against transformers' DebertaV2Model, and the first DeBERTa against its DebertaModel."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm import Model
from rtp_llm.checkpoint import open_tensors, read_json
from rtp_llm.core import Item
from rtp_llm.errors import CheckpointError
from rtp_llm.models import find_model_type
from rtp_llm.models.deberta import DebertaConfig
from rtp_llm.models.distance import log_buckets
from rtp_llm.quantize.writing import write_weights
from tests.backends import BACKENDS
from tests.conftest import WORDS
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
modeling = transformers.models.deberta_v2.modeling_deberta_v2

COMMON = {"vocab_size": 101, "initializer_range": 0.1, "relative_attention": True}
ODD = {"hidden_size": 60, "num_attention_heads": 5, "intermediate_size": 77, "num_hidden_layers": 3}
EVEN = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "num_hidden_layers": 2}
V3 = {"position_biased_input": False, "share_att_key": True, "pos_att_type": "p2c|c2p", "norm_rel_ebd": "layer_norm"}
SHAPES: dict[str, dict[str, Any]] = {
    "v3": {**EVEN, **V3, "position_buckets": 16, "max_position_embeddings": 64, "max_relative_positions": -1},
    "v3, odd": {**ODD, **V3, "position_buckets": 6, "max_relative_positions": 100, "type_vocab_size": 2},
    # The distances of sequences under test are all within the table.
    "far": {**ODD, **V3, "position_buckets": 256, "embedding_size": 17},
    "own projections": {
        **EVEN, "pos_att_type": ["c2p", "p2c"], "max_position_embeddings": 301, "max_relative_positions": 20,
        "type_vocab_size": 3,
    },
    "c2p": {**ODD, "position_biased_input": False, "pos_att_type": ["c2p"], "share_att_key": True},
    "p2c": {**ODD, "position_biased_input": False, "pos_att_type": "p2c", "hidden_act": "gelu_new"},
    # The scale counts what is not there.
    "absolute": {**EVEN, "relative_attention": False, "pos_att_type": ["p2c", "c2p"]},
    "no kind": {**EVEN, "position_buckets": 8, "norm_rel_ebd": "layer_norm"},
}  # fmt: skip
# Of the first DeBERTa.
FIRST: dict[str, dict[str, Any]] = {
    # As microsoft/deberta-base. Some sequences under test are longer than the distances that it tells apart.
    "v1": {**EVEN, "position_biased_input": False, "pos_att_type": "c2p|p2c", "max_position_embeddings": 64},
    "v1, odd": {
        **ODD, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 20, "max_position_embeddings": 301,
        "type_vocab_size": 3, "embedding_size": 17,
    },
    "v1, far": {**ODD, "position_biased_input": False, "pos_att_type": ["c2p", "p2c"], "hidden_act": "gelu_new"},
    "v1, c2p": {**ODD, "position_biased_input": False, "pos_att_type": ["c2p"]},
    "v1, p2c": {**EVEN, "position_biased_input": False, "pos_att_type": "p2c"},
    "v1, absolute": {**EVEN, "relative_attention": False, "pos_att_type": ["p2c", "c2p"]},
    "v1, no kind": {**EVEN},
}  # fmt: skip
LENGTHS = (1, 2, 17, 64, 7, 300, 33)


def save(folder: Path, shape: str, head: str = "Model", **changes: Any) -> Any:
    """A random checkpoint in which distance matters."""
    torch.manual_seed(0)
    family = "Deberta" if shape in FIRST else "DebertaV2"
    config = getattr(transformers, f"{family}Config")(**{**COMMON, **(SHAPES | FIRST)[shape], **changes})
    model = getattr(transformers, f"{family}{head}")(config).eval()
    add_noise(model)
    if config.relative_attention:
        with torch.no_grad():
            model.base_model.encoder.rel_embeddings.weight.normal_()
    model.save_pretrained(folder)
    return model


def items_of(shape: str, lengths: tuple[int, ...] = LENGTHS) -> list[Item]:
    items = make_items(lengths)
    return items if "type_vocab_size" in (SHAPES | FIRST)[shape] else untyped(items)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [*SHAPES, *FIRST])
def test_equals_transformers(shape: str, backend: str, tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, shape), items_of(shape), BACKENDS[backend]()
    ours = hidden_states(load(tmp_path, ops), ops, items)
    assert_as_exact(theirs, ours, items)


@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.parametrize("shape", ["v3", "own projections", "p2c", "v1", "v1, odd"])
def test_packed_equals_alone_in_any_order_bit_for_bit(shape: str, backend: str, tmp_path: Path) -> None:
    save(tmp_path, shape)
    ops, items = BACKENDS[backend](), items_of(shape)
    model = load(tmp_path, ops)
    assert_alone_and_in_any_order(model, ops, items)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", ["v3", "v1"])
def test_wanted_rows_and_every_layer(shape: str, backend: str, tmp_path: Path) -> None:
    theirs, ops = save(tmp_path, shape), BACKENDS[backend]()
    items = items_of(shape, (5, 1, 33, 17, 2))
    model = load(tmp_path, ops)
    every = last_states(model, ops, items, "all")
    assert_same(backend, last_states(model, ops, items, "first"), np.stack([rows[0] for rows in every]))
    assert_same(backend, last_states(model, ops, items, "last"), np.stack([rows[-1] for rows in every]))
    assert max(map(worst, layers(model, ops, items), every_layer(theirs, items))) <= 1e-5


@pytest.mark.parametrize("head", ["ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"])
@pytest.mark.parametrize(("shape", "model_type"), [("v3", "deberta-v2"), ("v1", "deberta")])
def test_prefixed_checkpoints_load_and_heads_are_ignored(
    shape: str, model_type: str, head: str, tmp_path: Path
) -> None:
    theirs, items, ops = save(tmp_path, shape, head), items_of(shape), BACKENDS["numpy"]()
    assert worst(hidden_states(load(tmp_path, ops), ops, items), reference(theirs.base_model, items)) <= 1e-5
    architecture = {"architectures": read_json(tmp_path, "config.json")["architectures"]}
    assert find_model_type("auto", architecture) == model_type


def test_what_the_authors_files_have_beside(tmp_path: Path) -> None:
    """microsoft/deberta-v3-base has heads by other names, and a table of positions that is not read."""
    from safetensors.numpy import load_file, save_file

    theirs, items, ops = save(tmp_path, "v3"), items_of("v3"), BACKENDS["numpy"]()
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {f"deberta.{name}": values for name, values in tensors.items()}
    tensors["deberta.embeddings.position_embeddings.weight"] = np.zeros((64, 64), np.float32)
    tensors["lm_predictions.lm_head.bias"] = tensors["mask_predictions.dense.bias"] = np.zeros(3, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    model = load(tmp_path, ops)
    assert worst(hidden_states(model, ops, items), reference(theirs, items)) <= 1e-5
    assert (model.max_positions, model.learnt_positions) == (64, False)


def test_a_reranker_with_its_own_tokenizer(tmp_path: Path) -> None:
    """Of mxbai-rerank v1: pieces of words, both texts of a pair in one sequence, each of a type of its own."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    pieces = [*((token, 0.0) for token in special), ("▁", -9.0), *((f"▁{word}", -1.0) for word in WORDS)]
    save(tmp_path, "v3, odd", "ForSequenceClassification", vocab_size=len(pieces), num_labels=1)
    transformers.DebertaV2Tokenizer(vocab=pieces, model_max_length=40).save_pretrained(tmp_path)
    theirs = sentence_transformers.CrossEncoder(str(tmp_path), device="cpu")
    documents = ["", "the weather is lovely today", "he drove to stadium " * 20, "unknown words"]
    expected = theirs.predict([("it is sunny", text) for text in documents], activation_fn=torch.nn.Identity())
    with Model(str(tmp_path)) as model:
        assert (model.info.model_type, model.info.max_seq_len) == ("deberta-v2", 40)
        ranked = model.rerank("it is sunny", documents, activation="none")
    ours = [entry.score for entry in sorted(ranked, key=lambda entry: entry.index)]
    assert np.abs(np.array(ours) - expected).max() <= 1e-5


def test_a_checkpoint_in_8_bits(tmp_path: Path) -> None:
    """Vectors of distances go through the weights as they are stored."""
    ops, folder = BACKENDS["numpy"](), tmp_path / "whole"
    save(folder, "v3")
    source = open_tensors(folder)
    weights = [name for name in source.tensors if name.endswith(("query_proj.weight", "key_proj.weight"))]
    values = [name for name in source.tensors if name.endswith("value_proj.weight")]
    write_weights(source, [*weights, *values], tmp_path / "model.safetensors", lambda _: None)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    stored, whole = (load(place, ops).layers[1].relative for place in (tmp_path, folder))
    for ours, exact in zip(stored.tables, whole.tables, strict=True):
        assert 0 < np.abs(ours - exact).max() <= 0.02 * np.abs(exact).max()


def test_buckets_are_those_of_transformers() -> None:
    for buckets, most in ((256, 512), (256, 4096), (16, 64), (6, 100), (4, 4), (32, 20), (64, 128), (320, 1024)):
        places = torch.arange(-9 * most, 9 * most + 1)
        expected = modeling.make_log_bucket_position(places, buckets, most).long() + buckets
        ours = log_buckets(buckets, most)
        assert np.array_equal(
            ours[np.clip(places.numpy(), -most, most) + most], expected.clamp(0, 2 * buckets - 1).numpy()
        )
    assert log_buckets(0, 3).tolist() == [0, 1, 2, 3, 4, 5, 5]


def test_config_defaults_are_those_of_transformers() -> None:
    theirs = transformers.DebertaV2Config()
    needed = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    config = DebertaConfig.from_hf({key: getattr(theirs, key) for key in needed})
    names = ("type_vocab_size", "layer_norm_eps", "position_biased_input", "relative_attention")
    assert [getattr(config, name) for name in names] == [getattr(theirs, name) for name in names]
    assert (config.pos_att_type, config.max_relative_positions, config.norm_rel_ebd) == ((), 512, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv_kernel_size": 3}, "conv_kernel_size 3: a convolution .* is not supported"),
        ({"attention_head_size": 8}, "attention_head_size 8; only hidden_size / num_attention_heads"),
        ({"pos_att_type": "p2c|p2p"}, r"pos_att_type 'p2c\|p2p'; only c2p, p2c are supported"),
        ({"norm_rel_ebd": "batch_norm"}, "norm_rel_ebd 'batch_norm'; only layer_norm, none are supported"),
        ({"position_buckets": 7}, "position_buckets 7, .* an even number of buckets from 4 on"),
        ({"max_relative_positions": 9}, "max_relative_positions 9; .* two over half of it"),
        ({"hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu' is not one of gelu"),
        ({"intermediate_size": None}, "intermediate_size is missing"),
    ],
)
def test_config_refusals(change: dict[str, Any], message: str) -> None:
    hf = {**COMMON, **SHAPES["v3"], **change}
    with pytest.raises(CheckpointError, match=message):
        DebertaConfig.from_hf({key: value for key, value in hf.items() if value is not None})
