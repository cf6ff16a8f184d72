"""JinaBERT against its oracle in plain torch: both kinds, numbers of heads that are no power of two, long texts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.errors import CheckpointError
from rtp_llm.models import find_model_type
from rtp_llm.models.bert import Bert
from rtp_llm.models.distance import alibi_slopes
from rtp_llm.models.jina_bert import JinaBertConfig
from rtp_llm.ops.native_ops import NativeOps
from tests.backends import BACKENDS
from tests.models.jina_bert import PLAIN, paper_slopes, save
from tests.models.oracle import (
    assert_alone_and_in_any_order,
    assert_as_exact,
    hidden_states,
    load,
    make_items,
    reference,
    worst,
)

LENGTHS = (1, 2, 17, 64, 7, 90)
ODD = {"hidden_size": 60, "num_attention_heads": 6, "intermediate_size": 77, "num_hidden_layers": 3}
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "odd": ODD,
    "relu": {"feed_forward_type": "reglu", "layer_norm_eps": 1e-3},
    "one head": {"hidden_size": 40, "num_attention_heads": 1, "num_hidden_layers": 1, "type_vocab_size": 5},
    "twelve heads": {"hidden_size": 96, "num_attention_heads": 12},
    "normed": {"normed": True},
    "normed, odd": {"normed": True, **ODD},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_oracle(shape: str, backend: str, tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, **SHAPES[shape]), make_items((*LENGTHS, 290)), BACKENDS[backend]()
    assert_as_exact(theirs, hidden_states(load(tmp_path, ops), ops, items), items)


@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.parametrize("shape", ["odd", "normed, odd"])
def test_packed_equals_alone_in_any_order_bit_for_bit(shape: str, backend: str, tmp_path: Path) -> None:
    save(tmp_path, **SHAPES[shape])
    ops = BACKENDS[backend]()
    assert_alone_and_in_any_order(load(tmp_path, ops), ops, make_items((*LENGTHS, 200)))


@pytest.mark.parametrize("normed", [False, True])
def test_prefixed_checkpoints_load_and_heads_are_ignored(normed: bool, tmp_path: Path) -> None:
    theirs, ops, items = save(tmp_path, normed, "bert."), BACKENDS["numpy"](), make_items(LENGTHS)
    assert worst(hidden_states(load(tmp_path, ops), ops, items), reference(theirs, items)) <= 1e-5


def test_texts_of_8192_tokens(tmp_path: Path) -> None:
    theirs = save(tmp_path, num_hidden_layers=1, num_attention_heads=1, max_position_embeddings=8192)
    ops, items = NativeOps(), make_items((8192, 5000, 3))
    model = load(tmp_path, ops)
    assert (model.max_positions, model.learnt_positions) == (8192, True)
    assert worst(hidden_states(model, ops, items), reference(theirs, items)) <= 1e-5


@pytest.mark.parametrize("normed", [False, True])
def test_in_8_bits_it_stays_near(normed: bool, tmp_path: Path) -> None:
    save(tmp_path, normed)
    ops, items = NativeOps(), make_items(LENGTHS)
    exact, near = (np.concatenate(hidden_states(load(tmp_path, some), ops, items)) for some in (ops, ops.fork("int8")))
    cosines = (exact * near).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(near, axis=1)
    assert cosines.min() > 0.995
    matrices = load(tmp_path, ops).matrices
    assert len(matrices) == 2 * (6 if normed else 4)
    assert matrices[1, "up"] == (f"encoder.layer.1.mlp.{'up_gated_layer' if normed else 'gated_layers'}.weight",)


@pytest.mark.parametrize("num_heads", [1, 2, 3, 6, 8, 12, 16, 20])
def test_slopes_are_those_of_the_paper(num_heads: int) -> None:
    np.testing.assert_allclose(alibi_slopes(num_heads), paper_slopes(num_heads), rtol=1e-7)


def test_slopes_of_the_first_rerankers(tmp_path: Path) -> None:
    """Their folder has code of its own, by which the last four of twelve heads have half of the slope."""
    slopes = paper_slopes(8) + [slope / 2 for slope in paper_slopes(12)[8:]]
    changes: dict[str, Any] = {
        "architectures": ["JinaBertForSequenceClassification"], "hidden_size": 96, "num_attention_heads": 12,
        "auto_map": {"AutoModelForSequenceClassification": "modeling_bert.JinaBertForSequenceClassification"},
    }  # fmt: skip
    theirs, ops, items = save(tmp_path, slopes=slopes, **changes), BACKENDS["numpy"](), make_items(LENGTHS)
    assert worst(hidden_states(load(tmp_path, ops), ops, items), reference(theirs, items)) <= 1e-5


def test_it_is_told_from_bert() -> None:
    assert find_model_type("auto", PLAIN) == find_model_type("bert", PLAIN) == "jina_bert"
    unnamed = {key: value for key, value in PLAIN.items() if key not in ("model_type", "position_embedding_type")}
    assert find_model_type("auto", unnamed) == "jina_bert"
    with pytest.raises(CheckpointError, match="position_embedding_type 'alibi'; only 'absolute'"):
        Bert.read_config(PLAIN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position_embedding_type": "absolute"}, "position_embedding_type 'absolute'; of JinaBERT only 'alibi'"),
        ({"is_decoder": True}, "is_decoder True; of JinaBERT only False"),
        ({"feed_forward_type": "original"}, "feed_forward_type 'original' is not one of geglu, reglu"),
        ({"feed_forward_type": None}, "feed_forward_type None is not one of geglu, reglu"),
        ({"num_attention_heads": 7}, "hidden_size 64 is not a multiple of num_attention_heads 7"),
    ],
)
def test_config_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        JinaBertConfig.from_hf({**PLAIN, **change})
