"""A mixture of experts: the definition against torch in fp64, the others against it; what a row's bits depend on."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import FloatArray
from rtp_llm.ops import Experts, Ops
from rtp_llm.ops.experts import route
from rtp_llm.ops.native_fallback import stand_in
from rtp_llm.ops.native_ops import NativeOps
from rtp_llm.ops.numpy_ops import NumpyOps
from rtp_llm.ops.self_check import numpy_like
from rtp_llm.ops.weight_only import to_bf16
from tests.ops.data import assert_as_exact, normal
from tests.ops.test_numpy_ops import tensors
from tests.ops.test_shared_prefix import backend as backend

torch = pytest.importorskip("torch")
F = torch.nn.functional

# Rows, columns, columns between, experts, experts a row.
Shape = tuple[int, int, int, int, int]
SHAPES: list[Shape] = [
    (1, 8, 16, 1, 1), (1, 40, 33, 8, 2), (7, 33, 65, 5, 2), (70, 72, 47, 8, 2), (300, 40, 100, 3, 3),
    (200, 24, 1100, 4, 2), (90, 1100, 70, 64, 6),
]  # fmt: skip
QUANTIZATIONS: tuple[Any, ...] = ("none", "bf16", "int8", "int8_weights", "int4_weights")


def arrays_of(shape: Shape) -> list[FloatArray]:
    """x, router, up, down, bias, residual; the weights of a size that keeps results about as large as x."""
    rows, size, wide, num_experts, _ = shape
    return [
        normal(rows, size), normal(num_experts, size) / size**0.5, normal(num_experts, wide, size) / size**0.5,
        normal(num_experts, size, wide) / wide**0.5, normal(size), normal(rows, size, seed=1),
    ]  # fmt: skip


def experts_of(ops: Ops, arrays: Sequence[FloatArray], top_k: int, activation: str = "gelu") -> Experts:
    _, router, up, down, bias, _ = arrays
    weights = tuple(map(ops.matrix, up)), tuple(map(ops.matrix, down))
    return Experts(ops.vector(router), *weights, ops.vector(bias), top_k, activation)


def compute(ops: Any, arrays: Sequence[FloatArray], top_k: int, activation: str = "gelu") -> FloatArray:
    experts = experts_of(ops, arrays, top_k, activation)
    return np.asarray(ops.to_numpy(ops.experts(ops.vector(arrays[0]), experts, ops.vector(arrays[-1]))))


def written_out(arrays: Any, top_k: int) -> Any:
    """One row and expert at a time."""
    (x, router, up, down, bias, residual), rows = arrays, []
    for row in x:
        probabilities = (router @ row).softmax(-1)
        parts = [
            probabilities[e] * (down[e] @ F.gelu(up[e] @ row)) for e in probabilities.topk(top_k).indices.sort().values
        ]
        rows.append(torch.stack(parts).sum(0))
    return torch.stack(rows) + bias + residual


def of_torch(shape: Shape) -> list[FloatArray]:
    """In fp32 and in fp64."""
    return [written_out(each, shape[-1]).numpy() for each in zip(*tensors(*arrays_of(shape)), strict=True)]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_backend_is_as_exact_as_torch(backend: Any, shape: Shape, kept: Any) -> None:
    assert_as_exact(compute(backend, arrays_of(shape), shape[-1]), *kept(of_torch, shape))


def in_numpy(shape: Shape, quantization: Any, fits_pairs: bool) -> FloatArray:
    return compute(NumpyOps(quantization, fits_pairs=fits_pairs), arrays_of(shape), shape[-1], "relu")


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("shape", SHAPES[2:])
def test_every_kernel(ops: NativeOps, shape: Shape, quantization: Any, kept: Any) -> None:
    """With relu: a gelu of other last bits may be another number in 8 bits."""
    expected = kept(in_numpy, shape, quantization, numpy_like(ops).fits_pairs)
    y = compute(ops.fork(quantization), arrays_of(shape), shape[-1], "relu")
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("shape", [SHAPES[3], SHAPES[5]])
def test_a_row_has_the_same_bits_beside_any_others_on_any_number_of_threads(
    ops: NativeOps, shape: Shape, quantization: Any
) -> None:
    arrays, some = arrays_of(shape), ops.fork(quantization)
    x, residual = arrays[0], arrays[-1]
    experts = experts_of(some, arrays, shape[-1])

    def rows(index: Any) -> FloatArray:
        return some.to_numpy(some.experts(ops.vector(x[index]), experts, ops.vector(residual[index])))

    whole = rows(slice(None))
    np.testing.assert_array_equal(rows(slice(None, None, -1))[::-1], whole)
    for few in (1, 3, 17, 33):
        np.testing.assert_array_equal(rows(slice(few)), whole[:few])
    for some.num_threads in (2, 3, 16):
        np.testing.assert_array_equal(rows(slice(None)), whole)
        np.testing.assert_array_equal(rows(slice(2)), whole[:2])


def test_the_definition_has_the_same_bits_too() -> None:
    arrays, ops = arrays_of(SHAPES[3]), NumpyOps()
    x, residual, experts = arrays[0], arrays[-1], experts_of(ops, arrays, 2)
    whole = ops.experts(x, experts, residual)
    np.testing.assert_array_equal(ops.experts(x[::-1], experts, residual[::-1])[::-1], whole)
    np.testing.assert_array_equal(np.concatenate([ops.experts(x[i, None], experts, residual[i, None]) for i in (0, 5)]),
                                  whole[[0, 5]])  # fmt: skip


def test_weights_of_which_some_are_bf16(ops: NativeOps) -> None:
    arrays = arrays_of(SHAPES[3])
    arrays[2][::2], arrays[3][1::3] = to_bf16(arrays[2][::2]), 0
    experts = experts_of(ops, arrays, 2)
    assert {weight.is_bf16 for weight in experts.up} == {weight.is_bf16 for weight in experts.down} == {True, False}
    results = [written_out(each, 2).numpy() for each in zip(*tensors(*arrays), strict=True)]
    assert_as_exact(compute(ops, arrays, 2), *results)


def test_experts_that_nobody_chooses(backend: Any) -> None:
    arrays = arrays_of(SHAPES[3])
    arrays[0][:, 0], arrays[1][:, 0] = 9, [0, 0, 9, 0, 0, 0, 9, 0]
    assert np.unique(route(arrays[0] @ arrays[1].T, 2)[0]).tolist() == [2, 6]
    results = [written_out(each, 2).numpy() for each in zip(*tensors(*arrays), strict=True)]
    assert_as_exact(compute(backend, arrays, 2), *results)


def test_of_equal_ones_the_first(backend: Any) -> None:
    arrays = arrays_of((9, 24, 16, 6, 2))
    arrays[1][:] = 0
    expected = compute(NumpyOps(), [arrays[0], *(array[:2] for array in arrays[1:4]), *arrays[4:]], 2)
    # Probabilities of a sixth, where two experts alone have a half each.
    bias, residual = arrays[4:]
    third = (expected - bias - residual) / 3
    np.testing.assert_allclose(compute(backend, arrays, 2), third + bias + residual, atol=2e-6)


def test_without_bias_or_residual_and_without_rows(backend: Any) -> None:
    arrays = arrays_of(SHAPES[2])
    whole = compute(backend, arrays, 2)
    experts = replace(experts_of(backend, arrays, 2), bias=None)
    y = backend.to_numpy(backend.experts(backend.vector(arrays[0]), experts))
    np.testing.assert_allclose(y + arrays[4] + arrays[5], whole, atol=2e-6)
    assert backend.to_numpy(backend.experts(backend.vector(arrays[0][:0]), experts)).shape == (0, 33)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_row(ops: NativeOps, wrong: float) -> None:
    arrays = arrays_of(SHAPES[3])
    whole = compute(ops, arrays, 2)
    arrays[0][4, 3] = wrong
    y = compute(ops, arrays, 2)
    assert not np.isfinite(y[4]).any()
    np.testing.assert_array_equal(np.delete(y, 4, axis=0), np.delete(whole, 4, axis=0))


@pytest.mark.parametrize("activation", ["gelu_tanh", "silu", "sigmoid", "mish"])
def test_other_activations(ops: NativeOps, activation: str) -> None:
    arrays = arrays_of(SHAPES[3])
    y, expected = (compute(each, arrays, 2, activation) for each in (ops, NumpyOps()))
    np.testing.assert_allclose(y, expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("quantization", ["none", "int8", "int4_weights"])
def test_linear_in_the_place_of_a_broken_kernel(
    ops: NativeOps, quantization: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    some, arrays = ops.fork(quantization), arrays_of(SHAPES[3])
    monkeypatch.setattr(some, "experts", stand_in(some, "experts"))
    y, expected = (compute(each, arrays, 2, "relu") for each in (some, numpy_like(some)))
    np.testing.assert_allclose(y, expected, rtol=0, atol=3e-6)


def test_what_does_not_fit_is_refused(ops: NativeOps) -> None:
    arrays = arrays_of(SHAPES[3])
    x, experts = ops.vector(arrays[0]), experts_of(ops, arrays, 2)
    mixed = (ops.fork("int8").matrix(arrays[2][0]), *experts.up[1:])
    for change, message in (
        ({"top_k": 9}, "9 of 8 experts"),
        ({"up": experts.up[1:]}, r"\(7, 8\) weights, the router has 8 experts"),
        ({"router": ops.vector(normal(8, 71))}, "x is .*, the router"),
        ({"up": mixed}, "x is .*, the weights"),
    ):
        with pytest.raises(AssertionError, match=message):
            ops.experts(x, replace(experts, **change))
