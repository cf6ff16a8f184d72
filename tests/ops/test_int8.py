"""Linear layers in 8 bits: the reference against fp32, the kernels against the reference, bit for bit."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rtp_llm.core import FloatArray, QuantizedWeight
from rtp_llm.ops.int8 import MAX_COLUMNS, fit_pairs, quantize_rows, quantize_weight
from rtp_llm.ops.native_library import Int8Weight, PackedWeight
from rtp_llm.ops.native_ops import NativeOps
from rtp_llm.ops.numpy_ops import NumpyOps
from rtp_llm.ops.self_check import numpy_like
from tests.ops.data import assert_rows_keep_their_bits, linear, normal


@pytest.fixture
def ops(instruction_set: str) -> NativeOps:
    return NativeOps(instruction_set=instruction_set).fork("int8")


@pytest.fixture
def numpy_ops(ops: NativeOps) -> NumpyOps:
    return numpy_like(ops)


@pytest.mark.parametrize("columns", [1, 3, 64, 385])
def test_rows_are_within_half_a_step(columns: int) -> None:
    x = normal(20, columns) * np.float32(3) + np.float32(1)
    rows = quantize_rows(x)
    error = np.abs(rows.scales * (rows.values.astype(np.float32) - rows.zeros) - x)
    # An end of the range is off by up to one step, since the zero is a whole number too.
    assert (error <= rows.scales * 1.001).all() and error.mean() <= 0.3 * rows.scales.mean()


@pytest.mark.parametrize("size", [-300, -20, 20, 300, 1e6])
def test_an_outlier_does_not_make_the_steps_of_its_row_coarser(size: float) -> None:
    x = np.clip(normal(4, 90), -2.5, 2.5)
    x[:, 17] = size
    rows = quantize_rows(x)
    assert (rows.scales * 254 <= max(5, 1.001 * (abs(size) + 2.5) / 128)).all()
    assert (np.abs(rows.scales * (rows.values[:, 17:18] - rows.zeros) - size) <= rows.scales).all()
    assert (np.abs(rows.values) <= 128 * 256).all()


def test_only_one_number_of_a_row_takes_more_than_8_bits() -> None:
    rng = np.random.default_rng(0)
    low, high = -rng.exponential(1, (5000, 1)), rng.exponential(1, (5000, 1))
    x = np.hstack([low, high, low, high, 100 * (high - low), rng.uniform(low, high, (5000, 9))]).astype(np.float32)
    values = np.sort(quantize_rows(x).values, axis=1)
    assert values.min() >= 0 and 254 <= values[:, -2].max() <= 255 and values[:, -1].min() > 255


def test_zero_stays_zero() -> None:
    x = normal(5, 40)
    x[:, ::3] = 0
    rows = quantize_rows(x)
    assert (rows.values[:, ::3] == rows.zeros).all()


@pytest.mark.parametrize("fitting_pairs", [False, True])
def test_weights_are_within_half_a_step(fitting_pairs: bool) -> None:
    weight = normal(30, 77)
    matrix = quantize_weight(weight, fitting_pairs)
    assert np.abs(matrix.scales[:, None] * matrix.values - weight).max() <= 0.501 * matrix.scales.max()
    if not fitting_pairs:
        assert np.abs(matrix.values).max() == 127


@given(rows=arrays(np.float32, (3, 7), elements=st.floats(-1e6, 1e6, width=32)))
def test_neighbours_fit_into_16_bits(rows: FloatArray) -> None:
    for weight in (quantize_weight(rows, fitting_pairs=True), fit_pairs(quantize_weight(rows))):
        values = weight.values.astype(np.int32)
        assert np.abs(values[:, 0:6:2] + values[:, 1::2]).max() * 255 < 2**15 and np.abs(values).max() <= 127


@pytest.mark.parametrize("m", [1, 2, 6, 7, 12, 13, 25, 70])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (16, 8), (33, 65), (47, 1100), (600, 96), (40, 1024), (32, 4099)])
def test_kernels_equal_the_reference(ops: NativeOps, numpy_ops: NumpyOps, m: int, n: int, k: int) -> None:
    x, weight = normal(m, k), normal(n, k)
    np.testing.assert_array_equal(linear(ops, x, weight), linear(numpy_ops, x, weight))


@pytest.mark.parametrize("place", [0, 1, 2, 3, 65, 68])
@pytest.mark.parametrize("outlier", [-1e4, -7, 12, 500])
def test_kernels_multiply_outliers_whole(ops: NativeOps, numpy_ops: NumpyOps, outlier: float, place: int) -> None:
    x, weight = normal(30, 69), normal(47, 69)
    x[::2, place] = outlier
    x[5, :] = outlier
    y = linear(ops, x, weight)
    np.testing.assert_array_equal(y, linear(numpy_ops, x, weight))
    np.testing.assert_allclose(np.delete(y, 5, axis=0), np.delete(x @ weight.T, 5, axis=0), atol=1 + abs(outlier) / 60)


@pytest.mark.parametrize("scale", [1e-38, 1e-25, 1e30])
def test_kernels_equal_the_reference_at_any_size(ops: NativeOps, numpy_ops: NumpyOps, scale: float) -> None:
    x, weight = normal(9, 70) * np.float32(scale), normal(33, 70)
    np.testing.assert_array_equal(linear(ops, x, weight), linear(numpy_ops, x, weight))


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_sums_do_not_saturate(ops: NativeOps, numpy_ops: NumpyOps, sign: int) -> None:
    x, weight = np.ones((13, MAX_COLUMNS), np.float32), np.zeros((17, MAX_COLUMNS), np.float32)
    step = 2 if numpy_ops.fits_pairs else 1  # beside one of 127 the largest neighbour is of 1
    weight[:, ::step] = sign
    np.testing.assert_allclose(linear(ops, x, weight), np.full((13, 17), sign * MAX_COLUMNS / step), rtol=1e-6)


@pytest.mark.parametrize("sign", [-1, 1])
def test_neighbours_of_the_largest_size_do_not_saturate(ops: NativeOps, numpy_ops: NumpyOps, sign: int) -> None:
    x, weight = np.abs(normal(13, 640)) + 5, np.abs(normal(17, 640)) * np.float32(0.01) + np.float32(sign)
    np.testing.assert_array_equal(linear(ops, x, weight), linear(numpy_ops, x, weight))


def test_numbers_that_are_quantised_already_fit_into_pairs(ops: NativeOps, numpy_ops: NumpyOps) -> None:
    x, weight = np.abs(normal(13, 641)) + 5, np.random.default_rng(0).integers(-127, 128, (50, 641), dtype=np.int8)
    weight[0, :2] = 64  # the row of the least neighbours that do
    weight[0, 2:] //= 4
    stored = QuantizedWeight(weight, np.abs(normal(50)) + np.float32(0.1))
    y = np.asarray(ops.to_numpy(ops.linear(ops.vector(x), ops.matrix(stored))))
    np.testing.assert_array_equal(y, numpy_ops.linear(x, numpy_ops.matrix(stored)))
    exact = NumpyOps().linear(x, stored)
    kept = slice(1) if numpy_ops.fits_pairs else slice(None)
    np.testing.assert_array_equal(y[:, kept], exact[:, kept])
    assert np.abs(y - exact).max() <= 0.02 * np.linalg.norm(x, axis=1).max() * np.abs(stored.scales).max() * 127


@pytest.mark.parametrize("x", [np.zeros((3, 20)), np.full((3, 20), 5.0), np.full((3, 20), -0.25), np.eye(3, 20) * 100])
def test_rows_of_one_number(ops: NativeOps, numpy_ops: NumpyOps, x: Any) -> None:
    x, weight = x.astype(np.float32), normal(33, 20)
    y = linear(ops, x, weight)
    np.testing.assert_array_equal(y, linear(numpy_ops, x, weight))
    np.testing.assert_allclose(y, x @ weight.T, atol=0.02 * np.abs(x).max() * np.abs(weight).max() * 20)


@pytest.mark.parametrize("activation", [None, "gelu", "gelu_tanh", "relu", "silu", "tanh", "mish"])
def test_bias_activation_and_residual(ops: NativeOps, numpy_ops: NumpyOps, activation: str | None) -> None:
    x, weight, bias, residual = normal(70, 24), normal(53, 24), normal(53), normal(70, 53)
    expected = linear(numpy_ops, x, weight, bias, activation, residual)
    np.testing.assert_allclose(linear(ops, x, weight, bias, activation, residual), expected, rtol=1e-6, atol=3e-6)


@pytest.mark.parametrize("count", [1, 2, 70])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_row(ops: NativeOps, numpy_ops: NumpyOps, bad: float, count: int) -> None:
    x, weight = normal(14, 70), normal(17, 70)
    x[4, -count:] = weight[2, 69] = bad
    y = linear(ops, x, weight)
    np.testing.assert_array_equal(y, linear(numpy_ops, x, weight))
    assert np.isnan(y[4]).all() and np.isnan(y[:, 2]).all() and np.isnan(y).sum() == 17 + 13


def test_a_row_wider_than_fp32_is_no_number(ops: NativeOps, numpy_ops: NumpyOps) -> None:
    x, weight = normal(14, 70), normal(17, 70)
    x[4, [3, 60]] = -3e38, 3e38
    y = linear(ops, x, weight)
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(y, linear(numpy_ops, x, weight))
    assert np.isnan(y[4]).all() and np.isnan(y).sum() == 17


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_a_row_has_the_same_bits_in_any_batch(ops: NativeOps, num_threads: int) -> None:
    assert_rows_keep_their_bits(ops, num_threads)


def test_a_weight_is_a_quarter(ops: NativeOps) -> None:
    weight = normal(256, 256)
    int8, fp32 = ops.matrix(weight), NativeOps(instruction_set=ops.instruction_set).matrix(weight)
    assert isinstance(int8, Int8Weight) and isinstance(fp32, PackedWeight)
    assert int8.memory.nbytes <= 0.29 * fp32.memory.nbytes


def test_weights_too_wide_stay_fp32(ops: NativeOps, numpy_ops: NumpyOps) -> None:
    wide = np.zeros((1, MAX_COLUMNS + 1), np.float32)
    assert isinstance(ops.matrix(wide), PackedWeight) and isinstance(numpy_ops.matrix(wide), np.ndarray)
