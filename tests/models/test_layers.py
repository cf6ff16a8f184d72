"""The hidden states of every layer, against transformers' `output_hidden_states`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import Item, pack
from rtp_llm.models import Model
from rtp_llm.ops import Ops, Tensor
from tests.backends import BACKENDS
from tests.models import (
    test_bert,
    test_encoders,
    test_gemma,
    test_gte,
    test_modernbert,
    test_nomic_bert,
    test_qwen,
    test_roberta,
)
from tests.models.oracle import hidden_states, load, make_items, worst

torch = pytest.importorskip("torch")

FAMILIES: dict[str, Any] = {
    "bert": test_bert.save_bert,
    "xlm_roberta": lambda folder, **shape: test_roberta.save(folder, "XLMRoberta", **shape),
    "gte": test_gte.save,
    "nomic_bert": test_nomic_bert.save,
    "modernbert": test_modernbert.save,
    **{
        family: lambda folder, family=family, **_: test_encoders.save(folder, family)
        for family in ("distilbert", "electra, narrow tables", "mpnet")
    },
    "qwen2": lambda folder, **shape: test_qwen.save(folder, "Qwen2", **shape),
    "qwen3": lambda folder, **shape: test_qwen.save(folder, "Qwen3", **shape),
    "gemma3": lambda folder, **shape: test_gemma.save(folder, **shape),
}
LENGTHS = (1, 17, 40, 2)


def layers(model: Model, ops: Ops, items: list[Item]) -> list[list[Any]]:
    """Of each layer the rows of each item, the embeddings first."""
    batch = model.prepare(pack(items))
    kept: list[Tensor] = []
    kept.append(model(ops, ops.upload(batch), lambda number, states: kept.append(states)))
    return [np.split(ops.to_numpy(states), batch.cu_seqlens[1:-1]) for states in kept]


def reference(model: Any, items: list[Item]) -> list[list[Any]]:
    by_item = []
    with torch.no_grad():
        for item in items:
            output = model(input_ids=torch.from_numpy(item.input_ids).long()[None], output_hidden_states=True)
            by_item.append([states[0].numpy() for states in output.hidden_states])
    return [list(rows) for rows in zip(*by_item, strict=True)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_equals_transformers(family: str, backend: str, tmp_path: Path) -> None:
    theirs, items, ops = FAMILIES[family](tmp_path, num_hidden_layers=3), make_items(LENGTHS), BACKENDS[backend]()
    for item in items:
        item.token_type_ids = None
    model = load(tmp_path, ops)
    ours, expected = layers(model, ops, items), reference(theirs, items)
    assert len(ours) == len(expected) == len(model.layers) + 1
    assert max(map(worst, ours, expected)) <= 1e-5
    # Listening changes nothing.
    assert all(map(np.array_equal, ours[-1], hidden_states(model, ops, items)))
