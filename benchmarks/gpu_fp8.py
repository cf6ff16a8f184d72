"""Weights and activations in 8 bits: the gate's cosines, tokens a second beside 16 bits, and the products alone."""

import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch

from benchmarks import gpu_models
from benchmarks.gpu_models import Machine, Work
from benchmarks.gpu_parity import minilm
from benchmarks.gpu_parts import gemm_seconds, seconds_of, steady_seconds
from benchmarks.gpu_rows import Row, attempt
from rtp_llm.checkpoint import open_tensors, read_json
from rtp_llm.models import Model, load_model
from rtp_llm.ops.triton_check import checked_ops
from rtp_llm.ops.triton_ops import FUSED, TritonOps
from rtp_llm.runtime.torch_fp8 import likeness

_LENGTH = 128
_MODELS = ("bge-large", "Qwen3-0.6B", "Qwen3-8B")


def fp8(machine: Machine, deadline: float) -> Iterator[Row]:
    """Real MiniLM's likeness, then each shape's with its speed, then what the products reach without the casts."""
    if machine.device != "cpu" and not machine.has_fp8:
        yield {"what": "fp8", "skipped": "the device has no e4m3"}
        return
    ops = _ops(machine)
    yield from attempt({"what": "fp8 gate", "model": "MiniLM"}, partial(_minilm, machine, ops))
    names = [name for name in machine.shapes if name in _MODELS or machine.dry_run]
    for name in names:
        if time.monotonic() > deadline:
            return
        yield from attempt({"what": "fp8", "model": name}, partial(_beside_16_bits, machine, name, ops))
        machine.free()
    if machine.device != "cpu":
        for name in names:
            yield from attempt({"what": "fp8 product", "model": name}, partial(_products, machine, name, deadline))


def _ops(machine: Machine) -> TritonOps:
    """bf16 and 8 bits; on a CPU all by torch."""
    if machine.device == "cpu":
        return TritonOps("cpu", "bf16", replaced=frozenset(FUSED), rows8=True)
    return checked_ops(machine.device, "bf16", rows8=True)


def _minilm(machine: Machine, ops: TritonOps) -> Iterator[Row]:
    try:
        folder = minilm(machine)
    except FileNotFoundError as error:
        yield {"what": "fp8 gate", "model": "MiniLM", "skipped": str(error)}
        return
    hf, source = read_json(folder, "config.json"), open_tensors(folder)
    exact, narrow = (load_model("bert", hf, source, one) for one in (ops, ops.fork("fp8")))
    source.close()
    yield {"what": "fp8 gate", "model": "MiniLM", **_gate(ops, exact, narrow)}


def _gate(ops: TritonOps, exact: Model, narrow: Model) -> Row:
    mean, p1 = likeness((exact, ops.in_16_bits()), (narrow, ops))
    return {"mean_cosine": mean, "p1_cosine": p1}


def _beside_16_bits(machine: Machine, name: str, ops: TritonOps) -> Iterator[Row]:
    """Random weights, the same ones in 16 bits and in 8."""
    hf: Mapping[str, Any] = machine.shapes[name]
    exact, narrow = (gpu_models.build(hf, one) for one in (ops.in_16_bits(), ops.fork("fp8")))
    found = _gate(ops, exact, narrow)
    rates = {}
    for kind, model, its in (("16", exact, ops.in_16_bits()), ("8", narrow, ops)):
        runtime = gpu_models.with_model(machine, hf, model, its)
        batches = [gpu_models.items(hf, _LENGTH, gpu_models.budget(hf), seed) for seed in range(4)]
        seconds, passes = steady_seconds(machine, runtime, batches)
        rates[kind] = passes * sum(item.num_tokens for batch in batches for item in batch) / seconds
    yield {
        "what": "fp8", "model": name, **found,
        "tokens_s": rates["8"], "tokens_s_16_bits": rates["16"], "times": rates["8"] / rates["16"],
    }  # fmt: skip


def _products(machine: Machine, name: str, deadline: float) -> Iterator[Row]:
    """torch's scaled product with a scale a row, next to the same product in bf16."""
    tokens = gpu_models.budget(machine.shapes[name])
    for wide, narrow in Work.of(machine.shapes[name]).products:
        if time.monotonic() > deadline:
            return
        x, weight = (
            torch.randn(rows, narrow, device=machine.device).to(torch.float8_e4m3fn) for rows in (tokens, wide)
        )
        scales = torch.ones(tokens, 1, device=machine.device), torch.ones(1, wide, device=machine.device)

        def product(x: Any = x, weight: Any = weight, scales: Any = scales) -> object:
            return torch._scaled_mm(x, weight.t(), scale_a=scales[0], scale_b=scales[1], out_dtype=torch.bfloat16)

        seconds = seconds_of(machine, product, 0.05)
        plain = gemm_seconds(machine, "bf16", tokens, wide, narrow)
        yield {
            "what": "fp8 product", "model": name, "m_n_k": [tokens, wide, narrow],
            "tflops": 2 * tokens * wide * narrow / seconds / 1e12, "times_bf16": plain / seconds,
        }  # fmt: skip
