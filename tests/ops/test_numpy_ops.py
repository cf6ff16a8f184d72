"""NumpyOps against torch: it is what the other backends are compared with."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import FloatArray
from rtp_llm.ops import ACTIVATIONS, Norm
from rtp_llm.ops.numpy_ops import ACTIVATION, NumpyOps, erf
from tests.ops.data import assert_as_exact, batch_of, normal

torch = pytest.importorskip("torch")
F = torch.nn.functional
TORCH = {
    "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "tanh": torch.tanh, "sigmoid": torch.sigmoid
}  # fmt: skip

ops = NumpyOps()


def tensors(*arrays: FloatArray) -> list[tuple[Any, Any]]:
    """Each array as torch fp32 and fp64."""
    return [(torch.from_numpy(array), torch.from_numpy(array).double()) for array in arrays]


def test_the_table_of_activations_is_complete() -> None:
    assert set(ACTIVATION) == set(ACTIVATIONS)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation(activation: str) -> None:
    x = np.linspace(-12, 12, 4801, dtype=np.float32)
    function: Any = TORCH.get(activation) or getattr(F, activation)
    ((x32, x64),) = tensors(x)
    assert_as_exact(ACTIVATION[activation](x), function(x32).numpy(), function(x64).numpy())


def test_erf() -> None:
    x = np.linspace(-7, 7, 2001, dtype=np.float32)
    np.testing.assert_allclose(erf(x), torch.erf(torch.from_numpy(x).double()).numpy(), atol=1e-9)


@pytest.mark.parametrize("activation", [None, "gelu", "tanh"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (16, 48, 33)])
def test_linear(shape: tuple[int, int, int], activation: str | None) -> None:
    m, n, k = shape
    x, weight, bias, residual = normal(m, k), normal(n, k), normal(n), normal(m, n)
    results = []
    for x_, weight_, bias_, residual_ in zip(*tensors(x, weight, bias, residual), strict=True):
        y = F.linear(x_, weight_, bias_)
        results.append(((y if activation is None else TORCH[activation](y)) + residual_).numpy())
    assert_as_exact(ops.linear(x, weight, bias, activation, residual), *results)


def test_embed() -> None:
    words, positions, batch = normal(9, 4), normal(7, 4), batch_of([3, 2])
    y = ops.embed([(words, batch.input_ids), (positions, batch.position_ids)])
    np.testing.assert_array_equal(y, words[[3, 4, 5, 2, 3]] + positions[[0, 1, 2, 0, 1]])


def test_embed_with_norm() -> None:
    table, norm, ids = normal(9, 4), Norm(normal(4), None, 1e-5), np.array([1, 8], dtype=np.int32)
    np.testing.assert_array_equal(ops.embed([(table, ids)], norm), ops.norm(table[ids], norm))


def test_embed_scales_before_the_norm() -> None:
    table, norm, ids = normal(9, 4), Norm(normal(4), None, 1e-5), np.array([1, 8], dtype=np.int32)
    scaled = (table[ids] + table[ids[::-1]]) * np.float32(3.3)
    lookups = [(table, ids), (table, ids[::-1])]
    np.testing.assert_array_equal(ops.embed(lookups, scale=3.3), scaled)
    np.testing.assert_array_equal(ops.embed(lookups, norm, 3.3), ops.norm(scaled, norm))
    np.testing.assert_array_equal(table, normal(9, 4))


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norm_with_residual(kind: Any) -> None:
    x, residual, norm = normal(5, 33), normal(5, 33, seed=1), Norm(normal(33), None, 1e-6, kind)
    np.testing.assert_array_equal(ops.norm(x, norm, residual), ops.norm(x, norm) + residual)


@pytest.mark.parametrize("size", [1, 33, 384])
def test_layer_norm(size: int) -> None:
    x, weight, bias = 3 * normal(5, size) + 1, normal(size), normal(size)
    results = [
        F.layer_norm(x_, (size,), w, b, 1e-12).numpy() for x_, w, b in zip(*tensors(x, weight, bias), strict=True)
    ]
    assert_as_exact(ops.norm(x, Norm(weight, bias, 1e-12)), *results)


@pytest.mark.parametrize("size", [1, 33, 384])
def test_rms_norm(size: int) -> None:
    x, weight = 3 * normal(5, size) + 1, normal(size)
    results = [F.rms_norm(x_, (size,), w, 1e-6).numpy() for x_, w in zip(*tensors(x, weight), strict=True)]
    assert_as_exact(ops.norm(x, Norm(weight, None, 1e-6, "rms")), *results)


def sdpa(
    qkv: Any, lengths: list[int], heads: int, kv_heads: int, scale: float, causal: bool, window: int | None
) -> Any:
    """torch's own attention, one sequence at a time, [T, heads * head_dim]."""
    outputs = []
    for part in qkv.split(lengths):
        q, k, v = part.view(len(part), heads + 2 * kv_heads, -1).transpose(0, 1).split([heads, kv_heads, kv_heads])
        positions = torch.arange(len(part))
        distance = positions[:, None] - positions[None, :]
        visible = (distance >= 0) if causal else torch.ones_like(distance, dtype=torch.bool)
        if window is not None:
            visible &= distance.abs() < window
        k, v = (x.repeat_interleave(heads // kv_heads, 0) for x in (k, v))
        outputs.append(F.scaled_dot_product_attention(q, k, v, visible, scale=scale).transpose(0, 1).flatten(1))
    return torch.cat(outputs)


@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(2, 2, 8), (4, 2, 5), (3, 1, 32)])
def test_attention(heads: int, kv_heads: int, head_dim: int, causal: bool, window: int | None) -> None:
    lengths, scale = [7, 1, 20], head_dim**-0.5
    qkv = normal(sum(lengths), (heads + 2 * kv_heads) * head_dim)
    results = [sdpa(x, lengths, heads, kv_heads, scale, causal, window).numpy() for x in tensors(qkv)[0]]
    y = ops.attention(
        qkv, batch_of(lengths), num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, scale=scale, causal=causal,
        window=window,
    )  # fmt: skip
    assert_as_exact(y, *results)


EXPECTED_POOL: dict[str, Callable[[Any], Any]] = {
    "cls": lambda x: x[0],
    "lasttoken": lambda x: x[-1],
    "mean": lambda x: x.mean(0),
    "max": lambda x: x.max(0),
    "mean_sqrt_len_tokens": lambda x: x.sum(0) / math.sqrt(len(x)),
    "weightedmean": lambda x: np.average(x, axis=0, weights=np.arange(1, len(x) + 1)),
}


@pytest.mark.parametrize("mode", EXPECTED_POOL)
def test_pool(mode: Any) -> None:
    batch, x = batch_of([3, 1, 6]), normal(10, 5)
    expected = [EXPECTED_POOL[mode](x[a:b].astype(np.float64)) for a, b in [(0, 3), (3, 4), (4, 10)]]
    np.testing.assert_allclose(ops.pool(x, batch, mode), expected, rtol=1e-6)


@pytest.mark.parametrize("mode", ["cls", "mean", "max", "mean_sqrt_len_tokens"])
def test_pool_without_the_prompt_is_pool_of_the_rest(mode: Any) -> None:
    x = normal(6, 5)
    y = ops.pool(x, batch_of([6], [2]), mode, skip_prompt=True)
    np.testing.assert_array_equal(y, ops.pool(x[2:], batch_of([4]), mode))


def test_weighted_mean_without_the_prompt_keeps_the_positions() -> None:
    y = ops.pool(np.array([[9.0], [1.0], [2.0]], np.float32), batch_of([3], [1]), "weightedmean", skip_prompt=True)
    np.testing.assert_allclose(y, [[(2 * 1 + 3 * 2) / 5]], rtol=1e-6)


@pytest.mark.parametrize("mode", ["mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_pool_of_a_sequence_that_is_all_prompt_is_zero(mode: Any) -> None:
    assert not ops.pool(normal(3, 4), batch_of([3], [3]), mode, skip_prompt=True).any()


def test_concat() -> None:
    x, y = normal(3, 2), normal(3, 4)
    np.testing.assert_array_equal(ops.concat([x, y]), np.hstack([x, y]))


def test_l2_normalize() -> None:
    x = np.vstack([normal(4, 33), np.zeros((1, 33), np.float32)])
    results = [F.normalize(x_, dim=-1).numpy() for x_ in tensors(x)[0]]
    assert_as_exact(ops.l2_normalize(x), *results)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_row_of_linear_has_the_same_bits_in_any_batch(rows: int) -> None:
    x, weight = normal(9, 65), normal(31, 65)
    np.testing.assert_array_equal(ops.linear(x[:rows], weight), ops.linear(x, weight)[:rows])


def rotated(qkv: Any, cos_sin: Any, heads: tuple[int, int, int], weights: list[Any] | None) -> Any:
    """transformers' apply_rotary_pos_emb after torch's own RMSNorm, [T, all heads * head_dim]."""
    num_heads, num_kv_heads, head_dim = heads
    q, k, v = qkv.unflatten(1, (-1, head_dim)).split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    if weights is not None:
        q, k = (F.rms_norm(x, (head_dim,), weight, 1e-6) for x, weight in zip((q, k), weights, strict=True))
    cos, sin = (part.repeat(1, 2)[:, None] for part in cos_sin.chunk(2, dim=-1))
    turned = [x * cos + torch.cat([-x[..., head_dim // 2 :], x[..., : head_dim // 2]], dim=-1) * sin for x in (q, k)]
    return torch.cat([*turned, v], dim=1).flatten(1)


@pytest.mark.parametrize("with_norms", [False, True])
@pytest.mark.parametrize("heads", [(1, 1, 2), (4, 2, 8), (3, 1, 34), (6, 2, 128)])
def test_rotary(heads: tuple[int, int, int], with_norms: bool) -> None:
    num_heads, num_kv_heads, head_dim = heads
    qkv, cos_sin = normal(9, (num_heads + 2 * num_kv_heads) * head_dim), normal(9, head_dim)
    weights = (normal(head_dim), normal(head_dim, seed=1))
    results = [
        rotated(x, angles, heads, norms if with_norms else None).numpy()
        for x, angles, *norms in zip(*tensors(qkv, cos_sin, *weights), strict=True)
    ]
    q_norm, k_norm = (Norm(weight, None, 1e-6, "rms") if with_norms else None for weight in weights)
    y = ops.rotary(
        qkv, cos_sin, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, q_norm=q_norm, k_norm=k_norm
    )
    assert_as_exact(y, *results)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "mish"])
def test_gated(activation: str) -> None:
    x = normal(5, 66)
    function = TORCH.get(activation) or getattr(F, activation)
    results = [(function(gate) * up).numpy() for gate, up in (x_.chunk(2, dim=-1) for x_ in tensors(x)[0])]
    assert_as_exact(ops.gated(x, activation), *results)
