"""Linear layers of the compiled kernels on numbers at the ends of fp32's range, in every instruction set."""

import numpy as np
import pytest

from rtp_llm.core import FloatArray
from rtp_llm.ops.native_ops import NativeOps
from tests.ops.data import normal

LARGEST = np.finfo(np.float32).max


def linear(ops: NativeOps, x: FloatArray, weight: FloatArray) -> FloatArray:
    return ops.to_numpy(ops.linear(ops.vector(x), ops.matrix(weight)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows", [1, 20, 50])
def test_what_is_not_finite_is_seen_in_its_row_alone(ops: NativeOps, rows: int, bad: float) -> None:
    x, weight = normal(rows, 70), normal(40, 70)
    expected = linear(ops, x, weight)
    x[rows // 2, 33] = bad
    y = linear(ops, x, weight)
    assert not np.isfinite(y[rows // 2]).any()
    np.testing.assert_array_equal(np.delete(y, rows // 2, axis=0), np.delete(expected, rows // 2, axis=0))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_seen_in_its_column(ops: NativeOps, bad: float) -> None:
    weight = normal(40, 70)
    weight[5, 3] = bad
    y = linear(ops, normal(9, 70), weight)
    assert not np.isfinite(y[:, 5]).any() and np.isfinite(np.delete(y, 5, axis=1)).all()


@pytest.mark.parametrize("size", [1e20, 3e38, 3.3895e38, 3.3961775e38, LARGEST])
@pytest.mark.parametrize("k", [1, 40])
def test_the_largest_numbers_give_what_fp32_gives(ops: NativeOps, size: float, k: int) -> None:
    x, weight = np.zeros((18, k), np.float32), normal(33, k) / np.float32(4)
    x[:, -1] = np.float32(size) * np.sign(normal(18))
    exact = x.astype(np.float64) @ weight.T.astype(np.float64)
    assert np.abs(exact).max() < LARGEST
    np.testing.assert_allclose(linear(ops, x, weight), exact, rtol=3e-7)
    np.testing.assert_allclose(linear(ops, weight, x), exact.T, rtol=3e-7)


# On AMX a bf16 part below 2^-126 counts as zero: the low part of numbers below 2^-110, the middle below 2^-118.
@pytest.mark.parametrize(("size", "error"), [(1e-10, 3e-7), (1e-30, 3e-7), (1e-33, 2e-5), (1e-36, 1e-2), (1e-40, 1.0)])
def test_the_smallest_numbers_lose_bits_gradually(ops: NativeOps, size: float, error: float) -> None:
    x, weight = normal(18, 40) * np.float32(size), normal(33, 40)
    exact = x.astype(np.float64) @ weight.T.astype(np.float64)
    allowed = error if ops.instruction_set == "amx" else min(error, 1e-5)
    np.testing.assert_allclose(linear(ops, x, weight), exact, rtol=0, atol=allowed * np.abs(exact).max())


def test_numbers_of_all_sizes_in_one_sum(ops: NativeOps) -> None:
    x, weight = normal(20, 300) * np.exp2(np.linspace(-40, 40, 300, dtype=np.float32)), normal(33, 300)
    exact = x.astype(np.float64) @ weight.T.astype(np.float64)
    np.testing.assert_allclose(linear(ops, x, weight), exact, rtol=0, atol=3e-7 * np.abs(exact).max())
