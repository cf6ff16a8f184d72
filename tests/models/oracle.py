"""What the tests of every architecture share: a random checkpoint, its hidden states, the distance between two."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.checkpoint import open_tensors, read_json
from rtp_llm.core import Item, pack
from rtp_llm.models import Model, find_model_type, load_model
from rtp_llm.ops import Ops


def load(folder: Path, ops: Ops, model_type: str = "auto") -> Model:
    hf = read_json(folder, "config.json")
    return load_model(find_model_type(model_type, hf), hf, open_tensors(folder), ops)


def add_noise(model: Any) -> None:
    """So that norms and biases are not trivial."""
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.dim() == 1 else 0.02))
            assert parameter.isfinite().all(), name


def make_items(lengths: tuple[int, ...], vocab: int = 101) -> list[Item]:
    random = np.random.default_rng(1)
    return [
        Item(random.integers(0, vocab, n).astype(np.int32), i, random.integers(0, 2, n).astype(np.int32))
        for i, n in enumerate(lengths)
    ]


def hidden_states(model: Model, ops: Ops, items: list[Item]) -> list[Any]:
    """Rows of each item, computed together."""
    batch = model.prepare(pack(items))
    packed = ops.to_numpy(model(ops, ops.upload(batch)))
    return np.split(packed, batch.cu_seqlens[1:-1])


def worst(left: list[Any], right: list[Any]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(left, right, strict=True))
