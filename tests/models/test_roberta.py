"""Roberta against transformers' RobertaModel, XLMRobertaModel and CamembertModel: positions, prefixes, heads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import Item
from rtp_llm.errors import InvalidRequest
from tests.backends import BACKENDS
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

LENGTHS = (1, 2, 17, 63, 7, 40)
ODD = {"hidden_size": 60, "num_attention_heads": 5, "intermediate_size": 77}
CONFIGS = {"Roberta": "RobertaConfig", "XLMRoberta": "XLMRobertaConfig", "Camembert": "CamembertConfig"}


def save(folder: Path, family: str, head: str = "Model", **changes: Any) -> Any:
    """A random checkpoint with positions for 63 tokens and one token type."""
    shape = {"num_hidden_layers": 2, "vocab_size": 101, "max_position_embeddings": 65, "type_vocab_size": 1, **ODD}
    config = getattr(transformers, CONFIGS[family])(**{**shape, **changes})
    return saved(folder, getattr(transformers, family + head), config)


def reference(model: Any, items: list[Item]) -> list[Any]:
    with torch.no_grad():
        ids = [torch.from_numpy(item.input_ids).long()[None] for item in items]
        return [model(input_ids=row, attention_mask=torch.ones_like(row)).last_hidden_state[0].numpy() for row in ids]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", CONFIGS)
def test_equals_transformers(family: str, backend: str, tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, family), untyped(make_items(LENGTHS)), BACKENDS[backend]()
    assert worst(hidden_states(load(tmp_path, ops), ops, items), reference(theirs, items)) <= 1e-5


@pytest.mark.parametrize("pad", [0, 1, 3])
def test_padding_tokens_in_a_text_have_the_position_of_padding(pad: int, tmp_path: Path) -> None:
    theirs, ops = save(tmp_path, "Roberta", pad_token_id=pad), BACKENDS["numpy"]()
    rows = ([pad], [5, pad, pad, 7, 9], [pad, 8, 2, pad], [9] * 20)
    items = [Item(np.array(row, np.int32), index) for index, row in enumerate(rows)]
    model = load(tmp_path, ops)
    assert model.max_positions == 65 - pad - 1
    assert worst(hidden_states(model, ops, items), reference(theirs, items)) <= 1e-5


@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_packed_equals_alone_in_any_order_bit_for_bit(backend: str, tmp_path: Path) -> None:
    save(tmp_path, "XLMRoberta")
    ops = BACKENDS[backend]()
    model, items = load(tmp_path, ops), untyped(make_items(LENGTHS))
    assert_alone_and_in_any_order(model, ops, items)


@pytest.mark.parametrize("head", ["ForMaskedLM", "ForSequenceClassification"])
@pytest.mark.parametrize("family", CONFIGS)
def test_prefixed_checkpoints_load_and_heads_are_ignored(family: str, head: str, tmp_path: Path) -> None:
    theirs, items, ops = save(tmp_path, family, head), untyped(make_items(LENGTHS)), BACKENDS["numpy"]()
    ours = hidden_states(load(tmp_path, ops, "roberta"), ops, items)
    assert worst(ours, reference(theirs.roberta, items)) <= 1e-5


def test_a_second_token_type_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "Roberta")
    ops = BACKENDS["native"]()
    with pytest.raises(InvalidRequest, match="id 1 is outside the model's table of 1 rows"):
        hidden_states(load(tmp_path, ops), ops, [Item(np.array([5], np.int32), 0, np.array([1], np.int32))])
