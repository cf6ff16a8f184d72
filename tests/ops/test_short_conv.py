"""The gated short convolution against torch.nn.functional.conv1d of each sequence alone, and beside NumpyOps."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import Batch, FloatArray
from rtp_llm.ops.numpy_ops import NumpyOps
from tests.ops.data import assert_as_exact, batch_of, normal
from tests.ops.test_numpy_ops import tensors
from tests.ops.test_shared_prefix import backend as backend

torch = pytest.importorskip("torch")

LENGTHS = (3, 1, 37, 2, 5)
SEEN = np.array((2, 1, 30, 2, 1), np.int32)
# Tokens read, columns.
SHAPES = [(3, 33), (1, 5), (2, 17), (7, 8)]


def batch(*, masked: bool) -> Batch:
    return replace(batch_of(LENGTHS), seen_lens=SEEN if masked else None)


def compute(ops: Any, x: FloatArray, weight: FloatArray, batch: Batch, **options: bool) -> FloatArray:
    there = ops.upload(batch)
    return np.asarray(ops.to_numpy(ops.short_conv(ops.vector(x), ops.vector(weight), there, **options)))


def alone(x: Any, weight: Any, causal: bool, seen: int) -> Any:
    """One sequence by torch's convolution, as transformers and the authors of LFM2.5 call it."""
    before, after, values = x.T.chunk(3)
    inputs, size = (before * values).clone(), len(weight)
    inputs[:, seen:] = 0
    padding = size - 1 if causal else size // 2
    y = torch.nn.functional.conv1d(inputs[None], weight.T[:, None], padding=padding, groups=len(inputs))
    y = (after * y[0, :, : len(x)]).T
    y[seen:] = 0
    return y


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_backend_is_as_exact_as_torch(backend: Any, shape: tuple[int, int], causal: bool, masked: bool) -> None:
    kernel, size = shape
    x, weight = normal(sum(LENGTHS), 3 * size), normal(kernel, size)
    seen = SEEN.tolist() if masked else LENGTHS

    def reference(x: Any, weight: Any) -> Any:
        parts = zip(x.split(list(LENGTHS)), seen, strict=True)
        return torch.cat([alone(part, weight, causal, count) for part, count in parts]).numpy()

    results = [reference(*each) for each in zip(*tensors(x, weight), strict=True)]
    options = {"causal": causal, "masked": masked}
    assert_as_exact(compute(backend, x, weight, batch(masked=masked), **options), *results)
    assert_as_exact(compute(NumpyOps(), x, weight, batch(masked=masked), **options), *results)


@pytest.mark.parametrize("causal", [False, True])
def test_what_is_not_seen_is_read_unless_it_is_masked(backend: Any, causal: bool) -> None:
    x, weight = normal(sum(LENGTHS), 24), normal(3, 8)
    read = compute(backend, x, weight, batch(masked=True), causal=causal)
    np.testing.assert_array_equal(read, compute(backend, x, weight, batch(masked=False), causal=causal))


@pytest.mark.parametrize("causal", [False, True])
def test_a_sequence_does_not_look_at_its_neighbours(backend: Any, causal: bool) -> None:
    x, weight, ends = normal(sum(LENGTHS), 24), normal(5, 8), np.cumsum(LENGTHS)
    together = np.split(compute(backend, x, weight, batch(masked=False), causal=causal), ends[:-1])
    for rows, own in zip(together, np.split(x, ends[:-1]), strict=True):
        np.testing.assert_array_equal(rows, compute(backend, own, weight, batch_of((len(own),)), causal=causal))
