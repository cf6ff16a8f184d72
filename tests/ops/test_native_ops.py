"""The compiled kernels, in every instruction set that this CPU runs, against torch in fp64 and against themselves."""

import itertools
import logging
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import Batch, FloatArray
from rtp_llm.errors import ConfigError, InvalidRequest
from rtp_llm.ops import ACTIVATIONS, Norm, native_library, native_ops
from rtp_llm.ops.native_fallback import GatedAfterwards, ThroughNumpy
from rtp_llm.ops.native_library import WeightMemory, load, measure_peak, measure_read_rate, measure_tile_peak, usable
from rtp_llm.ops.native_ops import NativeOps, checked_library
from rtp_llm.ops.numpy_ops import NumpyOps
from rtp_llm.ops.self_check import failing_ops
from tests.ops.data import assert_as_exact, batch_of, encoder, normal
from tests.ops.test_numpy_ops import EXPECTED_POOL, sdpa, tensors

torch = pytest.importorskip("torch")
F = torch.nn.functional
FUSED = {
    None: lambda y: y, "gelu": F.gelu, "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"), "relu": F.relu,
    "silu": F.silu, "tanh": torch.tanh,
}  # fmt: skip
LENGTHS = [[1], [2, 1], [13, 70, 5], [600, 33]]
HEADS = [(2, 2, 8), (3, 3, 16), (4, 2, 24), (2, 1, 32), (6, 2, 64), (2, 2, 80), (4, 1, 128), (2, 2, 13), (1, 1, 256)]

numpy_ops = NumpyOps()


@pytest.fixture
def fresh_checks() -> Iterator[None]:
    checked_library.cache_clear()
    yield
    checked_library.cache_clear()


def attention(ops: Any, qkv: FloatArray, batch: Batch, heads: tuple[int, int, int], **options: Any) -> FloatArray:
    num_heads, num_kv_heads, head_dim = heads
    y = ops.attention(
        ops.vector(qkv), batch, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim,
        scale=head_dim**-0.5, **options,
    )  # fmt: skip
    return np.asarray(ops.to_numpy(y))


def linear(ops: NativeOps, x: FloatArray, weight: FloatArray, *rest: Any) -> FloatArray:
    bias, activation, residual = (*rest, None, None, None)[:3]
    y = ops.linear(
        ops.vector(x), ops.matrix(weight), None if bias is None else ops.vector(bias), activation,
        None if residual is None else ops.vector(residual),
    )  # fmt: skip
    return ops.to_numpy(y)


@pytest.mark.parametrize("m", [1, 2, 5, 6, 7, 11, 12, 13, 25, 70, 200])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (16, 8), (33, 65), (47, 1100), (600, 96), (40, 1024)])
def test_linear(ops: NativeOps, m: int, n: int, k: int) -> None:
    x, weight = normal(m, k), normal(n, k)
    results = [F.linear(*pair).numpy() for pair in zip(*tensors(x, weight), strict=True)]
    assert_as_exact(linear(ops, x, weight), *results)


@pytest.mark.parametrize("bits_kept", [16, 32])
@pytest.mark.parametrize("k", [40, 1100])
def test_a_row_has_the_same_bits_beside_any_number_of_rows(ops: NativeOps, k: int, bits_kept: int) -> None:
    x, weight = normal(100, k), normal(70, k)
    if bits_kept == 16:
        weight = (weight.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    whole = linear(ops, x, weight)
    for m in (1, 10, 16, 17, 32, 33, 65):
        np.testing.assert_array_equal(linear(ops, x[:m], weight), whole[:m])


@pytest.mark.parametrize(("m", "n", "k"), [(12, 300, 40), (700, 100, 1100), (6400, 33, 1000)])
def test_linear_has_the_same_bits_on_any_number_of_threads(ops: NativeOps, m: int, n: int, k: int) -> None:
    x, weight = normal(m, k), normal(n, k)
    alone = linear(ops, x, weight)
    for ops.num_threads in (2, 3):
        np.testing.assert_array_equal(linear(ops, x, weight), alone)


def test_short_sequences_have_the_same_bits_on_any_number_of_threads(ops: NativeOps) -> None:
    lengths = [1 + i % 13 for i in range(50)]
    qkv, batch = normal(sum(lengths), 6 * 3 * 8), batch_of(lengths)
    alone = attention(ops, qkv, batch, (6, 6, 8))
    for ops.num_threads in (2, 3):
        np.testing.assert_array_equal(attention(ops, qkv, batch, (6, 6, 8)), alone)


def test_packed_weights_take_no_more_than_plain_ones(ops: NativeOps) -> None:
    weight = normal(64, 96)
    assert ops.matrix(weight).memory.nbytes == weight.nbytes


@pytest.mark.parametrize("activation", FUSED)
def test_linear_fuses_bias_activation_and_residual(ops: NativeOps, activation: str | None) -> None:
    x, weight, bias, residual = normal(70, 24), normal(53, 24), normal(53), normal(70, 53)
    results = [
        (FUSED[activation](F.linear(x_, weight_, bias_)) + residual_).numpy()
        for x_, weight_, bias_, residual_ in zip(*tensors(x, weight, bias, residual), strict=True)
    ]
    assert_as_exact(linear(ops, x, weight, bias, activation, residual), *results)


@pytest.mark.parametrize("activation", [name for name in FUSED if name])
def test_activation_over_its_range(ops: NativeOps, activation: str) -> None:
    x = np.linspace(-100, 100, 40001, dtype=np.float32)[:, None]
    y = linear(ops, x, np.ones((1, 1), np.float32), None, activation)
    x32, x64 = tensors(x)[0]
    reference, exact = FUSED[activation](x32).numpy(), FUSED[activation](x64).numpy()
    allowed = 2 * np.abs(reference - exact) + 3e-7 * np.maximum(1, np.abs(x))
    assert (np.abs(y - exact) <= allowed).all()


@pytest.mark.parametrize("activation", sorted(set(ACTIVATIONS) - {name for name in FUSED if name}))
def test_other_activations_go_through_numpy(ops: NativeOps, activation: str) -> None:
    x, weight, bias, residual = normal(3, 24), normal(5, 24), normal(5), normal(3, 5)
    expected = numpy_ops.linear(x, weight, bias, activation, residual)
    np.testing.assert_allclose(linear(ops, x, weight, bias, activation, residual), expected, atol=1e-5)


@pytest.mark.parametrize("activation", FUSED)
def test_nan_stays_in_its_row(ops: NativeOps, activation: str | None) -> None:
    x = normal(9, 24)
    x[4, 3] = np.nan
    y = linear(ops, x, normal(17, 24), None, activation)
    assert np.isnan(y[4]).all() and not np.isnan(np.delete(y, 4, axis=0)).any()


def attention_of_torch(
    lengths: list[int], heads: tuple[int, int, int], causal: bool, window: int | None
) -> list[FloatArray]:
    """Queries, keys and values, and torch's attention of them in fp32 and in fp64.

    In fp32 in several orders of the heads' dimensions: one large score decides what the largest error is, and torch's
    own differs twofold between orders of one sum.
    """
    num_heads, num_kv_heads, head_dim = heads
    qkv = normal(sum(lengths), (num_heads + 2 * num_kv_heads) * head_dim)
    by_head = qkv.reshape(len(qkv), -1, head_dim)
    rng = np.random.default_rng(0)
    orders = [np.arange(head_dim), *(rng.permutation(head_dim) for _ in range(7))]
    ordered = [np.concatenate([by_head[:, :-num_kv_heads, order], by_head[:, -num_kv_heads:]], 1) for order in orders]
    single, double = (
        [
            sdpa(x.to(dtype).flatten(1), lengths, num_heads, num_kv_heads, head_dim**-0.5, causal, window).numpy()
            for x in map(torch.from_numpy, arrays)
        ]
        for dtype, arrays in ((torch.float32, ordered), (torch.float64, [by_head]))
    )
    return [qkv, np.stack(single), double[0]]


@pytest.mark.parametrize("window", [None, 1, 7, 64])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_attention(
    ops: NativeOps, lengths: list[int], heads: tuple[int, int, int], causal: bool, window: int | None, kept: Any
) -> None:
    qkv, *results = kept(attention_of_torch, lengths, heads, causal, window)
    assert_as_exact(attention(ops, qkv, batch_of(lengths), heads, causal=causal, window=window), *results)


def test_attention_with_scores_far_apart(ops: NativeOps) -> None:
    qkv, lengths = 30 * normal(40, 96), [40]
    results = [sdpa(x, lengths, 1, 1, 32**-0.5, False, None).numpy() for x in tensors(qkv)[0]]
    assert_as_exact(attention(ops, qkv, batch_of(lengths), (1, 1, 32)), *results)


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("size", [1, 5, 16, 100, 384, 1024])
def test_norm(ops: NativeOps, size: int, kind: Any) -> None:
    x, weight, bias = 3 * normal(7, size) + 1, normal(size), None if kind == "rms" else normal(size)
    function = F.layer_norm if kind == "layer" else F.rms_norm
    rest = () if bias is None else (torch.from_numpy(bias),)
    reference = function(torch.from_numpy(x), (size,), torch.from_numpy(weight), *rest, eps=1e-6).numpy()
    norm = Norm(ops.vector(weight), None if bias is None else ops.vector(bias), 1e-6, kind)
    exact = numpy_ops.norm(x, Norm(weight, bias, 1e-6, kind)).astype(np.float64)
    assert_as_exact(ops.to_numpy(ops.norm(ops.vector(x), norm)), reference, exact, floor=1e-6)


@pytest.mark.parametrize("size", [1, 33, 384])
def test_embed(ops: NativeOps, size: int) -> None:
    batch = ops.upload(batch_of([13, 1, 50]))
    tables = [normal(100, size), normal(60, size, seed=1), normal(2, size)]
    ids = [batch.input_ids, batch.position_ids, batch.token_type_ids]
    y = ops.embed([(ops.table(table), i) for table, i in zip(tables, ids, strict=True)])
    np.testing.assert_array_equal(ops.to_numpy(y), numpy_ops.embed(list(zip(tables, ids, strict=True))))


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("rows", [0, 1, 70])
@pytest.mark.parametrize("size", [1, 5, 100, 384])
def test_norm_with_residual(ops: NativeOps, size: int, rows: int, kind: Any) -> None:
    norm = Norm(ops.vector(normal(size)), ops.vector(normal(size, seed=1)), 1e-6, kind)
    x, residual = ops.vector(normal(rows, size)), normal(rows, size, seed=2)
    y = ops.to_numpy(ops.norm(x, norm, ops.vector(residual)))
    np.testing.assert_array_equal(y, ops.to_numpy(ops.norm(x, norm)) + residual)


@pytest.mark.parametrize("size", [1, 33, 384])
def test_embed_scales(ops: NativeOps, size: int) -> None:
    tables, norm = [normal(100, size), normal(60, size, seed=1)], Norm(ops.vector(normal(size)), None, 1e-5, "rms")
    ids = [np.array([1, 8, 0], np.int32), np.array([2, 0, 59], np.int32)]
    lookups = [(ops.table(table), i) for table, i in zip(tables, ids, strict=True)]
    y = ops.embed(lookups, scale=27.7)
    expected = numpy_ops.embed(list(zip(tables, ids, strict=True)), scale=27.7)
    np.testing.assert_array_equal(ops.to_numpy(y), expected)
    fused = ops.to_numpy(ops.embed(lookups, norm, 27.7))
    np.testing.assert_array_equal(fused, ops.to_numpy(ops.norm(ops.vector(expected), norm)))


def test_embed_norms_as_norm_does(ops: NativeOps) -> None:
    table, ids = ops.table(normal(9, 40)), np.array([1, 8, 0], np.int32)
    norm = Norm(ops.vector(normal(40)), ops.vector(normal(40, seed=1)), 1e-5)
    fused, apart = ops.embed([(table, ids)], norm), ops.norm(ops.embed([(table, ids)]), norm)
    np.testing.assert_array_equal(ops.to_numpy(fused), ops.to_numpy(apart))


@pytest.mark.parametrize("bad", [-1, 9, 2**31 - 1])
def test_embed_refuses_ids_outside_the_table(ops: NativeOps, bad: int) -> None:
    with pytest.raises(InvalidRequest, match=f"id {bad} is outside the model's table of 9 rows"):
        ops.embed([(ops.table(normal(9, 4)), np.array([1, bad], np.int32))])


@pytest.mark.parametrize("skip_prompt", [False, True])
@pytest.mark.parametrize("mode", EXPECTED_POOL)
def test_pool(ops: NativeOps, mode: Any, skip_prompt: bool) -> None:
    batch, x = batch_of([13, 1, 70, 3], [4, 1, 0, 3]), normal(87, 100)
    y = ops.pool(ops.vector(x), batch, mode, skip_prompt=skip_prompt)
    expected = numpy_ops.pool(x, batch, mode, skip_prompt=skip_prompt)
    np.testing.assert_allclose(ops.to_numpy(y), expected, rtol=1e-6, atol=1e-7)


def test_pool_max_keeps_nan(ops: NativeOps) -> None:
    x = np.array([[1.0], [np.nan], [2.0]], np.float32)
    assert np.isnan(ops.to_numpy(ops.pool(ops.vector(x), batch_of([3]), "max"))).all()


def test_concat(ops: NativeOps) -> None:
    x, y, z = normal(3, 2), normal(3, 40), normal(3, 1)
    result = ops.to_numpy(ops.concat([ops.vector(x), ops.vector(y), ops.vector(z)]))
    np.testing.assert_array_equal(result, np.hstack([x, y, z]))


def test_l2_normalize(ops: NativeOps) -> None:
    x = np.vstack([normal(4, 33), np.zeros((1, 33), np.float32)])
    np.testing.assert_allclose(ops.to_numpy(ops.l2_normalize(ops.vector(x))), numpy_ops.l2_normalize(x), rtol=1e-6)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_a_sequence_has_the_same_bits_in_any_batch(ops: NativeOps, num_threads: int) -> None:
    lengths = [7, 1, 40, 300, 13, 12]
    alone = {length: encoder(ops, batch_of([length]))[0] for length in lengths}
    ops.num_threads = num_threads
    for order in itertools.islice(itertools.permutations(lengths), 0, 720, 60):
        together = encoder(ops, batch_of(order))
        assert all((row == alone[length]).all() for row, length in zip(together, order, strict=True))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 9])
def test_attention_has_the_same_bits_on_any_number_of_threads(ops: NativeOps, causal: bool, window: int | None) -> None:
    qkv, batch = normal(450, 96), batch_of([400, 50])
    results = []
    for ops.num_threads in (1, 2, 3, 8):
        results.append(attention(ops, qkv, batch, (1, 1, 32), causal=causal, window=window))
    assert all((result == results[0]).all() for result in results)


def test_forks_compute_at_the_same_time(ops: NativeOps) -> None:
    batch = batch_of([30, 5, 60])
    expected = encoder(ops, batch)
    ops.num_threads = 2

    def compute(fork: NativeOps) -> list[FloatArray]:
        return [encoder(fork, batch) for _ in range(10)]

    with ThreadPoolExecutor(3) as pool:
        for results in pool.map(compute, [ops.fork() for _ in range(3)]):
            assert all((result == expected).all() for result in results)


def test_nothing_in_nothing_out(ops: NativeOps) -> None:
    ids = np.zeros(0, np.int32)
    x = ops.embed([(ops.table(normal(3, 8)), ids)])
    y = ops.l2_normalize(ops.linear(x, ops.matrix(normal(4, 8))))
    assert ops.to_numpy(y).shape == (0, 4)


@pytest.mark.parametrize("shape", [(3, 9), (4, 8)])
def test_shapes_are_checked_when_recorded(ops: NativeOps, shape: tuple[int, int]) -> None:
    with pytest.raises(AssertionError):
        ops.linear(ops.vector(normal(3, 8)), ops.matrix(normal(4, 9)), residual=ops.vector(normal(*shape)))


def test_a_batch_of_another_size_is_refused(ops: NativeOps) -> None:
    with pytest.raises(AssertionError, match="a batch of 5 tokens for 4 rows"):
        ops.pool(ops.vector(normal(4, 8)), batch_of([5]), "mean")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python warns of fork with threads")
def test_a_forked_process_computes(ops: NativeOps) -> None:
    ops.num_threads = 2
    batch = batch_of([100, 3])
    expected = encoder(ops, batch)
    child = os.fork()
    if child == 0:
        os._exit(0 if (encoder(ops, batch) == expected).all() else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_the_kernels_pass_their_self_check(instruction_set: str) -> None:
    assert failing_ops(NativeOps(instruction_set=instruction_set)) == frozenset()


@pytest.mark.usefixtures("fresh_checks")
def test_a_failed_self_check_drops_to_the_next_instruction_set(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if len(usable()) < 2:
        pytest.skip("one instruction set only")
    broken = {usable()[0]: frozenset({"linear"})}
    monkeypatch.setattr(native_ops, "failing_ops", lambda ops, *_: broken.get(ops.instruction_set, frozenset()))
    with caplog.at_level(logging.WARNING):
        assert NativeOps().instruction_set == usable()[1]
    assert f"{usable()[0]}: linear" in caplog.text and len(caplog.records) == 1


@pytest.mark.usefixtures("fresh_checks")
@pytest.mark.parametrize("op", ["embed", "norm", "attention", "pool", "concat", "l2_normalize"])
def test_an_op_that_failed_its_self_check_goes_through_numpy(
    op: str, instruction_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of([5, 30])
    expected = encoder(NativeOps(instruction_set=instruction_set), batch)
    checked_library.cache_clear()
    monkeypatch.setattr(native_ops, "failing_ops", lambda *_: frozenset({op}))
    ops = NativeOps(instruction_set=instruction_set).fork()
    assert isinstance(getattr(ops, op), ThroughNumpy)
    np.testing.assert_allclose(encoder(ops, batch), expected, atol=1e-6)


@pytest.mark.usefixtures("fresh_checks")
def test_gates_that_failed_their_self_check_are_an_op_of_their_own(
    instruction_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gates(ops: NativeOps) -> FloatArray:
        return ops.to_numpy(ops.gated_linear(ops.vector(x), ops.matrix(normal(128, 40)), ops.vector(bias), "silu"))

    x, bias = normal(30, 40), normal(128)
    expected = gates(NativeOps(instruction_set=instruction_set))
    checked_library.cache_clear()
    monkeypatch.setattr(native_ops, "failing_ops", lambda *_: frozenset({"gated_linear"}))
    ops = NativeOps(instruction_set=instruction_set).fork()
    assert isinstance(ops.gated_linear, GatedAfterwards)
    np.testing.assert_array_equal(gates(ops), expected)


@pytest.mark.usefixtures("fresh_checks")
def test_wrong_products_everywhere_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    if not usable():
        pytest.skip("nothing was built")
    monkeypatch.setattr(native_ops, "failing_ops", lambda *_: frozenset({"linear"}))
    with pytest.raises(ConfigError, match="--backend numpy"):
        NativeOps()


def test_an_instruction_set_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_library, "usable", lambda: ("generic",))
    with pytest.raises(ConfigError, match="avx512 cannot be used.*runs generic"):
        load.__wrapped__("avx512")


@pytest.mark.usefixtures("fresh_checks")
@pytest.mark.parametrize("instruction_set", ["auto", "avx2"])
def test_kernels_that_were_not_built_are_an_error(instruction_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_ops, "load", load.__wrapped__)
    monkeypatch.setattr(native_library, "usable", lambda: ())
    monkeypatch.setattr(native_ops, "usable", lambda: ())
    with pytest.raises(ConfigError, match="apt install g"):
        NativeOps(instruction_set=instruction_set)


def test_weights_lie_side_by_side() -> None:
    memory = WeightMemory()
    sizes = [1, 17, 100, 5000, (WeightMemory._CHUNK >> 2) + 1, 3]
    arrays = [memory.take(size) for size in sizes]
    for i, array in enumerate(arrays):
        array[:] = i
    assert all(
        len(array) == size and (array == i).all() for i, (array, size) in enumerate(zip(arrays, sizes, strict=True))
    )
    assert all(array.ctypes.data % 64 == 0 for array in arrays)
    assert arrays[1].ctypes.data - arrays[0].ctypes.data == 64


def test_the_peak_is_a_speed() -> None:
    if not usable():
        pytest.skip("nothing was built")
    assert measure_peak(2, 0.01) > 1
    assert measure_read_rate(2, 0.01, megabytes=1) > 0.1
    assert (measure_tile_peak(2, 0.01) > 1) == (usable()[0] == "amx")
