"""Small batches on a GPU, whose kernels take less time than their launches, and batches in flight together.

Rows must not depend on CUDA graphs, nor on what else is in flight: they are compared with those of each batch alone and
without graphs. Their bits may differ, since a graph's batch has another number of rows.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from benchmarks import gpu_models
from benchmarks.gpu_models import Machine
from benchmarks.gpu_rows import Row, attempt
from rtp_llm.core import FloatArray, Item, TaskType
from rtp_llm.ops.device_ops import make_ops
from rtp_llm.runtime.torch import TorchRuntime

# Sequences, and tokens of each.
_SHAPES = ((1, 16), (1, 128), (1, 512), (8, 32), (32, 60))
_LEAST_COSINE = 0.999
_SEED = 0


def small(machine: Machine, deadline: float) -> Iterator[Row]:
    """An encoder and a decoder: batches in flight together, then the latency of small ones."""
    for name in ("tiny-bert", "tiny-qwen3") if machine.dry_run else ("bge-base", "Qwen3-0.6B"):
        if time.monotonic() > deadline:
            return
        yield from attempt({"what": "small", "model": name}, partial(_rows, machine, name, deadline))
        machine.free()


def _rows(machine: Machine, name: str, deadline: float) -> Iterator[Row]:
    hf = machine.shapes[name]
    ops = make_ops("auto", machine.device, machine.dtype(hf))
    model = gpu_models.build(hf, ops)
    alone, ours = (gpu_models.with_model(machine, hf, model, ops, graph_bytes) for graph_bytes in (0, 1 << 30))
    yield {"what": "in flight", "model": name, **_in_flight(machine, hf, alone, ours)}
    for count, length in _SHAPES[:2] if machine.dry_run else _SHAPES:
        if time.monotonic() > deadline:
            return
        batch = _batch(hf, [length] * count)
        expected = _vectors(alone, batch)
        # The third is the first of a graph.
        cosines = [_least_cosine(_vectors(ours, batch), expected) for _ in range(5)]
        yield {
            "what": "small", "model": name, "sequences": count, "tokens": length,
            "ms": _milliseconds(machine, ours, batch), "ms_without_graphs": _milliseconds(machine, alone, batch),
            "graphs": ours.counts["graphs"], "replays": ours.counts["graph_replays"],
            "least_cosine": min(cosines), "ok": min(cosines) > _LEAST_COSINE,
        }  # fmt: skip


def _in_flight(machine: Machine, hf: Mapping[str, Any], alone: TorchRuntime, ours: TorchRuntime) -> Row:
    """Batches of many sizes, some of which become graphs meanwhile."""
    random = np.random.default_rng(_SEED)
    longest = min(gpu_models.longest_of(hf), 400)
    batches = [
        _batch(hf, random.integers(1, longest, random.integers(1, 24), endpoint=True).tolist(), seed)
        for seed in range(6 if machine.dry_run else 40)
    ]
    expected = [_vectors(alone, batch) for batch in batches]
    order = random.permutation(np.repeat(np.arange(len(batches)), 5)).tolist()
    with ThreadPoolExecutor(ours.num_cores) as pool:
        found = list(pool.map(lambda place: _vectors(ours, batches[place]), order))
    least = min(_least_cosine(rows, expected[place]) for rows, place in zip(found, order, strict=True))
    return {
        "batches": len(order), "threads": ours.num_cores, "graphs": ours.counts["graphs"],
        "replays": ours.counts["graph_replays"], "least_cosine": least, "ok": least > _LEAST_COSINE,
    }  # fmt: skip


def _batch(hf: Mapping[str, Any], lengths: Sequence[int], seed: int = _SEED) -> list[Item]:
    random = np.random.default_rng(seed)
    return [
        Item(random.integers(2, hf["vocab_size"], length).astype(np.int32), place, tasks=(TaskType.DENSE,))
        for place, length in enumerate(lengths)
    ]


def _vectors(runtime: TorchRuntime, batch: Sequence[Item]) -> FloatArray:
    return np.stack(list(runtime.run(batch, 1)[TaskType.DENSE]))


def _least_cosine(found: FloatArray, expected: FloatArray) -> float:
    """NaN where something is not a number."""
    products = (found * expected).sum(1)
    return float((products / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)).min())


def _milliseconds(machine: Machine, runtime: TorchRuntime, batch: Sequence[Item]) -> float:
    """The median from items to rows, one batch at a time."""
    times = []
    for _ in range(3 if machine.dry_run else 200):
        started = time.perf_counter()
        runtime.run(batch, 1)
        times.append(time.perf_counter() - started)
    return float(np.median(times)) * 1e3
