"""What the tests of every architecture share: a random checkpoint, its hidden states, the distance between two."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.checkpoint import open_tensors, read_json
from rtp_llm.core import Item, pack
from rtp_llm.models import Model, find_model_type, load_model
from rtp_llm.ops import Ops
from tests.ops import data


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


def saved(folder: Path, kind: Any, config: Any, **options: Any) -> Any:
    """A random checkpoint, whose norms and biases are not trivial -> transformers' model of it, of this class.

    options  of save_pretrained
    """
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = kind(config).eval()
    add_noise(model)
    model.save_pretrained(folder, **options)
    return model


def untyped(items: list[Item]) -> list[Item]:
    """Without token types."""
    return [Item(item.input_ids, item.index) for item in items]


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


def reference(model: Any, items: list[Item], **options: Any) -> list[Any]:
    """transformers' last hidden states of each item alone, with its token types where it has them.

    The shortest first: a dynamic rope remembers the longest sequence that it has seen.
    """
    torch = pytest.importorskip("torch")
    rows = {}
    with torch.no_grad():
        for item in sorted(items, key=lambda item: item.num_tokens):
            inputs = {"input_ids": torch.from_numpy(item.input_ids).long()[None]}
            if item.token_type_ids is not None:
                inputs["token_type_ids"] = torch.from_numpy(item.token_type_ids).long()[None]
            rows[item.index] = model(**inputs, **options).last_hidden_state[0].numpy()
    return [rows[item.index] for item in items]


def assert_as_exact(theirs: Any, ours: list[Any], items: list[Item]) -> None:
    """Rows of each item: their error against fp64 is at most twice that of transformers in fp32."""
    in_fp32 = reference(theirs, items)
    truth = reference(theirs.double(), items)
    assert worst(ours, truth) <= 2 * worst(in_fp32, truth)


def assert_decodes_as(theirs: Any, ours: list[Any], items: list[Item]) -> None:
    """Rows of each item of a decoder: near transformers' in fp32, and little further than these from fp64."""
    in_fp32 = reference(theirs, untyped(items), use_cache=False)
    assert worst(ours, in_fp32) <= 1e-5
    truth = reference(theirs.double(), untyped(items), use_cache=False)
    for rows, near, far in zip(ours, in_fp32, truth, strict=True):
        data.assert_as_exact(rows, near, far.astype(np.float64), floor=1e-6)


def assert_alone_and_in_any_order(model: Model, ops: Ops, items: list[Item]) -> None:
    """Each item has the same bits among the others, in whatever order, as alone."""
    together = hidden_states(model, ops, items)
    backwards = hidden_states(model, ops, items[::-1])[::-1]
    for item, row, other in zip(items, together, backwards, strict=True):
        assert np.array_equal(row, other)
        assert np.array_equal(row, hidden_states(model, ops, [item])[0])


def worst(left: list[Any], right: list[Any]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(left, right, strict=True))
