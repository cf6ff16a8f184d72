"""Weights in 8 and 4 bits, arithmetic in fp32: the definition, the kernels against it, bits that depend on nothing."""

from typing import Any

import numpy as np
import pytest

from rtp_llm.core import FloatArray
from rtp_llm.ops import Quantization
from rtp_llm.ops.native_ops import NativeOps
from rtp_llm.ops.numpy_ops import NumpyOps
from rtp_llm.ops.weight_only import BITS, Bits, quantize_groups, to_bf16
from tests.ops.data import assert_as_exact, assert_rows_keep_their_bits, linear, normal

KINDS: list[Quantization] = list(BITS)


@pytest.mark.parametrize(("bits", "steps"), [(8, 127), (4, 8)])
def test_numbers_are_within_a_step(bits: Bits, steps: int) -> None:
    weight = normal(30, 77)
    grouped = quantize_groups(weight, bits)
    step = np.abs(grouped.scales).repeat(32, axis=1)[:, :77]
    # Half a step; a whole one at the end that 4 bits lack. A scale that bf16 rounds down cuts its largest number.
    assert (np.abs(grouped.dequantized() - weight) <= (0.51 if bits == 8 else 1.01) * step + steps * step / 256).all()
    assert (np.abs(grouped.values.astype(int)) <= steps).all()
    assert np.array_equal(to_bf16(grouped.scales), grouped.scales)


def test_to_bf16_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    values = np.concatenate([normal(1000), np.array([0, -0.0, 1e-40, 3e38, 1 + 2**-8, 1 + 3 * 2**-8], np.float32)])
    assert np.array_equal(to_bf16(values), torch.from_numpy(values).bfloat16().float().numpy())


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Quantization:
    kind: Quantization = request.param
    return kind


@pytest.fixture
def ops(instruction_set: str, kind: Quantization) -> NativeOps:
    return NativeOps(instruction_set=instruction_set).fork(kind)


@pytest.mark.parametrize("m", [1, 2, 7, 13, 25, 70, 200])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (16, 8), (33, 65), (47, 1100), (600, 96), (40, 1024), (32, 31)])
def test_kernels_equal_the_reference(ops: NativeOps, m: int, n: int, k: int) -> None:
    x, weight = normal(m, k), normal(n, k)
    dequantized = quantize_groups(weight, BITS[ops.quantization]).dequantized()
    exact = x.astype(np.float64) @ dequantized.T.astype(np.float64)
    assert_as_exact(linear(ops, x, weight), linear(NumpyOps(ops.quantization), x, weight), exact, 5e-7)


def test_the_weights_are_those_of_the_reference(ops: NativeOps) -> None:
    weight = normal(70, 300) * np.float32(10) ** np.arange(-10, 20, 0.1, dtype=np.float32)
    weight[3, 64:96] = 0
    identity = np.eye(300, dtype=np.float32)
    expected = quantize_groups(weight, BITS[ops.quantization]).dequantized().T
    np.testing.assert_array_equal(linear(ops, identity, weight), expected)
    np.testing.assert_array_equal(linear(ops, identity[:5], weight), expected[:5])


@pytest.mark.parametrize("activation", [None, "gelu", "silu", "mish"])
def test_bias_activation_and_residual(ops: NativeOps, activation: str | None) -> None:
    x, weight, bias, residual = normal(70, 24), normal(53, 24), normal(53), normal(70, 53)
    expected = linear(NumpyOps(ops.quantization), x, weight, bias, activation, residual)
    np.testing.assert_allclose(linear(ops, x, weight, bias, activation, residual), expected, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_a_row_has_the_same_bits_in_any_batch(ops: NativeOps, num_threads: int) -> None:
    assert_rows_keep_their_bits(ops, num_threads)


def test_memory(ops: NativeOps) -> None:
    bits = BITS[ops.quantization]
    weight: Any = ops.matrix(normal(256, 1024))
    assert weight.memory.nbytes / (256 * 1024) <= (bits + 0.51) / 8


@pytest.mark.parametrize("backend", [NumpyOps(), "native"])
def test_bf16_weights_are_rounded_ones(backend: Any) -> None:
    ops = NativeOps() if backend == "native" else backend
    x, weight, table = normal(9, 60), normal(33, 60), normal(50, 33)
    rounded = ops.fork("bf16")
    np.testing.assert_array_equal(linear(rounded, x, weight), linear(ops, x, to_bf16(weight)))
    ids = np.arange(50, dtype=np.int32)
    found: FloatArray = rounded.to_numpy(rounded.embed([(rounded.table(table), ids)]))
    np.testing.assert_array_equal(found, to_bf16(table))
