"""What is measured of a GPU, part by part; each yields rows as it goes, so that what was measured is never lost."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from benchmarks import gpu_models
from benchmarks.gpu_models import Machine, Work
from rtp_llm.core import FloatArray, Item, TaskType
from rtp_llm.models import load_model
from rtp_llm.ops.device_ops import make_ops
from rtp_llm.ops.torch_ops import DTYPES
from rtp_llm.runtime.torch import TorchRuntime

Row = dict[str, Any]
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


def ceilings(machine: Machine, deadline: float) -> Iterator[Row]:
    """GEMM rates at the shapes that are used, in fp16 and bf16, and copy bandwidth."""
    for name, hf in _shapes(machine).items():
        for rows in {gpu_models.budget(hf), gpu_models.budget(hf) // 8}:
            for dtype in ("fp32",) if machine.device == "cpu" else ("fp16", "bf16"):
                for wide, narrow in Work.of(hf).products:
                    if time.monotonic() > deadline:
                        return
                    seconds = gemm_seconds(machine, dtype, rows, wide, narrow)
                    rate = 2 * rows * wide * narrow / seconds / 1e12
                    yield {"what": "gemm", "model": name, "dtype": dtype, "m_n_k": [rows, wide, narrow], "tflops": rate}
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
    """Tokens a second of the runtime with its batches in flight, beside the GEMMs' ceiling and transformers."""
    for name, hf in _shapes(machine).items():
        if time.monotonic() > deadline:
            return
        work, tokens = Work.of(hf), gpu_models.budget(hf)
        layer = sum(gemm_seconds(machine, machine.dtype(hf), tokens, *shape) for shape in work.products)
        ceiling = tokens / (layer * work.num_layers)
        lengths = [length for length in _lengths(machine) if length <= gpu_models.longest_of(hf)]
        ours = gpu_models.runtime(machine, hf)
        rates: dict[int, float] = {}
        for length in lengths:
            if time.monotonic() > deadline:
                return
            row = _ours(machine, ours, hf, length, ceiling) | {"model": name}
            rates[length] = row["tokens_s"]
            yield row
        del ours
        _free(machine)
        theirs = gpu_models.peer(machine, hf)
        for length, own in rates.items():
            if time.monotonic() > deadline:
                return
            rate = _peer_rate(machine, theirs, hf, length)
            yield {"what": "peer", "model": name, "length": length, "tokens_s": rate, "ours_is_times": own / rate}
        del theirs
        _free(machine)


def _ours(machine: Machine, ours: TorchRuntime, hf: Mapping[str, Any], length: int, ceiling: float) -> Row:
    tokens = max(gpu_models.budget(hf), length)
    batches = [gpu_models.items(hf, length, tokens, seed) for seed in range(8)]
    seconds, passes = _steady_seconds(machine, ours, batches)
    counted = [item.num_tokens for batch in batches for item in batch] * passes
    rate = sum(counted) / seconds
    return {
        "what": "engine", "length": length, "dtype": ours.dtype, "ops": ours.ops.name, "step": tokens,
        "tokens_s": rate, "of_gemm_ceiling": rate / ceiling, "tflops": Work.of(hf).flops(counted) / seconds / 1e12,
        "graphs": ours.counts["graphs"],
    }  # fmt: skip


def _steady_seconds(machine: Machine, ours: TorchRuntime, batches: Sequence[list[Item]]) -> tuple[float, int]:
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


def _peer_rate(machine: Machine, model: Any, hf: Mapping[str, Any], length: int) -> float:
    """As sentence-transformers encodes: sorted by length, padded, mean-pooled, copied back batch by batch.

    The better of several batch sizes; tokens are given as ids to both.
    """
    everything = gpu_models.items(hf, length, 256 if machine.dry_run else max(65_536, 4 * length))
    total = sum(item.num_tokens for item in everything)
    rates = [0.0]
    for size in (4,) if machine.dry_run else (32, 128):
        if size * length > 65_536:
            size = max(65_536 // length, 1)
        encode = _Encoder(machine, model, everything, size)
        try:
            encode()
            started = time.perf_counter()
            encode()
            rates.append(total / (time.perf_counter() - started))
        except torch.OutOfMemoryError:
            _free(machine)
    return max(max(rates), 1e-9)


class _Encoder:
    def __init__(self, machine: Machine, model: Any, everything: Sequence[Item], size: int) -> None:
        self._machine, self._model, self._size = machine, model, size
        self._items = sorted(everything, key=lambda item: -item.num_tokens)

    def __call__(self) -> FloatArray:
        rows = []
        with torch.inference_mode():
            for start in range(0, len(self._items), self._size):
                ids = [torch.from_numpy(item.input_ids).long() for item in self._items[start : start + self._size]]
                padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=0)
                lengths = torch.tensor([len(one) for one in ids])
                mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long().to(self._machine.device)
                states = self._model(padded.to(self._machine.device), attention_mask=mask).last_hidden_state
                rows.append(pooled(states, mask).cpu())
        return torch.cat(rows).numpy()


def pooled(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[B, S, H] -> [B, H] in fp32: the mean of what is not padding."""
    weights = mask[..., None].float()
    return (states.float() * weights).sum(1) / weights.sum(1)


def parity(machine: Machine, deadline: float) -> Iterator[Row]:
    """Against transformers in fp32 on the same random weights, next to transformers in our dtype."""
    names = ("tiny-bert", "tiny-qwen3") if machine.dry_run else ("bge-large", "Qwen3-0.6B")
    for name in names:
        if time.monotonic() > deadline:
            return
        hf = _shapes(machine)[name]
        lengths = (1, 2, 17, 64, 200) if machine.dry_run else (1, 2, 17, 64, 128, 500)
        everything = [gpu_models.items({**hf, "max_position_embeddings": n}, 2 * n, 1, n)[0] for n in lengths]
        exact = gpu_models.peer(machine, hf, "fp32")
        truth = _vectors(machine, exact, everything)
        dtype = machine.dtype(hf)
        ops = make_ops("auto", machine.device, dtype)
        model = load_model(hf["model_type"], hf, gpu_models.StateDict(exact), ops)
        ours = gpu_models.with_model(machine, hf, model, ops).run(everything, 1)[TaskType.DENSE]
        theirs = _vectors(machine, exact.to(DTYPES[dtype]), everything)
        yield {
            "what": "parity", "model": name, "dtype": dtype, **_distance("ours", np.stack(list(ours)), truth),
            **_distance("transformers", theirs, truth),
        }  # fmt: skip
        del exact, model
        _free(machine)


def _vectors(machine: Machine, model: Any, everything: Sequence[Item]) -> FloatArray:
    """Each alone: the last token of a decoder, the mean of an encoder."""
    rows = []
    is_decoder = model.config.model_type == "qwen3"
    with torch.inference_mode():
        for item in everything:
            ids = torch.from_numpy(item.input_ids).long()[None].to(machine.device)
            states = model(ids).last_hidden_state[0].float()
            rows.append((states[-1] if is_decoder else states.mean(0)).cpu())
    return torch.stack(rows).numpy()


def _distance(name: str, rows: FloatArray, truth: FloatArray) -> Row:
    cosines = (rows * truth).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(truth, axis=1)
    error = np.abs(rows - truth).max() / np.abs(truth).max()
    return {f"{name}_least_cosine": float(cosines.min()), f"{name}_error": float(error)}


def fp8(machine: Machine, deadline: float) -> Iterator[Row]:
    """torch's scaled product with a scale a row, next to the same product in bf16; without the casts."""
    if machine.device == "cpu":
        yield {"what": "fp8", "skipped": "a CPU has no fp8 products"}
        return
    for name, hf in _shapes(machine).items():
        tokens = gpu_models.budget(hf)
        for wide, narrow in Work.of(hf).products:
            if time.monotonic() > deadline:
                return
            x = torch.randn(tokens, narrow, device=machine.device).to(torch.float8_e4m3fn)
            weight = torch.randn(wide, narrow, device=machine.device).to(torch.float8_e4m3fn).t()
            scales = torch.ones(tokens, 1, device=machine.device), torch.ones(1, wide, device=machine.device)

            def product(x: Any = x, weight: Any = weight, scales: Any = scales) -> object:
                return torch._scaled_mm(x, weight, scale_a=scales[0], scale_b=scales[1], out_dtype=torch.bfloat16)

            seconds = seconds_of(machine, product, 0.05)
            plain = gemm_seconds(machine, "bf16", tokens, wide, narrow)
            yield {
                "what": "fp8", "model": name, "m_n_k": [tokens, wide, narrow],
                "tflops": 2 * tokens * wide * narrow / seconds / 1e12, "times_bf16": plain / seconds,
            }  # fmt: skip


def _shapes(machine: Machine) -> dict[str, dict[str, Any]]:
    return gpu_models.TINY if machine.dry_run else gpu_models.SHAPES


def _lengths(machine: Machine) -> Sequence[int]:
    return (16, 64) if machine.dry_run else _LENGTHS


def _free(machine: Machine) -> None:
    if machine.device != "cpu":
        torch.cuda.empty_cache()
