"""The last layer computes the wanted rows alone and a shared prefix is computed once: with the same bits."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import Item, Prefixes, Reads, pack
from rtp_llm.models import Model
from rtp_llm.ops import Ops
from tests.backends import BACKENDS
from tests.models.oracle import load, make_items, untyped
from tests.models.test_bert import save_bert
from tests.models.test_encoders import save as save_encoder
from tests.models.test_gemma import KINDS
from tests.models.test_gemma import save as save_gemma
from tests.models.test_gte import save as save_gte
from tests.models.test_modernbert import save as save_modernbert
from tests.models.test_nomic_bert import save as save_nomic_bert
from tests.models.test_qwen import save as save_qwen
from tests.models.test_roberta import save as save_roberta

pytest.importorskip("torch")

LENGTHS = (5, 1, 33, 17, 40, 2)
ENCODERS: dict[str, Callable[[Path], Any]] = {
    "Bert": save_bert,
    "Roberta": lambda folder: save_roberta(folder, "Roberta"),
    **{name: partial(save_encoder, family=name) for name in ("distilbert", "electra, narrow tables", "mpnet")},
    "Gte": save_gte,
    "NomicBert": save_nomic_bert,
    "ModernBert": save_modernbert,
}
DECODERS: dict[str, dict[str, Any]] = {
    "Qwen2": {},
    "Qwen3": {},
    "window": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 0},
    "yarn": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    "Mistral": {"sliding_window": 6},
    "Gemma3": {"sliding_window": 6, "layer_types": KINDS},
}


def save_decoder(folder: Path, family: str) -> None:
    if family == "Gemma3":
        save_gemma(folder, **DECODERS[family])
    else:
        save_qwen(folder, family if family in ("Qwen3", "Mistral") else "Qwen2", **DECODERS[family])


def last_states(model: Model, ops: Ops, items: list[Item], reads: Reads, *, share: bool = False) -> Any:
    """Each item's wanted row; computed in one batch."""
    batch = model.prepare(pack(items, reads, Prefixes.find(items, {}) if share else None))
    rows = ops.to_numpy(model(ops, ops.upload(batch)))
    if reads == "all":
        return np.split(rows, batch.cu_seqlens[1:-1])
    assert rows.shape == (len(items), model.hidden_size)
    return rows


def assert_same(backend: str, ours: Any, expected: Any) -> None:
    if backend == "torch":
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    else:
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", [*ENCODERS, *DECODERS])
def test_wanted_rows(family: str, backend: str, tmp_path: Path) -> None:
    if family in ENCODERS:
        ENCODERS[family](tmp_path)
    else:
        save_decoder(tmp_path, family)
    ops = BACKENDS[backend]()
    model = load(tmp_path, ops)
    items = untyped(make_items(LENGTHS, vocab=80))
    every = last_states(model, ops, items, "all")
    assert_same(backend, last_states(model, ops, items, "first"), np.stack([rows[0] for rows in every]))
    assert_same(backend, last_states(model, ops, items, "last"), np.stack([rows[-1] for rows in every]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", DECODERS)
def test_a_shared_prefix(family: str, backend: str, tmp_path: Path) -> None:
    save_decoder(tmp_path, family)
    ops = BACKENDS[backend]()
    model = load(tmp_path, ops)
    assert model.shares_prefixes
    items = make_items(LENGTHS, vocab=80)
    heads = [np.arange(20, dtype=np.int32), np.arange(9, dtype=np.int32)]
    for i, item in enumerate(items):
        head = heads[i % 2] if i < 5 else heads[0][:0]
        item.input_ids, item.token_type_ids = np.concatenate([head, item.input_ids]), None
        item.prefix = head.tobytes()
    alone = np.concatenate([last_states(model, ops, [item], "last") for item in items])
    assert pack(items, "last", Prefixes.find(items, {})).num_tokens == sum(LENGTHS) + 29
    assert_same(backend, last_states(model, ops, items, "last", share=True), alone)
    assert_same(backend, last_states(model, ops, items[::-1], "last", share=True), alone[::-1])


def test_what_depends_on_the_whole_is_not_shared(tmp_path: Path) -> None:
    ops = BACKENDS["numpy"]()
    save_qwen(tmp_path / "dynamic", "Qwen3", rope_parameters={"rope_type": "dynamic", "factor": 2.0})
    save_qwen(tmp_path / "both", "Qwen2", is_causal=False)
    assert not any(load(tmp_path / name, ops).shares_prefixes for name in ("dynamic", "both"))
