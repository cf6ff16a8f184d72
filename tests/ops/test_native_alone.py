"""The compiled kernels against NumpyOps in fp64: what needs no torch, and so runs in .ci/aarch64 too."""

from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from rtp_llm.core import FloatArray
from rtp_llm.ops import Norm, PoolMode
from rtp_llm.ops.native_ops import NativeOps
from rtp_llm.ops.numpy_ops import NumpyOps
from rtp_llm.ops.self_check import failing_ops
from rtp_llm.ops.weight_only import BITS
from tests.ops.data import batch_of, encoder, linear, normal

HEADS = [(3, 3, 16), (4, 2, 24), (2, 2, 13), (4, 1, 128)]
numpy_ops: Any = NumpyOps()


def assert_near(ours: FloatArray, exact: NDArray[np.float64]) -> None:
    """Within 1e-6 of the largest: twice torch's own error on these. numpy's in fp32 depends on the machine's BLAS."""
    assert ours.shape == exact.shape
    assert np.abs(ours - exact).max() <= 1e-6 * np.abs(exact).max(initial=1.0)


def narrowed(weight: FloatArray) -> FloatArray:
    """Its numbers cut to bf16."""
    cut: FloatArray = (weight.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return cut


@pytest.mark.parametrize("is_bf16", [False, True])
@pytest.mark.parametrize("m", [1, 7, 12, 13, 25, 200])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (33, 65), (47, 1100), (40, 1024)])
def test_linear(ops: NativeOps, n: int, k: int, m: int, is_bf16: bool) -> None:
    x, weight = normal(m, k), normal(n, k)
    weight = narrowed(weight) if is_bf16 else weight
    exact = x.astype(np.float64) @ weight.T.astype(np.float64)
    assert_near(linear(ops, x, weight), exact)


@pytest.mark.parametrize("quantization", ["none", *BITS])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_rows_that_are_whole_pages_apart(ops: NativeOps, quantization: Any, num_threads: int) -> None:
    """A thread's copy of them is of this product and these rows: others of the same sizes follow at once."""
    fork = ops.fork(quantization)
    weight, inputs = fork.matrix(normal(700, 1024)), [fork.vector(normal(400, 1024, seed=seed)) for seed in range(3)]
    fork.num_threads = num_threads
    together = [fork.to_numpy(y) for y in [fork.linear(x, weight) for x in inputs]]
    for seed, products in enumerate(together):
        rows = normal(400, 1024, seed=seed)[[0, 191, 192, 399]]
        alone = [fork.to_numpy(fork.linear(fork.vector(row[None]), weight))[0] for row in rows]
        np.testing.assert_array_equal(products[[0, 191, 192, 399]], alone)


@pytest.mark.parametrize("activation", [None, "gelu", "gelu_tanh", "relu", "silu", "tanh"])
def test_bias_activation_and_residual(ops: NativeOps, activation: str | None) -> None:
    arrays = normal(70, 24), normal(53, 24), normal(53), normal(70, 53)
    x, weight, bias, residual = (array.astype(np.float64) for array in arrays)
    exact = numpy_ops.linear(x, weight, bias, activation, residual)
    assert_near(linear(ops, *arrays[:3], activation, arrays[3]), exact)


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("lengths", [[1], [13, 70, 5]])
def test_attention(
    ops: NativeOps, lengths: list[int], heads: tuple[int, int, int], causal: bool, window: int | None
) -> None:
    num_heads, num_kv_heads, head_dim = heads
    qkv, batch = normal(sum(lengths), (num_heads + 2 * num_kv_heads) * head_dim), batch_of(lengths)
    shape: dict[str, Any] = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    shape |= {"scale": head_dim**-0.5, "causal": causal, "window": window}
    exact = numpy_ops.attention(qkv.astype(np.float64), batch, **shape)
    assert_near(ops.to_numpy(ops.attention(ops.vector(qkv), batch, **shape)), exact)


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("size", [1, 5, 100, 384])
def test_norm(ops: NativeOps, size: int, kind: Any) -> None:
    x, weight, bias = 3 * normal(7, size) + 1, normal(size), None if kind == "rms" else normal(size, seed=1)
    exact = numpy_ops.norm(x, Norm(weight, bias, 1e-6, kind)).astype(np.float64)
    norm = Norm(ops.vector(weight), None if bias is None else ops.vector(bias), 1e-6, kind)
    assert_near(ops.to_numpy(ops.norm(ops.vector(x), norm)), exact)


@pytest.mark.parametrize("mode", get_args(PoolMode))
def test_pool(ops: NativeOps, mode: PoolMode) -> None:
    batch, x = batch_of([13, 1, 70, 3], [4, 1, 0, 3]), normal(87, 100)
    for skip_prompt in (False, True):
        y = ops.to_numpy(ops.pool(ops.vector(x), batch, mode, skip_prompt=skip_prompt))
        expected = numpy_ops.pool(x, batch, mode, skip_prompt=skip_prompt)
        np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-7)


def test_a_layer_of_every_op(ops: NativeOps) -> None:
    batch = batch_of([7, 1, 40, 300])
    expected = encoder(ops, batch)
    np.testing.assert_allclose(expected, encoder(numpy_ops, batch), atol=1e-5)
    for ops.num_threads in (2, 3):
        np.testing.assert_array_equal(encoder(ops, batch), expected)
        np.testing.assert_array_equal(encoder(ops, batch_of([300, 40])), expected[[3, 2]])


def test_the_check_at_start_passes(ops: NativeOps) -> None:
    assert not failing_ops(ops, *(ops.fork(quantization) for quantization in ("int8", *BITS)))
