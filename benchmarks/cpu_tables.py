"""What `benchmarks.cpu` has measured, as tables and as JSON: engines beside the best peer of their own precision."""

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import numpy as np

from benchmarks import report
from benchmarks.checkpoints import Shape
from benchmarks.corpus import Workload
from benchmarks.peers import OURS

LATENCY = {"short": "one short query", "passages": "one passage"}
_WEIGHT_BYTES = {"fp32": 4, "fp16": 4, "bf16": 2, "int8": 1}


@dataclass
class Result:
    """What one engine has shown; `seconds` and `latencies` are per workload, in the order they were measured.

    cosines        least and mean cosine to the reference engine's vectors, over all workloads
    start_seconds  from the start of its process, Python's imports included, until it is loaded
    """

    status: str = "ok"
    precision: str = "fp32"
    seconds: dict[str, list[float]] = field(default_factory=dict)
    cpu_seconds: dict[str, list[float]] = field(default_factory=dict)
    latencies: dict[str, list[float]] = field(default_factory=dict)
    max_difference: float | None = None
    cosines: tuple[float, float] | None = None
    start_seconds: float = 0.0
    resident_mb: float = 0.0
    installed_mb: float = 0.0


@dataclass
class Peak:
    """What the cores in use can do at most, one sample a round.

    samples       fp32 GFLOP/s
    read_samples  GB/s at which they read memory that no cache holds; none: not measured
    """

    source: str
    samples: list[float] = field(default_factory=list)
    read_samples: list[float] = field(default_factory=list)

    @property
    def gflops(self) -> float:
        return statistics.median(self.samples)

    @property
    def read_rate(self) -> float:
        return statistics.median(self.read_samples) if self.read_samples else 0.0


Results: TypeAlias = dict[str, Result]


def finished(results: Results) -> Results:
    """Those that were not left out, and did not fail."""
    return {name: result for name, result in results.items() if result.status == "ok"}


def throughput(result: Result, workload: Workload) -> float:
    """Texts per second, the median round."""
    return len(workload.texts) / statistics.median(result.seconds[workload.name])


def median_latency(result: Result, name: str) -> float:
    """Seconds."""
    return statistics.median(result.latencies[name])


def peers_of(results: Results, precision: str) -> Results:
    """Other people's engines that compute in this precision."""
    return {
        name: result
        for name, result in finished(results).items()
        if not name.startswith(OURS) and result.precision == precision
    }


def fastest_peer(results: Results, precision: str, workload: Workload) -> str | None:
    """The one with the greatest throughput."""
    peers = peers_of(results, precision)
    return max(peers, key=lambda name: throughput(peers[name], workload), default=None)


def quickest_peer(results: Results, precision: str, name: str) -> str | None:
    """The one with the least latency."""
    peers = peers_of(results, precision)
    return min(peers, key=lambda peer: median_latency(peers[peer], name), default=None)


def print_tables(results: Results, peak: Peak, workloads: dict[str, Workload], shape: Shape) -> None:
    """Throughput by workload, latency, then what an engine costs; at last the engines that are not in them."""
    print(f"measured fp32 peak: {peak.gflops:.0f} GFLOP/s ({peak.source}); memory is read at {peak.read_rate:.1f} GB/s")
    for workload in workloads.values():
        print(f"\n{workload}\n{_throughput_table(results, peak, workload, shape)}")
    for name, label in LATENCY.items():
        if any(name in result.latencies for result in results.values()):
            print(f"\n{label} at a time, milliseconds\n{_latency_table(results, name, peak, shape)}")
    print(f"\nanswers and costs\n{_cost_table(results)}")
    print("".join(f"\n{name}: {result.status}" for name, result in results.items() if result.status != "ok"))


def _throughput_table(results: Results, peak: Peak, workload: Workload, shape: Shape) -> str:
    gflop = shape.flops(workload.num_tokens) / 1e9
    rows = []
    for name, result in finished(results).items():
        best = fastest_peer(results, result.precision, workload)
        rate, seconds = throughput(result, workload), result.seconds[workload.name]
        gflops = gflop * rate / len(workload.texts)
        rows.append([
            name,
            result.precision,
            f"{rate:.1f}",
            f"{(max(seconds) - min(seconds)) / statistics.median(seconds):.0%}",
            f"{statistics.median(result.cpu_seconds[workload.name]) / len(workload.texts) * 1e3:.2f}",
            f"{gflops:.0f}",
            f"{gflops / peak.gflops:.0%}",
            f"{rate / throughput(results[best], workload):.2f}" if best else "-",
        ])  # fmt: skip
    headers = ("engine", "in", "texts/s", "spread", "CPU ms/text", "GFLOP/s", "of fp32 peak", "to best peer")
    return report.table(headers, rows)


def _seconds_to_read(result: Result, peak: Peak, shape: Shape) -> float:
    """What reading all weights once takes from memory: the least time of a text where no cache holds them."""
    return shape.matrix_parameters * _WEIGHT_BYTES[result.precision] / peak.read_rate / 1e9 if peak.read_rate else 0.0


def _latency_table(results: Results, name: str, peak: Peak, shape: Shape) -> str:
    rows = []
    for engine, result in finished(results).items():
        best = quickest_peer(results, result.precision, name)
        p50, p90, p99 = np.percentile(result.latencies[name], (50, 90, 99)) * 1e3
        ratio = f"{median_latency(results[best], name) * 1e3 / p50:.2f}" if best else "-"
        bound = _seconds_to_read(result, peak, shape) * 1e3
        to_bound = f"{p50 / bound:.2f}" if bound else "-"
        rows.append([engine, result.precision, f"{p50:.2f}", f"{p90:.2f}", f"{p99:.2f}", ratio, to_bound])
    headers = ("engine", "in", "p50", "p90", "p99", "speed to best peer", "to reading the weights")
    return report.table(headers, rows)


def _cost_table(results: Results) -> str:
    rows = []
    for name, result in finished(results).items():
        least, mean = result.cosines or (float("nan"), float("nan"))
        rows.append([
            name,
            result.precision,
            f"{result.max_difference:.1e}",
            f"{least:.5f}",
            f"{mean:.5f}",
            f"{result.start_seconds:.2f}",
            f"{result.resident_mb:.0f}",
            f"{result.installed_mb:.0f}",
        ])  # fmt: skip
    headers = ("engine", "in", "max diff", "least cosine", "mean cosine", "start s", "RSS MB", "installed MB")
    return report.table(headers, rows)


def summary(results: Results, peak: Peak, workloads: dict[str, Workload], shape: Shape) -> dict[str, Any]:
    """The run as JSON: per engine its figures, and ours to the best peer per precision and workload."""
    engines: dict[str, dict[str, Any]] = {name: asdict(result) for name, result in results.items()}
    for name, result in finished(results).items():
        rates = {workload.name: throughput(result, workload) for workload in workloads.values()}
        engines[name] |= {
            "latencies": {key: _percentiles(values) for key, values in result.latencies.items()},
            "throughput": rates,
            "of_peak": {
                key: shape.flops(workloads[key].num_tokens) * rate / len(workloads[key].texts) / peak.gflops / 1e9
                for key, rate in rates.items()
            },
        }
    return {
        "engines": engines,
        "peak_gflops": {"source": peak.source, "samples": peak.samples},
        "read_gbytes_per_second": peak.read_samples,
        "ours_to_best_peer": {
            name: _ratios(results, name, workloads) for name in finished(results) if name.startswith(OURS)
        },
        "workloads": {name: {"texts": len(w.texts), "tokens": w.total_tokens} for name, w in workloads.items()},
    }


def _percentiles(seconds: list[float]) -> dict[str, float]:
    return dict(zip(("p50", "p90", "p99"), np.percentile(seconds, (50, 90, 99)).tolist(), strict=True))


def _ratios(results: Results, name: str, workloads: dict[str, Workload]) -> dict[str, dict[str, Any]]:
    """Ours to the best peer, above 1 is faster: the median and range of the rounds' own ratios, and the latencies'."""
    ratios: dict[str, dict[str, Any]] = {}
    ours = results[name]
    for key, workload in workloads.items():
        if best := fastest_peer(results, ours.precision, workload):
            rounds = [theirs / own for theirs, own in zip(results[best].seconds[key], ours.seconds[key], strict=True)]
            ratios[key] = {"peer": best, "median": statistics.median(rounds), "range": [min(rounds), max(rounds)]}
    for key in ours.latencies:
        if best := quickest_peer(results, ours.precision, key):
            ratio = median_latency(results[best], key) / median_latency(ours, key)
            ratios[f"latency {key}"] = {"peer": best, "median": ratio}
    return ratios
