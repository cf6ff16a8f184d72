"""Products of bf16 pairs beside all that attention takes, at the ends of a block of pairs, and at the ends of bf16."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import Batch, FloatArray, KeptPrefix
from rtp_llm.ops import Relative
from rtp_llm.ops.native_library import load
from rtp_llm.ops.native_ops import NativeOps
from rtp_llm.ops.native_stream import Tensor
from rtp_llm.ops.numpy_ops import NumpyOps
from rtp_llm.ops.self_check import failing_ops
from rtp_llm.ops.weight_only import to_bf16
from tests.ops.data import IS_ARM, assert_as_exact, batch_of, linear, normal, usable_or_skip

PAIRED = {"avx512_bf16": "avx512_vnni", "neon_bf16": "neon_dotprod"}  # and the same kernels without pairs
CPU = Path("/proc/cpuinfo")
LENGTHS, KEPT = [33, 1, 20, 47, 15], 7


@pytest.fixture(scope="module", params=list(PAIRED))
def ops(request: pytest.FixtureRequest) -> NativeOps:
    return NativeOps(instruction_set=usable_or_skip(request.param))


def attention(
    ops: Any, qkv: FloatArray, batch: Batch, head_dim: int = 24, parts: int = 1, **options: Any
) -> FloatArray:
    """Four heads on two key heads, whose products take so many parts where the backend asks."""
    x, batch = ops.vector(qkv), ops.upload(batch)
    if ops.name == "native":
        x.parts = parts
    bias, relative = options.pop("distance_bias", None), options.pop("relative", None)
    y = ops.attention(
        x, batch, num_heads=4, num_kv_heads=2, head_dim=head_dim, scale=head_dim**-0.5, rows=batch.wanted,
        kept=[ops.vector(prefix.layers[0]) for prefix in batch.kept],
        distance_bias=None if bias is None else ops.vector(bias),
        relative=None if relative is None else Relative(ops.vector(relative), ops.vector(relative)), **options,
    )  # fmt: skip
    return np.array(ops.to_numpy(y))


@pytest.mark.skipif(IS_ARM or not CPU.exists(), reason="of Linux on x86-64")
def test_the_cpu_is_asked_for_pairs_as_linux_asks() -> None:
    flags = set(CPU.read_text().split())
    expected = {"avx512_bf16", "avx512_vnni"} <= flags
    assert bool(load(usable_or_skip("generic")).cpu_supports_avx512_bf16()) == expected


def changed(batch: Batch, **fields: Any) -> Batch:
    return Batch(**{**{name: getattr(batch, name) for name in Batch.__slots__}, **fields})


def rows_of(values: FloatArray, seq: int) -> FloatArray:
    starts = np.cumsum([0, *LENGTHS])
    return values[starts[seq] : starts[seq + 1]]


@pytest.mark.parametrize(
    "options",
    [{}, {"causal": True}, {"window": 9}, {"causal": True, "window": 16}, {"softcap": 1.5}, {"distance_bias": 12}],
)
@pytest.mark.parametrize("head_dim", [2, 24, 66])
@pytest.mark.parametrize("seen", [False, True])
def test_attention_alone_in_a_batch_and_of_wanted_rows(
    ops: NativeOps, options: dict[str, Any], head_dim: int, seen: bool
) -> None:
    qkv, options = normal(sum(LENGTHS), 8 * head_dim), dict(options)
    if "distance_bias" in options:
        options["distance_bias"] = normal(4, 2 * options["distance_bias"] - 1)
    seen_lens = np.array([30, 1, 3, 46, 14], np.int32) if seen else None
    batch = changed(batch_of(LENGTHS), seen_lens=seen_lens)
    y, exact = (attention(backend, qkv, batch, head_dim, **options) for backend in (ops, NumpyOps()))
    assert 0 < np.abs(y - exact).max() <= 3e-2 * np.abs(exact).max()
    for seq, length in enumerate(LENGTHS):
        one = changed(batch_of([length]), seen_lens=None if seen_lens is None else seen_lens[seq : seq + 1])
        np.testing.assert_array_equal(attention(ops, rows_of(qkv, seq), one, head_dim, **options), rows_of(y, seq))
    wanted = batch.cu_seqlens[1:] - 1
    ops.num_threads = 3
    some = attention(ops, qkv, changed(batch, wanted=wanted), head_dim, **options)
    np.testing.assert_array_equal(some, y[wanted])


@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("head_dim", [24, 66])
def test_attention_behind_a_prefix(ops: NativeOps, window: int | None, head_dim: int) -> None:
    """An odd number of tokens, of this batch or of an earlier one: a pair is of one from each."""
    qkv, kept = normal(sum(LENGTHS), 8 * head_dim), normal(KEPT, 8 * head_dim)
    keys = np.ascontiguousarray(kept[:, 4 * head_dim :])
    shared = changed(
        batch_of(LENGTHS), prefix_of=np.array([-1, 0, -2, -2, 0], np.int32),
        kept=(KeptPrefix(bytes(4 * KEPT), [keys], keys.nbytes),),
    )  # fmt: skip
    y = attention(ops, qkv, shared, head_dim, causal=True, window=window)
    for seq, prefix in [(1, rows_of(qkv, 0)), (2, kept), (3, kept), (4, rows_of(qkv, 0))]:
        whole = np.concatenate([prefix, rows_of(qkv, seq)])
        alone = attention(ops, whole, batch_of([len(whole)]), head_dim, causal=True, window=window)
        np.testing.assert_array_equal(rows_of(y, seq), alone[len(prefix) :])


@pytest.mark.parametrize(("head_dim", "relative"), [(31, False), (24, True)])
def test_what_has_no_pairs_is_fp32(ops: NativeOps, head_dim: int, relative: bool) -> None:
    qkv, batch = normal(sum(LENGTHS), 8 * head_dim), batch_of(LENGTHS)
    options = {"relative": normal(4 * head_dim, 39)} if relative else {}
    one, all_parts = (attention(ops, qkv, batch, head_dim, parts, **options) for parts in (1, 3))
    np.testing.assert_array_equal(one, all_parts)


@pytest.mark.parametrize("k", [1, 2, 767, 768, 769, 1537])
@pytest.mark.parametrize("n", [1, 17, 33])
def test_rows_at_the_ends_of_blocks_of_pairs(ops: NativeOps, n: int, k: int) -> None:
    """A block has at most 384 pairs; the last has half a pair where k is odd.

    BFDOT rounds every sum to odd (Arm's manual, BFDotAdd): it is off by up to a unit where others are by half of one.
    """
    floor = 1e-6 if ops.instruction_set == "neon_bf16" else 5e-7
    rounded, x, weight = ops.fork("bf16_products"), normal(60, k), normal(n, k)
    y, exact = linear(rounded, x, weight), to_bf16(x).astype(np.float64) @ to_bf16(weight).T.astype(np.float64)
    assert_as_exact(y, linear(NumpyOps("bf16_products"), x, weight), exact, floor)
    np.testing.assert_array_equal(y, np.concatenate([linear(rounded, x[i : i + 7], weight) for i in range(0, 60, 7)]))


@pytest.mark.parametrize("rows", [1, 20, 60])
@pytest.mark.parametrize("k", [1, 33, 769])
def test_numbers_that_bf16_does_not_hold(ops: NativeOps, rows: int, k: int) -> None:
    """Beyond the largest one infinity, in that row alone; what fp32 has denormal is zero."""
    rounded, x, weight = ops.fork("bf16_products"), normal(rows, k), normal(33, k)
    expected = linear(rounded, x, weight)
    bad = x.copy()
    bad[-1, -1] = np.finfo(np.float32).max
    y = linear(rounded, bad, weight)
    assert np.isinf(y[-1]).all()
    np.testing.assert_array_equal(y[:-1], expected[:-1])
    for small in (1e-45, 1.1e-38, -1e-40):
        bad[-1] = small
        assert not linear(rounded, bad, np.full_like(weight, 1e30))[-1].any()


@pytest.mark.parametrize("size", [1, 15, 17, 33])
def test_what_an_earlier_run_left_is_not_seen(ops: NativeOps, size: int) -> None:
    """Half a pair that is not there is zero, not what stood in its place: zero times NaN would be NaN."""
    ops.num_threads = 1
    rounded, qkv, weight, batch = ops.fork("bf16_products"), normal(size, 8 * 24), normal(33, size), batch_of([size])
    attended, product = attention(ops, qkv, batch), linear(rounded, weight, weight)
    attention(ops, np.full_like(qkv, np.nan), batch)
    np.testing.assert_array_equal(attention(ops, qkv, batch), attended)
    linear(rounded, np.full_like(weight, np.nan), weight)
    np.testing.assert_array_equal(linear(rounded, weight, weight), product)
    assert np.isfinite(attended).all() and np.isfinite(product).all()


def test_the_self_check_sees_attention_that_is_wrong_on_pairs_alone(ops: NativeOps) -> None:
    rounded = ops.fork("bf16_products")
    assert failing_ops(ops, rounded) == frozenset()
    right = rounded.attention

    def attend(qkv: Tensor, batch: Batch, **options: Any) -> Tensor:
        y = right(qkv, batch, **options)
        return y if qkv.parts == 3 else rounded.vector(2 * rounded.to_numpy(y))

    setattr(rounded, "attention", attend)  # noqa: B010
    assert failing_ops(ops, rounded) == {"attention"}


def test_fp32_has_the_bits_that_it_has_without_pairs(ops: NativeOps) -> None:
    plain = NativeOps(instruction_set=usable_or_skip(PAIRED[ops.instruction_set]))
    for m, n, k in [(1, 600, 384), (40, 33, 1025), (200, 65, 769)]:
        x, weight = normal(m, k), normal(n, k)
        for kind in ("none", "bf16", "int8", "int8_weights", "int4_weights"):
            ours, theirs = (linear(each.fork(kind), x, weight) for each in (ops, plain))
            np.testing.assert_array_equal(ours, theirs)
    qkv, batch = normal(sum(LENGTHS), 8 * 24), batch_of(LENGTHS)
    ours, theirs = (attention(each, qkv, batch, parts=3) for each in (ops, plain))
    np.testing.assert_array_equal(ours, theirs)
