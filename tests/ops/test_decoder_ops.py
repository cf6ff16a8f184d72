"""rotary and gates of the compiled kernels and of torch, and bf16 weights: against NumpyOps and bit for bit."""

from typing import Any

import numpy as np
import pytest

from rtp_llm.core import FloatArray
from rtp_llm.ops import ACTIVATIONS, Norm
from rtp_llm.ops.native_library import FEWER_PARTS, PackedWeight
from rtp_llm.ops.native_ops import NativeOps
from rtp_llm.ops.numpy_ops import NumpyOps
from tests.ops.data import BUILT, batch_of, normal, usable_or_skip

Heads = tuple[int, int, int]
HEADS: list[Heads] = [(1, 1, 2), (4, 2, 8), (3, 1, 34), (6, 2, 128), (14, 2, 64)]
numpy_ops = NumpyOps()


@pytest.fixture(params=[*BUILT, "torch"])
def backend(request: pytest.FixtureRequest) -> Any:
    if request.param != "torch":
        return NativeOps(instruction_set=usable_or_skip(request.param))
    pytest.importorskip("torch")
    from rtp_llm.ops.torch_ops import TorchOps

    return TorchOps()


def rotary(ops: Any, qkv: FloatArray, cos_sin: FloatArray, heads: Heads, with_norms: bool) -> FloatArray:
    num_heads, num_kv_heads, head_dim = heads
    weights = (normal(head_dim, seed=1), normal(head_dim, seed=2)) if with_norms else (None, None)
    q_norm, k_norm = (None if w is None else Norm(ops.vector(w), None, 1e-6, "rms") for w in weights)
    y = ops.rotary(
        ops.vector(qkv), ops.vector(cos_sin), num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim,
        q_norm=q_norm, k_norm=k_norm,
    )  # fmt: skip
    return np.asarray(ops.to_numpy(y))


@pytest.mark.parametrize("with_norms", [False, True])
@pytest.mark.parametrize("heads", HEADS)
def test_rotary(backend: Any, heads: Heads, with_norms: bool) -> None:
    num_heads, num_kv_heads, head_dim = heads
    qkv, cos_sin = normal(23, (num_heads + 2 * num_kv_heads) * head_dim), normal(23, head_dim)
    before = qkv.copy()
    expected = rotary(numpy_ops, qkv, cos_sin, heads, with_norms)
    np.testing.assert_allclose(rotary(backend, qkv, cos_sin, heads, with_norms), expected, rtol=1e-5, atol=2e-6)
    np.testing.assert_array_equal(qkv, before)


@pytest.mark.parametrize("size", [1, 16, 77, 300])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gated(backend: Any, activation: str, size: int) -> None:
    ops, x = backend, 3 * normal(9, 2 * size)
    y = ops.to_numpy(ops.gated(ops.vector(x), activation))
    np.testing.assert_allclose(y, numpy_ops.gated(x, activation), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1, 32, 77, 96, 640])
@pytest.mark.parametrize("activation", [*ACTIVATIONS, "sigmoid"])
def test_gated_linear(backend: Any, activation: str, size: int) -> None:
    x, weight, bias = normal(9, 40), normal(2 * size, 40), normal(2 * size)
    y, expected = (
        ops.to_numpy(ops.gated_linear(ops.vector(x), ops.matrix(weight), ops.vector(bias), activation))
        for ops in (backend, numpy_ops)
    )
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("quantization", ["none", "int8", "int8_weights", "int4_weights", "bf16_products"])
@pytest.mark.parametrize("k", [40, 1100])
@pytest.mark.parametrize("num_rows", [1, 10, 24, 25, 400])
def test_gates_are_those_of_two_ops(ops: NativeOps, num_rows: int, k: int, quantization: Any) -> None:
    """Bit for bit, on any number of threads."""
    if quantization == "bf16_products" and quantization not in FEWER_PARTS.get(ops.instruction_set, ()):
        pytest.skip("these kernels round nothing")
    ops = ops.fork(quantization)
    x, bias = ops.vector(normal(num_rows, k)), ops.vector(normal(2 * 416))
    for weight in (ops.matrix(normal(2 * 416, k)), ops.matrix(as_bf16(normal(2 * 416, k)))):
        for given in (None, bias):
            expected = ops.to_numpy(ops.gated(ops.linear(x, weight, given), "silu"))
            for ops.num_threads in (1, 3):
                y = ops.to_numpy(ops.gated_linear(x, weight, given, "silu"))
                np.testing.assert_array_equal(y, expected)


def decoder(ops: NativeOps, rows: slice, weight: FloatArray) -> FloatArray:
    """A layer of a decoder's ops on some rows of always the same input."""
    x, cos_sin = ops.vector(normal(200, 96)[rows]), ops.vector(normal(200, 24, seed=1)[rows])
    norm = Norm(ops.vector(normal(24)), None, 1e-6, "rms")
    qkv = ops.linear(x, ops.matrix(weight))
    qkv = ops.rotary(qkv, cos_sin, num_heads=2, num_kv_heads=1, head_dim=24, q_norm=norm, k_norm=norm)
    batch = batch_of([qkv.shape[0]])
    y = ops.attention(qkv, batch, num_heads=2, num_kv_heads=1, head_dim=24, scale=0.2, causal=True)
    gates = ops.matrix(np.tile(weight[:64, :48], (2, 1)))
    gated = [ops.gated(ops.linear(y, ops.matrix(weight[:, :48])), "silu"), ops.gated_linear(y, gates, None, "silu")]
    return np.asarray(ops.to_numpy(ops.concat(gated)))


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_a_row_has_the_same_bits_in_any_batch_and_on_any_threads(ops: NativeOps, num_threads: int) -> None:
    expected = decoder(ops, slice(None), normal(96, 96))
    ops.num_threads = num_threads
    for num_rows in (1, 7, 13, 64, 200):
        np.testing.assert_array_equal(decoder(ops, slice(num_rows), normal(96, 96)), expected[:num_rows])


def as_bf16(x: FloatArray) -> FloatArray:
    return np.asarray((x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32))


@pytest.mark.parametrize("m", [1, 5, 13, 70, 200])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (33, 65), (47, 1100), (600, 96), (40, 1024)])
def test_a_bf16_weight_takes_half_the_memory_and_gives_the_same_bits(ops: NativeOps, m: int, n: int, k: int) -> None:
    x, weight = normal(m, k), as_bf16(normal(n, k))
    narrow = ops.matrix(weight)
    wide_weight = np.vstack([weight, np.full((1, k), 1 + 2.0**-20, np.float32)])
    wide = ops.matrix(wide_weight)
    assert isinstance(narrow, PackedWeight) and isinstance(wide, PackedWeight)
    assert narrow.is_bf16 and not wide.is_bf16
    assert narrow.memory.nbytes <= wide.memory.nbytes / 2 + 4
    y, expected = (ops.to_numpy(ops.linear(ops.vector(x), w)) for w in (narrow, wide))
    np.testing.assert_array_equal(y, expected[:, :n])


@pytest.mark.parametrize("size", [1, 33, 384])
def test_a_bf16_table_gives_the_same_bits(ops: NativeOps, size: int) -> None:
    rows, others, ids = as_bf16(normal(50, size)), normal(9, size), np.array([3, 49, 0, 8], np.int32)
    rows[0] = -0.0
    narrow, wide = ops.table(rows), ops.table(others)
    assert narrow.is_bf16 and not wide.is_bf16
    places = np.array([1, 0, 8, 8], np.int32)
    y = ops.to_numpy(ops.embed([(narrow, ids), (wide, places)]))
    np.testing.assert_array_equal(y, rows[ids] + others[places])
    alone = ops.to_numpy(ops.embed([(narrow, ids)]))
    np.testing.assert_array_equal(alone.view(np.uint32), rows[ids].view(np.uint32))
    np.testing.assert_array_equal(narrow.widened(), rows)
