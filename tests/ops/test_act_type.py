"""Linear layers in fewer bf16 parts, on tiles and in pairs: the kernels against the definition; the same bits."""

from typing import Any

import numpy as np
import pytest

from rtp_llm.core import FloatArray
from rtp_llm.errors import ConfigError
from rtp_llm.ops import Experts, Quantization, native_ops
from rtp_llm.ops.native_library import FEWER_PARTS
from rtp_llm.ops.native_ops import NativeOps
from rtp_llm.ops.numpy_ops import NumpyOps
from rtp_llm.ops.self_check import failing_ops
from rtp_llm.ops.weight_only import BITS, PARTS, quantize_groups, to_bf16
from tests.ops.data import (
    assert_as_exact,
    assert_rows_keep_their_bits,
    batch_of,
    encoder,
    linear,
    normal,
    usable_or_skip,
)

SHAPES = [(1, 1), (16, 8), (33, 65), (47, 1100), (600, 96), (40, 1024), (32, 31)]


def forked(instruction_set: str, kind: Quantization) -> NativeOps:
    return NativeOps(instruction_set=usable_or_skip(instruction_set)).fork(kind)


@pytest.fixture(scope="module", params=[(name, kind) for name, kinds in FEWER_PARTS.items() for kind in kinds])
def ops(request: pytest.FixtureRequest) -> NativeOps:
    return forked(*request.param)


@pytest.fixture(scope="module", params=list(FEWER_PARTS))
def one_part(request: pytest.FixtureRequest) -> NativeOps:
    return forked(request.param, "bf16_products")


@pytest.mark.parametrize("kind", list(PARTS))
def test_kernels_without_such_products_refuse_them(kind: Quantization) -> None:
    with pytest.raises(ConfigError, match=f"{kind}: the generic kernels have none"):
        NativeOps(instruction_set="generic").fork(kind)


@pytest.mark.parametrize("m", [1, 2, 16, 17, 33, 70, 200])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_one_part_is_the_product_of_rounded_numbers(one_part: NativeOps, m: int, n: int, k: int) -> None:
    x, weight = normal(m, k), normal(n, k)
    exact = to_bf16(x).astype(np.float64) @ to_bf16(weight).T.astype(np.float64)
    assert_as_exact(linear(one_part, x, weight), linear(NumpyOps("bf16_products"), x, weight), exact, 5e-7)


@pytest.mark.parametrize("m", [1, 2, 16, 17, 33, 70, 200])
@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("stored", [np.float32, np.float16])
def test_two_parts_are_nearer_than_fp16(m: int, n: int, k: int, stored: type[np.floating]) -> None:
    ops = forked("amx", "fp16_products")
    x, weight = normal(m, k), normal(n, k).astype(stored).astype(np.float32)
    error = np.abs(linear(ops, x, weight) - x.astype(np.float64) @ weight.T.astype(np.float64))
    products = np.abs(x).astype(np.float64) @ np.abs(weight).T.astype(np.float64)
    assert (error <= 2.0**-13 * products + 1e-6).all()
    if products.size > 10_000:
        assert np.sqrt(np.mean((error / products) ** 2)) < 2.0**-16


def test_a_weight_of_bf16_loses_nothing(ops: NativeOps) -> None:
    weight, x = to_bf16(normal(70, 300)), to_bf16(normal(40, 300))
    exact = x.astype(np.float64) @ weight.T.astype(np.float64)
    assert_as_exact(linear(ops, x, weight), linear(NumpyOps(), x, weight), exact, 5e-7)


@pytest.mark.parametrize("activation", [None, "gelu", "mish"])
def test_bias_activation_and_residual(ops: NativeOps, activation: str | None) -> None:
    x, weight, bias, residual = to_bf16(normal(70, 24)), to_bf16(normal(53, 24)), normal(53), normal(70, 53)
    expected = linear(NumpyOps(ops.quantization), x, weight, bias, activation, residual)
    np.testing.assert_allclose(linear(ops, x, weight, bias, activation, residual), expected, rtol=1e-5, atol=5e-6)


def test_experts(ops: NativeOps) -> None:
    """Of numbers that bf16 holds; what the first products give is rounded by both alike, but for ties."""
    x, weights = to_bf16(normal(41, 40)), to_bf16(normal(5, 67, 40))

    def mixture(ops: Any) -> Experts:
        ups, downs = ([ops.matrix(np.ascontiguousarray(part)) for part in parts] for parts in (
            weights[:, 1:34], weights[:, 34:].transpose(0, 2, 1)))  # fmt: skip
        return Experts(ops.vector(weights[:, 0]), tuple(ups), tuple(downs), None, 2, "relu")

    numpy_ops = NumpyOps(ops.quantization)
    ours = ops.to_numpy(ops.experts(ops.vector(x), mixture(ops)))
    np.testing.assert_allclose(ours, numpy_ops.experts(x, mixture(numpy_ops)), rtol=1e-2, atol=0.1)
    alone = np.concatenate([ops.to_numpy(ops.experts(ops.vector(row[None]), mixture(ops))) for row in x])
    np.testing.assert_array_equal(ours, alone)


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_a_row_has_the_same_bits_in_any_batch(ops: NativeOps, num_threads: int) -> None:
    assert_rows_keep_their_bits(ops, num_threads)


def test_a_sequence_has_the_same_bits_in_any_batch(ops: NativeOps) -> None:
    lengths = [3, 200, 1, 17, 33, 64, 9]
    together = encoder(ops, batch_of(lengths))
    alone = np.concatenate([encoder(ops, batch_of([length])) for length in lengths])
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFFFFFFF, 0x7F800001])
def test_no_number_is_still_none(ops: NativeOps, bits: int) -> None:
    """Whatever stands in it: rounded as other numbers are, all ones would be zero."""
    x, weight = normal(40, 70), normal(33, 70)
    x.view(np.uint32)[3, 7] = bits
    x[5, 9] = np.inf
    y = linear(ops, x, weight)
    assert np.isnan(y[3]).all() and not np.isfinite(y[5]).any()
    assert np.isfinite(np.delete(y, [3, 5], axis=0)).all()


def test_attention_to_equal_values_is_that_value(ops: NativeOps) -> None:
    """The weights that are multiplied have a sum of one."""
    batch = ops.upload(batch_of([200]))
    hidden, weight = to_bf16(normal(200, 64)), to_bf16(normal(192, 64))
    weight[128:] = 0
    bias = np.r_[np.zeros(128), np.ones(64)].astype(np.float32)
    qkv = ops.linear(ops.vector(hidden), ops.matrix(weight), ops.vector(bias))
    y = ops.to_numpy(ops.attention(qkv, batch, num_heads=1, num_kv_heads=1, head_dim=64, scale=0.5))
    np.testing.assert_allclose(y, 1.0, rtol=0, atol=1e-6)


@pytest.mark.parametrize("lengths", [[96], [300, 95, 1, 160, 513], [100, 100, 100]])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": 100}, {"causal": True, "window": 90}])
@pytest.mark.parametrize("head_dim", [24, 31, 64, 72])
def test_attention_of_such_products(ops: NativeOps, lengths: list[int], options: dict[str, Any], head_dim: int) -> None:
    """As exact as its factors, alone and in any batch; in fp32 what sees few keys of tiles, or has an odd depth."""
    num_tokens, size = sum(lengths), 4 * head_dim
    hidden, weight = normal(num_tokens, 40), to_bf16(normal(2 * size, 40) / np.float32(7))

    def attend(ops: Any, hidden: FloatArray, lengths: list[int]) -> FloatArray:
        batch = ops.upload(batch_of(lengths))
        qkv = ops.linear(ops.vector(hidden), ops.matrix(weight))
        shape = {"num_heads": 4, "num_kv_heads": 2, "head_dim": head_dim, "scale": head_dim**-0.5}
        return np.asarray(ops.to_numpy(ops.attention(qkv, batch, **shape, **options)))

    together, exact = attend(ops, hidden, lengths), attend(NumpyOps(ops.quantization), hidden, lengths)
    bound = {"fp16_products": 2e-4, "bf16_products": 3e-2}[ops.quantization]
    assert np.abs(together - exact).max() <= bound * np.abs(exact).max()
    starts = np.cumsum([0, *lengths])
    alone = [attend(ops, hidden[start : start + n], [n]) for start, n in zip(starts, lengths, strict=False)]
    np.testing.assert_array_equal(together, np.concatenate(alone))


@pytest.mark.parametrize("m", [1, 2, 16, 17, 33, 70, 200])
@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("quantization", list(BITS))
def test_one_part_of_widened_weights(one_part: NativeOps, quantization: Quantization, m: int, n: int, k: int) -> None:
    x, weight = normal(m, k), normal(n, k)
    widened = to_bf16(quantize_groups(weight, BITS[quantization]).dequantized())
    exact = to_bf16(x).astype(np.float64) @ widened.T.astype(np.float64)
    expected = linear(NumpyOps(quantization, 1), x, weight)
    assert_as_exact(linear(one_part.fork(quantization, 1), x, weight), expected, exact, 5e-7)


@pytest.mark.parametrize("quantization", list(BITS))
def test_the_self_check_sees_one_part_of_widened_weights(one_part: NativeOps, quantization: Quantization) -> None:
    ops = one_part.fork(quantization, 1)
    right = ops.linear

    def doubled(*given: Any, **options: Any) -> Any:
        return ops.vector(2 * ops.to_numpy(right(*given, **options)))

    assert failing_ops(ops) == frozenset()
    setattr(ops, "linear", doubled)  # noqa: B010
    assert "linear" in failing_ops(ops)


def test_the_check_at_start_tries_all_products(one_part: NativeOps, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[str, int]] = []

    def none_failing(*backends: NativeOps) -> frozenset[str]:
        tried.extend((ops.quantization, ops.parts) for ops in backends)
        return frozenset()

    monkeypatch.setattr(native_ops, "failing_ops", none_failing)
    native_ops.checked_library.__wrapped__(one_part.instruction_set)
    whole = [(kind, 3) for kind in ("none", "int8", *BITS)]
    assert tried == [*whole, *((kind, 1) for kind in ("bf16_products", *BITS))]


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize("quantization", list(BITS))
def test_rows_of_widened_weights_keep_their_bits(ops: NativeOps, quantization: Quantization, num_threads: int) -> None:
    assert_rows_keep_their_bits(ops.fork(quantization, PARTS[ops.quantization]), num_threads)


def test_attention_on_layers_in_8_bits(one_part: NativeOps) -> None:
    """The layers' products are as they are; attention multiplies rounded numbers."""
    lengths = [200, 3, 100]
    hidden, weight = normal(303, 96), normal(288, 96) / np.float32(7)

    def attend(parts: int, hidden: FloatArray, lengths: list[int]) -> tuple[FloatArray, FloatArray]:
        ops = one_part.fork("int8", parts)
        batch, qkv = ops.upload(batch_of(lengths)), ops.linear(ops.vector(hidden), ops.matrix(weight))
        y = ops.attention(qkv, batch, num_heads=3, num_kv_heads=3, head_dim=32, scale=0.3)
        return np.array(ops.to_numpy(qkv)), np.array(ops.to_numpy(y))

    (qkv, exact), (same, rounded) = attend(3, hidden, lengths), attend(1, hidden, lengths)
    np.testing.assert_array_equal(same, qkv)
    assert 0 < np.abs(rounded - exact).max() <= 3e-2 * np.abs(exact).max()
    starts = np.cumsum([0, *lengths])
    alone = [attend(1, hidden[start : start + n], [n])[1] for start, n in zip(starts, lengths, strict=False)]
    np.testing.assert_array_equal(rounded, np.concatenate(alone))
