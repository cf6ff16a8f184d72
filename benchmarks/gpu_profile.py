"""Where the time of a step goes on a GPU: its kernels by kind, and what is left between them."""

import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple

from torch.profiler import ProfilerActivity, profile

from benchmarks import gpu_models
from benchmarks.gpu import BARS
from benchmarks.gpu_models import Machine
from benchmarks.gpu_parts import steady_seconds
from benchmarks.gpu_rows import Row, attempt

_LENGTH = 128
_STEPS = 3
# What a kernel's name contains, the first that fits, and what that is.
_KINDS = {
    "attention_kernel": "attention", "norm_kernel": "norm", "embed_kernel": "embed", "rotary_kernel": "rotary",
    "gated_kernel": "gate", "pool_kernel": "pool", "gemm": "product", "nvjet": "product", "cutlass": "product",
    "xmma": "product", "splitk": "product", "gelu": "gelu", "memcpy": "copy", "memset": "copy",
}  # fmt: skip


class _Spent(NamedTuple):
    """Of a step: microseconds and launches of the kernels of a kind, and the one of them that takes longest."""

    us: float
    launches: float
    longest: str


def profiled(machine: Machine, deadline: float) -> Iterator[Row]:
    """For each model with a bar to pass, a step of 128 tokens a sequence."""
    for name in machine.shapes:
        if time.monotonic() > deadline:
            return
        if machine.dry_run or name in BARS:
            yield from attempt({"what": "profile", "model": name}, partial(_rows, machine, name))
            machine.free()


def _rows(machine: Machine, name: str) -> Iterator[Row]:
    hf = machine.shapes[name]
    ours = gpu_models.runtime(machine, hf)
    batch = gpu_models.items(hf, _LENGTH, gpu_models.budget(hf))
    seconds, passes = steady_seconds(machine, ours, [batch])
    step = 1e6 * seconds / passes
    on_device = machine.device != "cpu"
    with profile(activities=[ProfilerActivity.CUDA if on_device else ProfilerActivity.CPU]) as found:
        for _ in range(_STEPS):
            ours.run(batch, 1)
        machine.synchronize()
    spent = _by_kind({
        event.key: (event.self_device_time_total if on_device else event.self_cpu_time_total, event.count)
        for event in found.key_averages()
    })  # fmt: skip
    for kind, (us, launches, longest) in sorted(spent.items(), key=lambda one: -one[1].us):
        yield {
            "what": "profile", "model": name, "kind": kind, "us": us, "of_step": us / step, "launches": launches,
            "longest": longest,
        }  # fmt: skip
    busy = sum(one.us for one in spent.values())
    # With another batch in flight copies overlap with kernels, and this can be less than nothing.
    yield {"what": "profile", "model": name, "step_us": step, "between_us": step - busy}


def _by_kind(kernels: Mapping[str, tuple[float, int]]) -> dict[str, _Spent]:
    """From name -> microseconds and launches of all steps; what takes no time is a call of the host's."""
    groups: dict[str, dict[str, tuple[float, int]]] = {}
    for name, numbers in kernels.items():
        if not numbers[0]:
            continue
        kind = next((kind for part, kind in _KINDS.items() if part in name.lower()), "other")
        groups.setdefault(kind, {})[name] = numbers
    return {
        kind: _Spent(
            sum(us for us, _ in group.values()) / _STEPS,
            sum(count for _, count in group.values()) / _STEPS,
            max(group, key=lambda name: group[name][0])[:60],  # read at once
        )
        for kind, group in groups.items()
    }
