"""Every Triton kernel beside torch's ops, in the same dtype on the same inputs: python -m benchmarks.gpu_kernels

For each: its error against fp32 and torch's, both times, and the bandwidth or the FLOP rate that it reaches, of what
the work needs at least (each input read once, each result written once; only pairs of tokens that see each other). Ends
with one JSON line. `--dry-run`: tiny shapes on the CPU, in Triton's interpreter (TRITON_INTERPRET=1), whose times mean
nothing.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_rows import problem
from benchmarks.report import finish, machine, table
from rtp_llm.core import Batch, Item, pack
from rtp_llm.ops import Norm, Relative, triton_fp8
from rtp_llm.ops.torch_ops import DTYPES, TorchOps
from rtp_llm.ops.triton_ops import TritonOps

TOKENS = 16_896  # 132 multiprocessors times 128 rows
LENGTHS = (32, 128, 512, 2048, 8192)
# name -> query heads, key heads, head_dim, causal, dtype
ATTENTION = {
    "bge-small": (12, 12, 32, False, "fp16"), "bge-base": (12, 12, 64, False, "fp16"),
    "bge-large": (16, 16, 64, False, "fp16"), "Qwen3-0.6B": (16, 8, 128, True, "bf16"),
    "Qwen3-8B": (32, 8, 128, True, "bf16"),
}  # fmt: skip
# Encoders whose attention has more, and what; heads as bge-base's.
MORE = {"MPNet": "bias", "ColBERT": "unseen", "DeBERTa-v3": "relative"}
REACH = {"bias": 129, "relative": 513}  # of their tables
HIDDEN = {"fp16": (384, 768, 1024), "bf16": (1024, 2560, 4096)}
INTERMEDIATE = (3072, 9728, 12288)
# So much over twice torch's error is a rounding of the result: half a unit in the last place.
FLOORS = {"fp16": 2**-11, "bf16": 2**-8}


@dataclass(frozen=True)
class Row:
    """One kernel at one shape; `rate` is in TFLOP/s where the work has products, else in GB/s."""

    name: str
    dtype: str
    error: float
    torch_error: float
    ok: bool
    milliseconds: float
    torch_milliseconds: float
    rate: float
    unit: str


@dataclass(frozen=True)
class Case:
    """`run` gets ops of the dtype, or of fp32 for the truth, and its inputs, as `inputs` made them for these ops."""

    name: str
    dtype: str
    inputs: Callable[[TorchOps], Any]
    run: Callable[[TorchOps, Any], Any]
    num_bytes: float
    flops: float = 0.0


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    tokens: int = TOKENS
    lengths: Sequence[int] = LENGTHS
    models: Sequence[str] = tuple(ATTENTION)
    scale: int = 1  # hidden sizes are divided by it
    seconds: float = 0.05
    attention_dtype: str | None = None  # instead of each model's own


# Products of bf16 are wrong in Triton's interpreter, which multiplies their bits as integers.
TINY = Sizes(96, lengths=(32,), models=("bge-small", "Qwen3-0.6B"), scale=64, seconds=0.0, attention_dtype="fp16")


def normal(ops: TorchOps, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The same numbers of the dtype whatever ops they are for."""
    generator = torch.Generator(ops.device).manual_seed(sum(shape))
    x = torch.randn(shape, generator=generator, device=ops.device)
    return x.to(DTYPES[dtype]).to(ops.dtype)


def batch_of(num_tokens: int, length: int) -> Batch:
    """Lengths from half to one and a half times `length`, so many tokens in all."""
    rng, lengths = np.random.default_rng(0), list[int]()
    while (rest := num_tokens - sum(lengths)) > 0:
        lengths.append(min(rest, int(rng.integers(length // 2, length * 3 // 2, endpoint=True))))
    return pack([Item(np.zeros(n, np.int32), i) for i, n in enumerate(lengths)])


def attention_cases(sizes: Sizes) -> Iterator[Case]:
    for model in sizes.models:
        heads, kv_heads, head_dim, causal, own_dtype = ATTENTION[model]
        dtype = sizes.attention_dtype or own_dtype
        shape: dict[str, Any] = {
            "num_heads": heads, "num_kv_heads": kv_heads, "head_dim": head_dim, "scale": head_dim**-0.5,
            "causal": causal,
        }  # fmt: skip
        for length in sizes.lengths:
            if length > sizes.tokens or (length > 512 and model.startswith("bge")):
                continue
            batch = batch_of(sizes.tokens, length)
            pairs = float(np.square(np.diff(batch.cu_seqlens).astype(np.float64)).sum()) / (2 if causal else 1)
            # What a batch whose longest sequence has 64 tokens would get: is it the better choice at other lengths too?
            others = {", tiles of 64": replace(batch, max_seqlen=64)} if length in (128, 512) else {}
            for kind, one in {"": batch, **others}.items():
                yield Case(
                    f"attention {model} S={length}{kind}",
                    dtype,
                    partial(_attention_inputs, one, dtype, (heads + 2 * kv_heads) * head_dim),
                    partial(_attention, shape),
                    2.0 * sizes.tokens * (2 * heads + 2 * kv_heads) * head_dim,
                    4 * pairs * heads * head_dim,
                )


def _attention_inputs(batch: Batch, dtype: str, width: int, ops: TorchOps) -> Any:
    return ops.upload(batch), normal(ops, dtype, (batch.num_tokens, width))


def _attention(shape: dict[str, Any], ops: TorchOps, made: Any) -> Any:
    return ops.attention(made[1], made[0], **shape)


def more_cases(sizes: Sizes) -> Iterator[Case]:
    """Attention with a bias by distance, with vectors of distances, and with a half of the tokens unseen."""
    heads, head_dim = 12, 64
    shape: dict[str, Any] = {
        "num_heads": heads, "num_kv_heads": heads, "head_dim": head_dim, "scale": (3 * head_dim) ** -0.5
    }  # fmt: skip
    dtype = sizes.attention_dtype or "fp16"
    for (model, kind), length in itertools.product(MORE.items(), sizes.lengths):
        if length > min(sizes.tokens, 512):
            continue
        batch = batch_of(sizes.tokens, length)
        lengths = np.diff(batch.cu_seqlens).astype(np.float64)
        if kind == "unseen":
            batch = replace(batch, seen_lens=np.diff(batch.cu_seqlens) // 2)
        pairs = float((lengths * (lengths // 2 if kind == "unseen" else lengths)).sum())
        # Of a pair with vectors of distances there are two more products.
        yield Case(
            f"{'relative' if kind == 'relative' else 'attention'} {model} S={length}",
            dtype,
            partial(_more_inputs, batch, dtype, heads, head_dim, kind),
            partial(_more, shape),
            2.0 * sizes.tokens * 4 * heads * head_dim,
            (8 if kind == "relative" else 4) * pairs * heads * head_dim,
        )


def _more_inputs(batch: Batch, dtype: str, heads: int, head_dim: int, kind: str, ops: TorchOps) -> Any:
    there, qkv = _attention_inputs(batch, dtype, 3 * heads * head_dim, ops)
    if kind == "unseen":
        return there, qkv, {}
    width = 2 * REACH[kind] - 1
    if kind == "bias":
        return there, qkv, {"distance_bias": normal(ops, dtype, (heads, width))}
    # As a model's are: the vector of a distance stands together.
    tables = (normal(ops, dtype, (width, heads * head_dim)).t() for _ in range(2))
    return there, qkv, {"relative": Relative(*tables)}


def _more(shape: dict[str, Any], ops: TorchOps, made: Any) -> Any:
    return ops.attention(made[1], made[0], **shape, **made[2])


def row_cases(sizes: Sizes) -> Iterator[Case]:
    tokens = sizes.tokens
    for dtype, hidden_sizes in HIDDEN.items():
        for hidden in sorted({max(size // sizes.scale, 16) for size in hidden_sizes}):
            yield from _norm_cases(dtype, tokens, hidden)
    for size in sorted({size // sizes.scale for size in INTERMEDIATE}):
        inputs = partial(normal, dtype="bf16", shape=(tokens, 2 * size))
        yield Case(f"gated silu {size}", "bf16", inputs, lambda ops, x: ops.gated(x, "silu"), 2.0 * tokens * 3 * size)
    for heads, kv_heads in ((16, 8), (32, 8)):
        width = (heads + 2 * kv_heads) * 128
        # The copy that leaves the input as it was is in it.
        num_bytes = 2.0 * tokens * (2 * width + 2 * (heads + kv_heads) * 128 + 128)
        yield Case(f"rotary {heads}+{kv_heads} heads", "bf16", partial(_rotary_inputs, tokens, width),
                   partial(_rotary, heads, kv_heads), num_bytes)  # fmt: skip


def _rotary_inputs(tokens: int, width: int, ops: TorchOps) -> Any:
    x, cos_sin, weight = (normal(ops, "bf16", shape) for shape in ((tokens, width), (tokens, 128), (128,)))
    return x, cos_sin, Norm(weight, None, 1e-6, "rms")


def _rotary(heads: int, kv_heads: int, ops: TorchOps, made: Any) -> Any:
    x, cos_sin, norm = made
    return ops.rotary(
        x.clone(), cos_sin, num_heads=heads, num_kv_heads=kv_heads, head_dim=128, q_norm=norm, k_norm=norm
    )


def _norm_cases(dtype: str, tokens: int, hidden: int) -> Iterator[Case]:
    kind: Any = "layer" if dtype == "fp16" else "rms"

    def weights(ops: TorchOps) -> Norm:
        weight = normal(ops, dtype, (hidden,))
        return Norm(weight, weight if kind == "layer" else None, 1e-6, kind)

    def inputs(ops: TorchOps) -> Any:
        return normal(ops, dtype, (tokens, hidden)), weights(ops), ops.upload(batch_of(tokens, 128))

    def embed(ops: TorchOps, made: Any) -> Any:
        ids = made[2].position_ids
        return ops.embed([(made[0], ids), (made[0], ids), (made[0], ids)], made[1])

    width = 2.0 * tokens * hidden
    yield Case(f"{kind} norm {hidden}", dtype, inputs, lambda ops, made: ops.norm(made[0], made[1]), 2 * width)
    yield Case(f"embed + {kind} norm {hidden}", dtype, inputs, embed, 4 * width)
    yield Case(f"pool mean {hidden}", dtype, inputs, lambda ops, made: ops.pool(made[0], made[2], "mean"), width)
    yield Case(f"pool max {hidden}", dtype, inputs, lambda ops, made: ops.pool(made[0], made[2], "max"), width)
    yield Case(f"l2_normalize {hidden}", dtype, inputs, lambda ops, made: ops.l2_normalize(made[0]), 3 * width)


def measure(case: Case, device: str, seconds: float) -> Row:
    """Errors and times of one case."""
    ours, theirs, exact = TritonOps(device, case.dtype), TorchOps(device, case.dtype), TorchOps(device, "fp32")
    made = case.inputs(ours)
    truth = case.run(exact, case.inputs(exact)).float()
    error, torch_error = ((case.run(ops, made).float() - truth).abs().max().item() for ops in (ours, theirs))
    allowed = 2 * torch_error + FLOORS[case.dtype] * max(1.0, truth.abs().max().item())
    del truth
    spent, torch_spent = (milliseconds(partial(case.run, ops, made), device, seconds) for ops in (ours, theirs))
    amount, unit = (case.flops * 1e-9, "TFLOP/s") if case.flops else (case.num_bytes * 1e-6, "GB/s")
    ok = error <= allowed and not ours.replaced
    rate = round(amount / spent, 1)
    return Row(case.name, case.dtype, error, torch_error, ok, spent, torch_spent, rate, unit)


def milliseconds(function: Callable[[], object], device: str, seconds: float) -> float:
    """The median of many calls, with cold caches on a GPU."""
    if device.startswith("cuda"):
        from triton.testing import do_bench

        return round(float(do_bench(function, warmup=10, rep=1000 * seconds, return_mode="median")), 4)
    start = time.perf_counter()
    function()
    return round(1000 * (time.perf_counter() - start), 4)


def fp8_rows(device: str, sizes: Sizes) -> Iterator[Row]:
    """Products with rows in 8 bits beside those in bf16, the quantisation of the rows included and not."""
    tokens, ops = sizes.tokens, TorchOps(device, "bf16")
    for n, k in ((3072, 768), (4096, 1024), (6144, 4096), (12288, 4096)):
        n, k = n // sizes.scale // 16 * 16 or 16, k // sizes.scale // 16 * 16 or 16
        x, weight = normal(ops, "bf16", (tokens, k)), normal(ops, "bf16", (n, k)) / k**0.5
        matrix, narrow = triton_fp8.Matrix8(*triton_fp8.quantize(weight)), triton_fp8.rows(x)
        truth = x.float() @ weight.float().T
        plain = milliseconds(partial(torch.matmul, x, weight.T), device, sizes.seconds)
        product = partial(triton_fp8.product, narrow, matrix, None, torch.bfloat16)
        for name, call in (("product", product), ("rows and product", partial(_quantized_product, x, matrix))):
            error = ((call().float() - truth).norm() / truth.norm()).item()
            spent = milliseconds(call, device, sizes.seconds)
            rate = round(2e-9 * tokens * n * k / spent, 1)
            bound = 0.05  # of the norm: e4m3 has 4 bits, and sums of many products average their errors
            yield Row(f"fp8 {name} {n} x {k}", "fp8", error, 0.0, error <= bound, spent, plain, rate, "TFLOP/s")


def _quantized_product(x: torch.Tensor, matrix: triton_fp8.Matrix8) -> torch.Tensor:
    return triton_fp8.product(triton_fp8.rows(x), matrix, None, torch.bfloat16)


def measured(device: str, sizes: Sizes, deadline: float = float("inf")) -> Iterator[Row]:
    """All cases until the deadline (time.monotonic); one that fails is a row with NaN, and the others go on."""
    if device == "cpu":
        from benchmarks.interpreter import mend

        mend()
    with torch.inference_mode():
        for case in (*attention_cases(sizes), *row_cases(sizes), *more_cases(sizes)):
            if time.monotonic() > deadline:
                break
            try:
                yield measure(case, device, sizes.seconds)
            except Exception as error:  # the border: whatever torch, a compiler or a driver says
                yield _failed(case.name, case.dtype, error)
        capable = not device.startswith("cuda") or torch.cuda.get_device_capability(device) >= (8, 9)
        try:
            if capable and time.monotonic() < deadline:
                yield from fp8_rows(device, sizes)
        except Exception as error:  # the border, as above
            yield _failed("fp8", "fp8", error)


def _failed(name: str, dtype: str, error: Exception) -> Row:
    nan = float("nan")
    return Row(f"{name}: {problem(error)}", dtype, nan, nan, False, nan, nan, nan, "")


def show(rows: Sequence[Row]) -> str:
    """The table."""
    cells = [
        [row.name, row.dtype, f"{row.error:.2g}", f"{row.torch_error:.2g}", "ok" if row.ok else "WRONG",
         f"{row.milliseconds:.3f}", f"{row.torch_milliseconds:.3f}",
         f"{row.torch_milliseconds / row.milliseconds:.2f}", f"{row.rate:g} {row.unit}"]
        for row in rows
    ]  # fmt: skip
    headers = ["kernel", "dtype", "error", "torch's", "", "ms", "torch's", "times faster", "reaches"]
    return table(headers, cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--json", default="", help="also write the last line here")
    arguments = parser.parse_args()
    device, sizes = ("cpu", TINY) if arguments.dry_run else (arguments.device, Sizes())
    rows = list(measured(device, sizes))
    print(show(rows))
    name = "cpu, interpreted" if device == "cpu" else torch.cuda.get_device_name(device)
    finish(
        {"benchmark": "gpu_kernels", "device": name, "machine": machine(), "rows": [asdict(row) for row in rows]},
        arguments.json,
    )


if __name__ == "__main__":
    main()
