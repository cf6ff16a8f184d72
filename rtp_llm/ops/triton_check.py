"""Does each kernel compute what torch computes, on this device, with this compiler? Those that do not are replaced."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from rtp_llm.core import Batch, FloatArray, Item, KeptPrefix, Prefixes, pack
from rtp_llm.errors import in_one_line
from rtp_llm.ops import Experts, Norm, PoolMode, Relative, triton_fp8
from rtp_llm.ops.torch_ops import DTYPES, TorchOps
from rtp_llm.ops.triton_launch import on
from rtp_llm.ops.triton_ops import TritonOps

logger = logging.getLogger(__name__)

# A result's error against fp32 may be this much more than twice that of torch in the same dtype: half a unit in the
# last place, which its own rounding takes; in fp32 some units, for sums in another order.
_FLOORS = {torch.float32: 2e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}
Run = Callable[[TorchOps], Any]


def checked_ops(device: str, dtype: str, *, gelu: str = "erf", rows8: bool = False) -> TritonOps:
    """TritonOps without the kernels that fail; a warning names each of them. Compiling takes seconds the first time."""
    failing = failing_ops(TritonOps(device, dtype, rows8=rows8))
    for name, problem in failing.items():
        logger.warning("the kernel of %s fails its check on %s, torch computes it: %s", name, device, problem)
    return TritonOps(device, dtype, replaced=frozenset(failing), gelu=gelu, rows8=rows8)


def failing_ops(ops: TritonOps) -> dict[str, str]:
    """Of FUSED, those that fail, and how."""
    with on(ops.device):
        failing = _failing(ops.in_16_bits())
        problem = _problem_of_rows8(ops) if ops.rows8 else ""
    return failing | {"rows8": problem} if problem else failing


def _failing(ops: TritonOps) -> dict[str, str]:
    failing: dict[str, str] = {}
    for name, run in _checks(ops.dtype):
        if name not in failing:
            problem = _problem(run, ops)
            if problem or name in ops.replaced:
                failing[name] = problem or "it cannot be compiled"
    return failing


def _problem(run: Run, ops: TritonOps) -> str:
    """Why the op is not to be trusted; empty where it is."""
    device, dtype = str(ops.device), next(name for name, dtype in DTYPES.items() if dtype == ops.dtype)
    try:
        ours = ops.to_numpy(run(ops))
    except Exception as error:  # the border: whatever a compiler or a driver says of it, torch's op serves
        return f"{in_one_line(error):.200}"
    exact, theirs = (other.to_numpy(run(other)) for other in (TorchOps(device), TorchOps(device, dtype)))
    found, torchs = (float(np.abs(y - exact).max()) for y in (ours, theirs))
    allowed = 2 * torchs + _FLOORS[ops.dtype] * max(1.0, float(np.abs(exact).max()))
    return "" if found <= allowed else f"its error is {found:.2g}, at most {allowed:.2g} is expected"


def _problem_of_rows8(ops: TritonOps) -> str:
    """Rows in 8 bits: a number may fall on the next one of the 8-bit numbers, which is an eighth away at most."""
    x = ops.vector(np.random.default_rng(0).standard_normal((9, 328), dtype=np.float32))
    weight = Norm(ops.vector(np.ones(328, np.float32)), None, 1e-6, "rms")
    try:
        ours = [
            triton_fp8.rows(x),
            triton_fp8.rows(x, "silu", gated=True),
            triton_fp8.norm(x, weight, x, stores_sum=True)[0],
        ]
        widened = [ops.to_numpy(replace(rows, wide=None)) for rows in ours]
    except Exception as error:  # the border, as above
        return f"{in_one_line(error):.200}"
    normed = TorchOps(str(ops.device)).norm((x + x).float(), replace(weight, weight=weight.weight.float()))
    exact = [x.float(), F.silu(x[:, :164].float()) * x[:, 164:].float(), normed]
    errors = [np.abs(y - e.cpu().numpy()).max() / e.abs().max().item() for y, e in zip(widened, exact, strict=True)]
    return "" if max(errors) <= 0.07 else f"its error is {max(errors):.2g} of the largest number"


def _batch(*lengths: int, num_unseen: int = 0) -> Batch:
    return pack(
        [
            Item(np.arange(n, dtype=np.int32) % 9, i, prompt_length=n // 2, num_unseen=num_unseen)
            for i, n in enumerate(lengths)
        ]
    )


def _checks(dtype: torch.dtype) -> Iterator[tuple[str, Run]]:
    """Each op of FUSED on some odd shapes; the inputs are numbers of the dtype, which no backend rounds."""
    rng = np.random.default_rng(0)
    short, long = _batch(3, 1, 37, 64, 5), _batch(150, 3, 65)

    def normal(*shape: int) -> FloatArray:
        x = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
        return np.asarray(x.to(dtype).float().numpy())

    yield from _row_checks(normal, short)
    for batch in (short, long):
        qkv = normal(batch.num_tokens, 9 * 64)
        yield "attention", _attention(qkv, batch, num_heads=3, num_kv_heads=3, head_dim=64)
        qkv = normal(batch.num_tokens, 8 * 72)
        yield "attention", _attention(qkv, batch, num_heads=4, num_kv_heads=2, head_dim=72, causal=True, window=40)
    encoder: dict[str, Any] = {"num_heads": 3, "num_kv_heads": 3, "head_dim": 64}
    yield "attention", _attention(normal(long.num_tokens, 9 * 64), long, bias=normal(3, 81), **encoder)
    unseen = _batch(3, 1, 37, 64, 5, 150, 65, num_unseen=1)
    yield "attention", _attention(normal(unseen.num_tokens, 9 * 64), unseen, **encoder)
    qkv = normal(long.num_tokens, 4 * 256)
    yield "attention", _attention(qkv, long, num_heads=2, num_kv_heads=1, head_dim=256, causal=True, softcap=9.0)
    # From 4096 tokens on tiles are larger, which is another kernel.
    large = _batch(*[150] * 27, 65)
    yield "attention", _attention(normal(large.num_tokens, 3 * 64), large, num_heads=1, num_kv_heads=1, head_dim=64)
    qkv = normal(large.num_tokens, 4 * 128)
    yield "attention", _attention(qkv, large, num_heads=2, num_kv_heads=1, head_dim=128, causal=True)
    yield "attention", _prefixed(normal)
    wanted = pack([Item(np.zeros(n, np.int32), i) for i, n in enumerate((3, 37, 5, 150))], "last")
    for batch in (short, long, large, wanted):
        qkv, tables = normal(batch.num_tokens, 9 * 64), (normal(3 * 64, 201), normal(3 * 64, 201))
        yield "relative", _attention(qkv, batch, tables=tables, **encoder)


def _row_checks(normal: Callable[..., FloatArray], batch: Batch) -> Iterator[tuple[str, Run]]:
    x, table = normal(batch.num_tokens, 328), normal(150, 328)
    weight, bias, head = normal(328), normal(328), normal(72)

    def layer_norm(ops: TorchOps) -> Norm:
        return Norm(ops.vector(weight), ops.vector(bias), 1e-12)

    def embed(ops: TorchOps) -> Any:
        ids, where = ops.upload(batch), ops.table(table)
        lookups = [(where, ids.input_ids), (where, ids.position_ids), (where, ids.input_ids)]
        return ops.embed(lookups, layer_norm(ops), 0.5)

    yield "embed", embed
    square = normal(328, 328) / np.float32(18)
    yield "norm", lambda ops: ops.norm(ops.vector(x), layer_norm(ops))
    yield (
        "norm",
        lambda ops: ops.norm(
            ops.linear(ops.vector(x), ops.matrix(square), residual=ops.vector(x)),
            Norm(ops.vector(weight), None, 1e-6, "rms"),
        ),
    )
    for heads, kv_heads, head_dim in ((3, 1, 72), (16, 8, 128)):
        qkv, angles = normal(23, (heads + 2 * kv_heads) * head_dim), normal(23, head_dim)
        gain = np.resize(head, head_dim).astype(np.float32)
        yield "rotary", partial(_rotary, qkv, angles, gain, num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim)
    for activation in ("silu", "gelu", "gelu_tanh"):
        yield "gated", partial(_gated, x, activation)
    # Of few rows and of many, whose tiles are other ones.
    matrices = normal(8, 328), normal(8 * 96, 328) / np.float32(18), normal(8 * 328, 96) / np.float32(10)
    for rows in (batch.num_tokens, 2049):
        yield "experts", partial(_experts, normal(rows, 328), *matrices, bias)
    modes: tuple[PoolMode, ...] = ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
    for mode in modes:
        yield "pool", partial(_pool, x, batch, mode)
    yield "l2_normalize", lambda ops: ops.l2_normalize(ops.vector(x))


def _rotary(qkv: FloatArray, angles: FloatArray, gain: FloatArray, ops: TorchOps, **heads: int) -> Any:
    q_norm, k_norm = (Norm(ops.vector(weight), None, 1e-6, "rms") for weight in (gain, gain[::-1].copy()))
    return ops.rotary(ops.vector(qkv), ops.vector(angles), **heads, q_norm=q_norm, k_norm=k_norm)


def _gated(x: FloatArray, activation: str, ops: TorchOps) -> Any:
    return ops.gated(ops.vector(x), activation)


def _experts(
    x: FloatArray, router: FloatArray, up: FloatArray, down: FloatArray, bias: FloatArray, ops: TorchOps
) -> Any:
    each_up, each_down = (tuple(map(ops.matrix, np.split(stacked, len(router)))) for stacked in (up, down))
    return ops.experts(ops.vector(x), Experts(ops.vector(router), each_up, each_down, ops.vector(bias), 2, "gelu"))


def _pool(x: FloatArray, batch: Batch, mode: PoolMode, ops: TorchOps) -> Any:
    return ops.pool(ops.vector(x), ops.upload(batch), mode, skip_prompt=True)


def _attention(
    qkv: FloatArray,
    batch: Batch,
    kept: tuple[FloatArray, ...] = (),
    bias: FloatArray | None = None,
    tables: tuple[FloatArray, ...] = (),
    **shape: Any,
) -> Run:
    def run(ops: TorchOps) -> Any:
        there = ops.upload(batch)
        return ops.attention(
            ops.vector(qkv), there, **shape, scale=0.2, rows=there.wanted, kept=[ops.vector(x) for x in kept],
            distance_bias=None if bias is None else ops.vector(bias),
            relative=Relative(*(ops.vector(table) for table in tables)) if tables else None,
        )  # fmt: skip

    return run


def _prefixed(normal: Callable[..., FloatArray]) -> Run:
    """Wanted rows of causal sequences, two of which begin with tokens that are kept, two with tokens of this batch."""
    ids = np.arange(300, dtype=np.int32)
    prefixes = (ids[:33], ids[:33], ids[100:145], ids[100:145], ids[:0])
    items = [
        Item(np.concatenate([prefix, ids[200 : 201 + 20 * i]]), i, prefix=prefix.tobytes())
        for i, prefix in enumerate(prefixes)
    ]
    kept = KeptPrefix(prefixes[0].tobytes(), (), 0)
    batch = pack(items, "last", Prefixes.find(items, {kept.key: kept}))
    qkv = normal(batch.num_tokens, 8 * 128)
    return _attention(
        qkv, batch, (normal(33, 4 * 128),), num_heads=4, num_kv_heads=2, head_dim=128, causal=True
    )  # fmt: skip
