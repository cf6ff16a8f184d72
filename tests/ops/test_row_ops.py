"""`only` and `activate`: against NumpyOps, on every backend."""

from typing import Any

import numpy as np
import pytest

from rtp_llm.core import Item, pack
from rtp_llm.ops import ACTIVATIONS, Ops
from rtp_llm.ops.numpy_ops import NumpyOps
from tests.backends import BACKENDS
from tests.ops.data import normal


def computed(ops: Ops, size: int = 24) -> Any:
    """What a kernel has made, and the host has not."""
    return ops.norm(ops.vector(normal(37, size)), _norm(ops, size))


def _norm(ops: Ops, size: int) -> Any:
    from rtp_llm.ops import Norm

    return Norm(ops.vector(normal(size)), None, 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [1, 4, 33])
def test_only(size: int, backend: str) -> None:
    ops, items = BACKENDS[backend](), [Item(np.zeros(n, np.int32), n, adapter=n % 3 - 1) for n in (20, 1, 15, 1)]
    batch = ops.upload(pack(items))
    assert batch.adapter_numbers == (-1, 0, 1) and batch.adapters is not None
    groups = np.repeat([1, 0, -1, 0], [20, 1, 15, 1])
    for number in (-1, 0, 1, 2):
        x = ops.to_numpy(computed(ops, size))
        y = ops.to_numpy(ops.only(computed(ops, size), batch.adapters, number))
        np.testing.assert_array_equal(y, np.where((groups == number)[:, None], x, 0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_in_blocks(backend: str) -> None:
    ops = BACKENDS[backend]()
    batch = ops.upload(pack([Item(np.zeros(n, np.int32), n, adapter=n % 4 - 1) for n in (20, 2, 15)]))
    assert batch.adapters is not None
    groups = np.repeat([-1, 1, 2], [20, 2, 15])
    for number, blocks in ((0, 3), (1, 2), (0, 6)):
        own = np.repeat(groups[:, None] == np.arange(number, number + blocks), 24 // blocks, axis=1)
        y = ops.to_numpy(ops.only(computed(ops), batch.adapters, number, blocks))
        np.testing.assert_array_equal(y, np.where(own, ops.to_numpy(computed(ops)), 0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_hides_what_is_not_finite(backend: str) -> None:
    ops = BACKENDS[backend]()
    batch = ops.upload(pack([Item(np.zeros(1, np.int32), 0, adapter=0), Item(np.zeros(1, np.int32), 1)]))
    assert batch.adapters is not None
    x = ops.vector(np.array([[1.0, 2.0], [np.inf, np.nan]], np.float32))
    assert ops.to_numpy(ops.only(x, batch.adapters, 0)).tolist() == [[1.0, 2.0], [0.0, 0.0]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activate(activation: str, backend: str) -> None:
    ops, numpy_ops = BACKENDS[backend](), NumpyOps()
    expected = numpy_ops.activate(computed(numpy_ops), activation)
    np.testing.assert_allclose(ops.to_numpy(ops.activate(computed(ops), activation)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "silu", "tanh"])
@pytest.mark.parametrize("size", [31, 64])
def test_activate_has_the_bits_of_a_linear_layer(size: int, activation: str) -> None:
    ops = BACKENDS["native"]()
    weight, bias = ops.matrix(normal(size, 24) * 0.2), ops.vector(normal(size))
    apart = ops.to_numpy(ops.activate(ops.linear(computed(ops), weight, bias), activation))
    np.testing.assert_array_equal(apart, ops.to_numpy(ops.linear(computed(ops), weight, bias, activation)))


def test_activate_keeps_what_the_host_has() -> None:
    ops = BACKENDS["native"]()
    x = ops.vector(normal(3, 5))
    ops.to_numpy(ops.activate(x, "relu"))
    np.testing.assert_array_equal(ops.to_numpy(x), normal(3, 5))
