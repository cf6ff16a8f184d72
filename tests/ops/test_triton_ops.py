"""The Triton kernels beside torch and NumpyOps: in Triton's interpreter (fp32, fp16), or on a GPU (bf16 too)."""

import logging
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import Batch, FloatArray, Item, KeptPrefix, Prefixes, pack
from rtp_llm.ops import Norm
from rtp_llm.ops.numpy_ops import NumpyOps
from tests.ops.data import assert_as_exact, batch_of, normal
from tests.ops.interpreter import DEVICE, ON_DEVICE_ALONE
from tests.ops.test_shared_prefix import items_of, rows_of, shared_pack

torch = pytest.importorskip("torch")

from rtp_llm.errors import ConfigError  # noqa: E402
from rtp_llm.ops import triton_check, triton_norm, triton_pool  # noqa: E402
from rtp_llm.ops.torch_ops import DTYPES, TorchOps  # noqa: E402
from rtp_llm.ops.triton_ops import FUSED, Sum, TritonOps  # noqa: E402

# One rounding of a result to the dtype.
FLOORS = {"fp32": 1e-6, "fp16": 2**-11, "bf16": 2**-8}
Heads = tuple[int, int, int]
numpy_ops = NumpyOps()


@pytest.fixture(params=["fp32", "fp16", *ON_DEVICE_ALONE])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def rounded(x: FloatArray, dtype: str) -> FloatArray:
    """The nearest numbers of the dtype: what every backend gets."""
    return np.asarray(torch.from_numpy(x).to(DTYPES[dtype]).float().numpy())


def there(x: FloatArray) -> Any:
    """As it is, where the kernels run."""
    return torch.from_numpy(x).to(DEVICE)


def assert_close(run: Any, dtype: str) -> None:
    """run(ops) -> a tensor: error against NumpyOps at most twice that of torch in the same dtype, and a rounding."""
    ours, theirs = TritonOps(DEVICE, dtype), TorchOps(DEVICE, dtype)
    y, reference = (np.asarray(ops.to_numpy(run(ops))) for ops in (ours, theirs))
    assert not ours.replaced
    assert_as_exact(y, reference, np.asarray(run(numpy_ops), np.float64), floor=FLOORS[dtype])


def attention(
    qkv: FloatArray, batch: Batch, heads: Heads, kept: Any = (), bias: FloatArray | None = None, **visible: Any
) -> Any:
    num_heads, num_kv_heads, head_dim = heads

    def run(ops: Any) -> Any:
        there = ops.upload(batch)
        return ops.attention(
            ops.vector(qkv), there, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, scale=0.2,
            rows=there.wanted, kept=[ops.vector(x) for x in kept],
            distance_bias=None if bias is None else ops.vector(bias), **visible,
        )  # fmt: skip

    return run


def qkv_of(num_tokens: int, heads: Heads, dtype: str) -> FloatArray:
    return rounded(normal(num_tokens, (heads[0] + 2 * heads[1]) * heads[2]), dtype)


VISIBLE: list[dict[str, Any]] = [{}, {"causal": True}, {"window": 9}, {"causal": True, "window": 40}]
LENGTHS = [[1], [64, 1, 63, 65, 2, *[3] * 40], [130, 7, 7]]


@pytest.mark.parametrize("visible", VISIBLE)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_attention(lengths: list[int], visible: dict[str, Any], dtype: str) -> None:
    batch = batch_of(lengths)
    assert_close(attention(qkv_of(batch.num_tokens, (2, 1, 32), dtype), batch, (2, 1, 32), **visible), dtype)


@pytest.mark.parametrize("heads", [(1, 1, 32), (3, 1, 40), (2, 2, 64), (1, 1, 96), (2, 1, 128), (1, 1, 256), (1, 1, 2)])
def test_attention_of_any_head_dim(heads: Heads) -> None:
    batch = batch_of([70, 5, 20])
    assert_close(attention(qkv_of(batch.num_tokens, heads, "fp16"), batch, heads, causal=True), "fp16")


def test_attention_in_large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtp_llm.ops.tiles._LARGE_BATCH", 100)
    batch = batch_of([200, 3, 5, 66])
    for visible in VISIBLE:
        assert_close(attention(qkv_of(batch.num_tokens, (1, 1, 32), "fp16"), batch, (1, 1, 32), **visible), "fp16")


@pytest.mark.parametrize("reads", ["first", "last"])
@pytest.mark.parametrize("visible", VISIBLE)
def test_attention_of_wanted_rows(visible: dict[str, Any], reads: Any) -> None:
    batch = pack(items_of([1, 33, 100, 2, 64, *[2] * 20], [0] * 25), reads)
    assert_close(attention(qkv_of(batch.num_tokens, (2, 1, 32), "fp16"), batch, (2, 1, 32), **visible), "fp16")


@pytest.mark.parametrize("wants", [False, True])
@pytest.mark.parametrize(("prefix", "visible"), [(1, {}), (33, {"window": 5}), (64, {}), (33, {"window": 70})])
def test_attention_with_a_shared_prefix(prefix: int, visible: dict[str, Any], wants: bool) -> None:
    items, heads = items_of([1, 20, 5, 70], [prefix, prefix, 0, prefix]), (2, 1, 32)
    whole, shared = pack(items, "last"), shared_pack(items)
    assert shared.num_tokens == whole.num_tokens - 2 * prefix
    values = qkv_of(len(np.unique(whole.input_ids)), heads, "fp16")
    if not wants:
        shared = Batch(**{**{name: getattr(shared, name) for name in Batch.__slots__}, "wanted": None})
    qkv = rows_of(values, np.unique(whole.input_ids), shared)
    assert_close(attention(qkv, shared, heads, causal=True, **visible), "fp16")


def test_attention_with_kept_prefixes() -> None:
    ids, heads = np.arange(200, dtype=np.int32), (4, 2, 32)
    prefixes = (ids[:33], ids[50:57], ids[100:145], ids[100:145], ids[:0])
    items = [Item(np.r_[part, ids[180 : 181 + i]], i, prefix=part.tobytes()) for i, part in enumerate(prefixes)]
    found = [KeptPrefix(part.tobytes(), (), 0) for part in prefixes[:2]]
    kept = {prefix.key: prefix for prefix in found}
    batch = pack(items, "last", Prefixes.find(items, kept))
    assert batch.prefix_of is not None and batch.prefix_of.tolist() == [-1, -2, -3, 0, 0, -1]
    qkv, layers = qkv_of(batch.num_tokens, heads, "fp32"), [normal(n, 128) for n in (33, 7)]
    assert_close(attention(qkv, batch, heads, layers, causal=True), "fp32")


@pytest.mark.parametrize("visible", VISIBLE)
@pytest.mark.parametrize(("lengths", "reach"), [([64, 1, 63, 65, 2, *[3] * 40], 30), ([130, 7, 7], 1), ([70], 129)])
def test_attention_with_a_distance_bias(lengths: list[int], reach: int, visible: dict[str, Any], dtype: str) -> None:
    batch, heads, bias = batch_of(lengths), (4, 2, 32), rounded(3 * normal(4, 2 * reach - 1), dtype)
    assert_close(attention(qkv_of(batch.num_tokens, heads, dtype), batch, heads, bias=bias, **visible), dtype)


def test_a_distance_bias_behind_a_shared_prefix() -> None:
    items, heads, bias = items_of([1, 20, 5, 70], [33, 33, 0, 33]), (2, 1, 80), rounded(normal(2, 99), "fp16")
    batch = shared_pack(items)
    qkv = qkv_of(batch.num_tokens, heads, "fp16")
    for window in (None, 40):
        assert_close(attention(qkv, batch, heads, bias=bias, causal=True, window=window), "fp16")


@pytest.mark.parametrize("visible", VISIBLE)
@pytest.mark.parametrize("softcap", [0.5, 20.0])
def test_attention_with_a_softcap(softcap: float, visible: dict[str, Any], dtype: str) -> None:
    batch, heads, bias = batch_of([64, 1, 63, 5]), (4, 2, 32), rounded(3 * normal(4, 59), dtype)
    qkv = qkv_of(batch.num_tokens, heads, dtype)
    assert_close(attention(qkv, batch, heads, softcap=softcap, **visible), dtype)
    assert_close(attention(qkv, batch, heads, bias=bias, softcap=softcap, **visible), dtype)


def test_a_softcap_behind_a_shared_prefix() -> None:
    batch, heads = shared_pack(items_of([1, 20, 5, 70], [33, 33, 0, 33])), (2, 1, 80)
    qkv = qkv_of(batch.num_tokens, heads, "fp16")
    assert_close(attention(qkv, batch, heads, causal=True, softcap=2.0), "fp16")


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_what_is_not_a_number_stays_in_its_sequence() -> None:
    batch, heads = batch_of([5, 3, 4, 70]), (2, 1, 32)
    qkv = qkv_of(batch.num_tokens, heads, "fp16")
    ops = TritonOps(DEVICE, "fp16")
    expected = ops.to_numpy(attention(qkv, batch, heads)(ops))
    for poison in (np.nan, np.inf):
        qkv[6] = poison
        ours = ops.to_numpy(attention(qkv, batch, heads)(ops))
        assert np.isnan(ours[5:8]).all()
        np.testing.assert_array_equal(np.delete(ours, range(5, 8), 0), np.delete(expected, range(5, 8), 0))


def test_rows_outside_the_batch_are_not_read() -> None:
    batch, heads = batch_of([5, 66]), (1, 1, 32)
    qkv = np.full((200, 96), np.nan, np.float32)
    qkv[:71] = qkv_of(71, heads, "fp16")
    ops = TritonOps(DEVICE, "fp16")
    there = ops.upload(batch)
    y = ops.attention(ops.vector(qkv)[:71], there, num_heads=1, num_kv_heads=1, head_dim=32, scale=0.2)
    assert np.isfinite(ops.to_numpy(y)).all()


@pytest.mark.parametrize("size", [1, 33, 384, 1024, 2500])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norm(kind: Any, size: int, dtype: str) -> None:
    x, weight, bias = (rounded(3 * normal(5, size)[i] + 1, dtype) for i in (slice(None), 0, 1))
    assert_close(
        lambda ops: ops.norm(
            ops.vector(x), Norm(ops.vector(weight), ops.vector(bias) if kind == "layer" else None, 1e-5, kind)
        ),
        dtype,
    )


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norm_with_residual(kind: Any, dtype: str) -> None:
    """Read by a norm, by an op that wants the sum, and as it is."""
    x, residual, weight = (rounded(normal(5, 72, seed=i), dtype) for i in range(3))

    def run(ops: Any) -> Any:
        norm = Norm(ops.vector(weight[0]), None, 1e-5, kind)
        y = ops.norm(ops.vector(x), norm, ops.vector(residual))
        return ops.concat([ops.norm(y, norm), ops.rows(y, ops.upload(batch_of([5])).position_ids), y])

    assert_close(run, dtype)


def test_norm_with_residual_is_not_in_8_bits() -> None:
    """Of ops whose norms give rows in 8 bits: a sum is read by another norm."""
    x, residual, weight = normal(5, 64), normal(5, 64, seed=1), normal(64, seed=2)

    def run(ops: Any) -> Any:
        y = ops.norm(ops.vector(x), Norm(ops.vector(weight), None, 1e-5, "rms"), ops.vector(residual))
        return ops.to_numpy(y)

    narrow = TritonOps(DEVICE, "bf16", rows8=True)
    np.testing.assert_array_equal(run(narrow), run(narrow.in_16_bits()))


@pytest.mark.parametrize("num_tables", [1, 2, 3, 4])
@pytest.mark.parametrize("with_norm", [False, True])
def test_embed(with_norm: bool, num_tables: int, dtype: str) -> None:
    tables = [rounded(normal(90, 72, seed=i), dtype) for i in range(num_tables)]
    weight, batch = rounded(normal(72), dtype), batch_of([40, 1, 5])

    def run(ops: Any) -> Any:
        norm = Norm(ops.vector(weight), ops.vector(weight), 1e-12) if with_norm else None
        there = ops.upload(batch)
        return ops.embed(
            [(ops.table(table), (there.input_ids, there.position_ids)[i % 2]) for i, table in enumerate(tables)],
            norm,
            3.5 if with_norm else 1.0,
        )

    assert_close(run, dtype)


@pytest.mark.parametrize("norms", ["", "q", "k", "qk"])
@pytest.mark.parametrize("heads", [(1, 1, 2), (4, 2, 8), (3, 1, 34), (14, 2, 64), (6, 2, 128)])
def test_rotary(heads: Heads, norms: str, dtype: str) -> None:
    num_heads, num_kv_heads, head_dim = heads
    qkv, cos_sin = qkv_of(9, heads, dtype), rounded(normal(9, head_dim), dtype)
    weights = {name: rounded(normal(head_dim, seed=i), dtype) for i, name in enumerate(norms)}
    assert_close(
        lambda ops: ops.rotary(
            ops.vector(qkv), ops.vector(cos_sin), num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim,
            **{f"{name}_norm": Norm(ops.vector(weight), None, 1e-6, "rms") for name, weight in weights.items()},
        ),
        dtype,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("size", [1, 77, 1100])
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu", "sigmoid", "mish"])
def test_gated(activation: str, size: int, dtype: str) -> None:
    x = rounded(3 * normal(3, 2 * size), dtype)
    assert_close(lambda ops: ops.gated(ops.vector(x), activation), dtype)


@pytest.mark.parametrize("skip_prompt", [False, True])
@pytest.mark.parametrize("mode", ["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_pool(mode: Any, skip_prompt: bool, dtype: str) -> None:
    batch, x = batch_of([3, 1, 90, 33], [1, 1, 40, 0]), rounded(normal(127, 70), dtype)
    assert_close(lambda ops: ops.pool(ops.vector(x), ops.upload(batch), mode, skip_prompt=skip_prompt), dtype)


@pytest.mark.parametrize("mode", ["mean", "max"])
def test_pool_tells_of_what_is_not_a_number(mode: Any) -> None:
    batch, x = batch_of([3, 40]), normal(43, 5)
    x[1, 2] = x[42, 0] = np.nan
    ops = TritonOps(DEVICE, "fp32")
    y = ops.to_numpy(ops.pool(ops.vector(x), ops.upload(batch), mode))
    assert np.isnan(y).tolist() == [[False, False, True, False, False], [True, False, False, False, False]]


def test_l2_normalize(dtype: str) -> None:
    x = rounded(np.vstack([normal(4, 33), np.zeros((1, 33), np.float32)]), dtype)
    assert_close(lambda ops: ops.l2_normalize(ops.vector(x)), dtype)


def test_l2_normalize_of_a_slice_in_a_narrower_dtype() -> None:
    x = normal(4, 33)
    y = triton_pool.l2_normalize(there(x), 8, torch.float16)
    assert y.dtype == torch.float16
    np.testing.assert_allclose(y.float().cpu().numpy(), numpy_ops.l2_normalize(x[:, :8]), atol=5e-4)


def residual_norm(kind: Any, x: FloatArray, weight: FloatArray) -> Any:
    """A layer's end: the norm of a sum, and the sum as the next residual."""

    def run(ops: Any) -> Any:
        total = ops.linear(ops.vector(x), ops.matrix(weight), residual=ops.vector(x))
        normed = ops.norm(total, Norm(ops.vector(weight[0]), None, 1e-5, kind))
        return ops.linear(normed, ops.matrix(weight), residual=total)

    return run


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_a_residual_is_added_by_the_norm(kind: Any) -> None:
    x, weight = rounded(normal(5, 96), "fp16"), rounded(normal(96, 96) / np.float32(10), "fp16")
    assert isinstance(residual_norm(kind, x, weight)(TritonOps(DEVICE, "fp16")), Sum)
    assert_close(residual_norm(kind, x, weight), "fp16")


def test_rows_in_fp32_stay_so_through_a_head() -> None:
    ops, x = TritonOps(DEVICE, "fp16"), there(normal(3, 32))
    y = ops.linear(x, ops.matrix(normal(8, 32)), ops.vector(normal(8)), "tanh", residual=x[:, :8])
    assert y.dtype == torch.float32


def test_tanh_for_gelu_is_on_request() -> None:
    x, weight, bias = (there(normal(*shape)).half() for shape in ((3, 32), (8, 32), (8,)))
    erf, tanh = (TritonOps(DEVICE, "fp16", gelu=form).linear(x, weight, bias, "gelu") for form in ("erf", "tanh"))
    torch.testing.assert_close(erf, TorchOps(DEVICE, "fp16").linear(x, weight, bias, "gelu"), rtol=0, atol=0)
    # A GPU applies the tanh form before the product is rounded.
    assert 0 < (erf - tanh).abs().max() < (2e-3 if DEVICE == "cpu" else 2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("rows8", [False, True])
def test_the_check_passes_all_kernels(rows8: bool) -> None:
    assert triton_check.failing_ops(TritonOps(DEVICE, "fp16", rows8=rows8)) == {}


def test_a_wrong_kernel_is_replaced_by_torch(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    right = triton_norm.embed
    monkeypatch.setattr(triton_norm, "embed", lambda *args: right(*args) * 1.1)
    monkeypatch.setattr(triton_pool, "l2_normalize", lambda x: 1 / 0)
    checks = [check for check in triton_check._checks(torch.float16) if check[0] in ("embed", "l2_normalize", "norm")]
    monkeypatch.setattr(triton_check, "_checks", lambda dtype: checks)
    ops = triton_check.checked_ops(DEVICE, "fp16")
    assert ops.replaced == {"embed", "l2_normalize"} < set(FUSED)
    assert f"the kernel of embed fails its check on {DEVICE}" in caplog.text and "ZeroDivisionError" in caplog.text
    table, ids = ops.table(normal(9, 8)), torch.tensor([1, 2], device=DEVICE)
    torch.testing.assert_close(ops.embed([(table, ids)]), table[1:3], rtol=0, atol=0)


def test_a_kernel_that_cannot_be_compiled_is_replaced_where_it_is_met(caplog: pytest.LogCaptureFixture) -> None:
    from triton.runtime.errors import OutOfResources

    def broken(*args: object) -> Any:
        raise OutOfResources(300, 200, "shared memory")

    ops = TritonOps(DEVICE, "fp16")
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr("rtp_llm.ops.triton_gated.gated", broken)
        y = ops.gated(ops.vector(normal(3, 8)), "silu")
    assert ops.replaced == {"gated"} and y.shape == (3, 4) and "the kernel of gated" in caplog.text


def test_quantizations_that_are_not_there() -> None:
    quantizations: tuple[Any, ...] = ("int8", "fp8")
    for quantization in quantizations:
        with pytest.raises(ConfigError, match=quantization):
            TritonOps(DEVICE, "fp16").fork(quantization)
