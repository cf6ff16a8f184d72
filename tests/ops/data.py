"""Inputs and the error bound that the tests of every backend share."""

import platform
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rtp_llm.core import Batch, FloatArray, Item, pack
from rtp_llm.ops import Norm, Ops
from rtp_llm.ops.native_library import INSTRUCTION_SETS, usable

# What setup.py builds on a machine of this kind.
IS_ARM = platform.machine().lower() == "aarch64"
BUILT = [name for name in INSTRUCTION_SETS if name == "generic" or name.startswith("neon") == IS_ARM]


def normal(*shape: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def batch_of(lengths: Sequence[int], prompt_lens: Sequence[int] | None = None) -> Batch:
    """Sequences of these lengths; the ids count upwards from the sequence's own length, so that they tell it apart."""
    prompts = prompt_lens or [0] * len(lengths)
    items = [
        Item(input_ids=np.arange(length, 2 * length, dtype=np.int32), index=i, prompt_length=prompt)
        for i, (length, prompt) in enumerate(zip(lengths, prompts, strict=True))
    ]
    return pack(items)


def encoder(ops: Ops, batch: Batch) -> FloatArray:
    """A layer of every op, [B, 72]: what a sequence's bits must not depend on is tried on this."""
    size, rng = 72, np.random.default_rng(1)

    def weights(*shape: int) -> FloatArray:
        return rng.standard_normal(shape, dtype=np.float32)

    batch = ops.upload(batch)
    norm = Norm(ops.vector(weights(size)), ops.vector(weights(size)), 1e-6)
    x = ops.embed([(ops.table(weights(2000, size)), batch.input_ids)], norm)
    qkv = ops.linear(x, ops.matrix(weights(3 * size, size)), ops.vector(weights(3 * size)))
    y = ops.attention(qkv, batch, num_heads=3, num_kv_heads=3, head_dim=24, scale=0.2)
    x = ops.linear(y, ops.matrix(weights(size, size)), residual=x)
    y = ops.linear(x, ops.matrix(weights(1100, size)), activation="gelu")
    x = ops.norm(ops.linear(y, ops.matrix(weights(size, 1100)), residual=x), norm)
    return ops.to_numpy(ops.l2_normalize(ops.pool(x, batch, "mean")))


def assert_as_exact(
    ours: NDArray[np.floating], reference: NDArray[np.floating], exact: NDArray[np.float64], floor: float = 3e-7
) -> None:
    """Error against float64 at most twice that of `reference` (torch in fp32), plus some units in the last place."""
    scale = np.abs(exact).max(initial=1.0)
    allowed = 2 * np.abs(reference - exact).max(initial=0.0) + floor * scale
    assert ours.shape == exact.shape
    assert np.abs(ours - exact).max(initial=0.0) <= allowed


def usable_or_skip(instruction_set: str) -> str:
    """The instruction set, where it was built and this CPU runs it."""
    if instruction_set not in usable():
        pytest.skip(f"{instruction_set}: not built, or not for this CPU: pip install -e .")
    return instruction_set


def linear(ops: Any, x: FloatArray, weight: FloatArray, *rest: Any) -> FloatArray:
    """The product with a weight as it is, by ops of any kind."""
    bias, activation, residual = (*rest, None, None, None)[:3]
    y = ops.linear(
        ops.vector(x), ops.matrix(weight), None if bias is None else ops.vector(bias), activation,
        None if residual is None else ops.vector(residual),
    )  # fmt: skip
    return np.asarray(ops.to_numpy(y))


def assert_rows_keep_their_bits(ops: Any, num_threads: int) -> None:
    """A linear layer's row, alone on one thread and in batches of several orders on so many, has the same bits."""
    x, weight, bias = normal(400, 200), normal(150, 200), normal(150)
    alone = np.concatenate([linear(ops, row[None], weight, bias, "gelu", row[None, :150]) for row in x[:30]])
    ops.num_threads = num_threads
    for order in (np.arange(400), np.arange(400)[::-1], np.r_[7, 3:11, 0]):
        together = linear(ops, x[order], weight, bias, "gelu", x[order][:, :150])
        chosen = order < 30
        np.testing.assert_array_equal(together[chosen], alone[order[chosen]])
