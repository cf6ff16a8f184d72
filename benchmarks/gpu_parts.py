"""What is measured of a GPU, part by part; each yields rows as it goes, so that what was measured is never lost."""

import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from benchmarks import gpu_kernels, gpu_models
from benchmarks.gpu_models import Machine, Work
from benchmarks.gpu_rows import Row, attempt
from rtp_llm.core import Item
from rtp_llm.ops.torch_ops import DTYPES
from rtp_llm.ops.triton_check import failing_ops
from rtp_llm.ops.triton_ops import TritonOps
from rtp_llm.runtime.torch import TorchRuntime

_LENGTHS = (128, 32, 512, 2048, 8192)


def seconds_of(machine: Machine, call: Callable[[], object], least: float = 0.2) -> float:
    """Seconds of one call, the mean over `least` seconds of them, after some that are not timed."""
    for _ in range(3):
        call()
    machine.synchronize()
    started = time.perf_counter()
    call()
    machine.synchronize()
    once = max(time.perf_counter() - started, 1e-7)
    repeats = max(3, min(int(least / once), 2000))
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    machine.synchronize()
    return (time.perf_counter() - started) / repeats


def checks(machine: Machine, deadline: float) -> Iterator[Row]:
    """The kernels that do not agree with torch here, or cannot be compiled, and why; compiled ones are kept on disk."""
    if machine.device == "cpu":
        yield {"what": "check", "skipped": "kernels run on a GPU"}
        return
    # Beside each other: to compile some thirty kernels takes a core half a minute and more.
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        found = {dtype: pool.submit(_checked, machine, dtype) for dtype in ("fp16", "bf16")}
        for dtype, row in found.items():
            yield from attempt(
                {"what": "check", "dtype": dtype},
                lambda row=row: [row.result(deadline - time.monotonic())],  # type: ignore[misc]
            )


def _checked(machine: Machine, dtype: str) -> Row:
    started = time.perf_counter()
    failing = failing_ops(TritonOps(machine.device, dtype, rows8=machine.has_fp8))
    seconds = round(time.perf_counter() - started, 1)
    return {"what": "check", "dtype": dtype, "failing": failing, "seconds": seconds}


def kernels(machine: Machine, deadline: float) -> Iterator[Row]:
    """benchmarks.gpu_kernels."""
    sizes = gpu_kernels.TINY if machine.dry_run else gpu_kernels.Sizes()
    return (asdict(row) for row in gpu_kernels.measured(machine.device, sizes, deadline))


def ceilings(machine: Machine, deadline: float) -> Iterator[Row]:
    """GEMM rates at the shapes that are used, in fp16 and bf16, copy bandwidth, and ways to an encoder's MLP."""
    if time.monotonic() > deadline:
        return
    yield from attempt({"what": "copy"}, partial(_copies, machine))
    for name, hf in machine.shapes.items():
        if time.monotonic() < deadline and hf["model_type"] == "bert":
            yield from attempt({"what": "mlp", "model": name}, partial(_mlps, machine, name, hf))
        yield from attempt({"what": "gemm", "model": name}, partial(_gemms, machine, name, hf, deadline))


def _gemms(machine: Machine, name: str, hf: Mapping[str, Any], deadline: float) -> Iterator[Row]:
    for rows in (gpu_models.budget(hf), gpu_models.budget(hf) // 8):
        for dtype in ("fp32",) if machine.device == "cpu" else ("fp16", "bf16"):
            for wide, narrow in Work.of(hf).products:
                if time.monotonic() > deadline:
                    return
                seconds = gemm_seconds(machine, dtype, rows, wide, narrow)
                rate = 2 * rows * wide * narrow / seconds / 1e12
                yield {"what": "gemm", "model": name, "dtype": dtype, "m_n_k": [rows, wide, narrow], "tflops": rate}


def _mlps(machine: Machine, name: str, hf: Mapping[str, Any]) -> Iterator[Row]:
    """GELU a pass of its own, as it is; on the product's way out, in its tanh form; in parts that stay in L2."""
    rows, hidden, wide = gpu_models.budget(hf), hf["hidden_size"], hf["intermediate_size"]
    kind: Mapping[str, Any] = {"dtype": DTYPES[machine.dtype(hf)], "device": machine.device}
    x, up, down = (torch.randn(shape, **kind) for shape in ((rows, hidden), (wide, hidden), (hidden, wide)))
    up_bias, down_bias = torch.randn(wide, **kind), torch.randn(hidden, **kind)
    linear, gelu = torch.nn.functional.linear, torch.nn.functional.gelu

    def mlp(x: torch.Tensor) -> torch.Tensor:
        return linear(gelu(linear(x, up, up_bias)), down, down_bias)

    calls: Mapping[str, Callable[[], object]] = {
        "erf": lambda: mlp(x),
        "tanh in the product": lambda: linear(
            torch._addmm_activation(up_bias, x, up.t(), use_gelu=True), down, down_bias
        ),
        "erf, 4 parts": lambda: [mlp(part) for part in x.chunk(4)],
    }
    with torch.inference_mode():
        for way, call in calls.items():
            yield {"what": "mlp", "model": name, "rows": rows, "way": way, "us": 1e6 * seconds_of(machine, call, 0.05)}


def _copies(machine: Machine) -> Iterator[Row]:
    for megabytes in (4, 32) if machine.dry_run else (32, 1024):
        source = torch.empty(megabytes << 20, dtype=torch.uint8, device=machine.device)
        target = torch.empty_like(source)
        seconds = seconds_of(machine, lambda a=target, b=source: a.copy_(b))  # type: ignore[misc]
        yield {"what": "copy", "megabytes": megabytes, "gb_s": 2 * source.nbytes / seconds / 1e9}


def gemm_seconds(machine: Machine, dtype: str, rows: int, wide: int, narrow: int) -> float:
    """Seconds of x @ weight.T + bias, x [rows, narrow], weight [wide, narrow]."""
    kind: Mapping[str, Any] = {"dtype": DTYPES[dtype], "device": machine.device}
    x, weight, bias = torch.randn(rows, narrow, **kind), torch.randn(wide, narrow, **kind), torch.randn(wide, **kind)
    with torch.inference_mode():
        return seconds_of(machine, lambda: torch.nn.functional.linear(x, weight, bias), 0.05)


def engine(machine: Machine, deadline: float) -> Iterator[Row]:
    """Tokens a second of the runtime with its batches in flight, beside the ceiling and sentence-transformers.

    Of all models at the length that has bars to pass, then at the others.
    """
    first, *others = _lengths(machine)
    for lengths, (name, hf) in itertools.product(((first,), others), machine.shapes.items()):
        rates: dict[int, float] = dict.fromkeys(lengths, 0.0)
        for what, measure in (("engine", _our_rows), ("peer", _peer_rows)):
            if time.monotonic() > deadline:
                return
            yield from attempt({"what": what, "model": name}, partial(measure, machine, name, hf, rates, deadline))
            machine.free()


def _our_rows(
    machine: Machine, name: str, hf: Mapping[str, Any], rates: dict[int, float], deadline: float
) -> Iterator[Row]:
    """Fills in the rates of their lengths."""
    work, tokens = Work.of(hf), gpu_models.budget(hf)
    layer = sum(gemm_seconds(machine, machine.dtype(hf), tokens, *shape) for shape in work.products)
    ceiling = tokens / (layer * work.num_layers)
    ours = gpu_models.runtime(machine, hf)
    for length in rates:
        if time.monotonic() > deadline:
            return
        if length <= gpu_models.longest_of(hf):
            row = _ours(machine, ours, hf, length, ceiling) | {"model": name}
            rates[length] = row["tokens_s"]
            yield row


def _peer_rows(
    machine: Machine, name: str, hf: Mapping[str, Any], rates: Mapping[int, float], deadline: float
) -> Iterator[Row]:
    # Here, so that what is not measured beside it does without its libraries.
    from benchmarks.gpu_peer import SentenceTransformers

    theirs = SentenceTransformers(machine, hf)
    for length, own in rates.items():
        if time.monotonic() > deadline:
            return
        if not own:
            continue
        rate = theirs.tokens_a_second(length)
        yield {"what": "peer", "model": name, "length": length, "tokens_s": rate, "ours_is_times": own / rate}


def _ours(machine: Machine, ours: TorchRuntime, hf: Mapping[str, Any], length: int, ceiling: float) -> Row:
    tokens = max(gpu_models.budget(hf), length)
    batches = [gpu_models.items(hf, length, tokens, seed) for seed in range(8)]
    seconds, passes = steady_seconds(machine, ours, batches)
    counted = [item.num_tokens for batch in batches for item in batch] * passes
    rate = sum(counted) / seconds
    return {
        "what": "engine", "length": length, "dtype": ours.dtype, "ops": ours.ops.name, "step": tokens,
        "tokens_s": rate, "of_gemm_ceiling": rate / ceiling, "tflops": Work.of(hf).flops(counted) / seconds / 1e12,
        "graphs": ours.counts["graphs"],
    }  # fmt: skip


def steady_seconds(machine: Machine, ours: TorchRuntime, batches: Sequence[list[Item]]) -> tuple[float, int]:
    """Seconds, and passes over the batches; as many in flight as the device likes."""
    with ThreadPoolExecutor(ours.num_cores) as pool:

        def run_all(times: int) -> float:
            started = time.perf_counter()
            list(pool.map(lambda batch: ours.run(batch, 1), list(batches) * times))
            return time.perf_counter() - started

        run_all(1)
        once = run_all(1)
        passes = 1 if machine.dry_run else max(1, min(round(1.5 / once), 200))
        return run_all(passes), passes


def _lengths(machine: Machine) -> Sequence[int]:
    return (16, 64) if machine.dry_run else _LENGTHS
