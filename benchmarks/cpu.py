"""CPU throughput and latency, ours beside its peers, in one run: `python -m benchmarks.cpu`.

Every engine has its own process on the same cores. After one untimed pass, whose vectors are compared, each round asks
every engine in turn for every workload, so that a drift of the machine meets all of them; medians are reported.
"""

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks import checkpoints, corpus, report
from benchmarks.checkpoints import Shape
from benchmarks.corpus import Workload
from benchmarks.peers import OURS, Engine, FloatArray, Setup, select
from benchmarks.peers.process import EngineFailed, EngineProcess, pin, prepare

_SETTLE_SECONDS = 0.3  # some engines' threads spin for a while after their work
_NUM_TEXTS = {
    "quick": {"passages": 64, "short": 128, "long": 16},
    "normal": {"passages": 256, "short": 512, "long": 64},
    "full": {"passages": 256, "short": 512, "long": 256},
}
_LATENCY = {"short": "one short query", "passages": "one passage"}
_WARM_UP = 20


@dataclass
class Result:
    """What one engine has shown; `seconds` and `latencies` are per workload, in the order they were measured."""

    status: str = "ok"
    seconds: dict[str, list[float]] = field(default_factory=dict)
    cpu_seconds: dict[str, list[float]] = field(default_factory=dict)
    latencies: dict[str, list[float]] = field(default_factory=dict)
    max_difference: float | None = None
    resident_mb: float = 0.0


@dataclass
class Others:
    """CPU seconds that processes outside the benchmark had of the timed seconds; above a few percent, run it again."""

    used: float = 0.0
    timed: float = 0.0

    @property
    def cores(self) -> float:
        return max(0.0, self.used / self.timed) if self.timed else 0.0


@dataclass
class Peak:
    """Measured fp32 peak of the cores in use, GFLOP/s, one sample a round."""

    source: str
    samples: list[float] = field(default_factory=list)

    @property
    def gflops(self) -> float:
        return statistics.median(self.samples)


Results = dict[str, Result]


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parse(argv)
    cores = pin(arguments.threads)
    checkpoint = checkpoints.choose(arguments.checkpoint, arguments.shape, arguments.models)
    setup = Setup(checkpoint, arguments.models.resolve(), arguments.max_seq_len, len(cores))
    workloads = corpus.load(checkpoint, arguments.max_seq_len)
    workloads = {name: workloads[name].head(_NUM_TEXTS[arguments.size][name]) for name in arguments.workloads}
    facts = report.machine()
    print(f"{report.describe(facts)}\n{setup.label}, {len(cores)} threads, {arguments.rounds} rounds, fp32")
    print("\n".join(f"  {workload}" for workload in workloads.values()))
    results, peak, others = measure(arguments, setup, workloads)
    print(f"other processes used {others.cores:.2f} cores while engines were timed")
    print_tables(results, peak, workloads, checkpoints.read_shape(checkpoint))
    about = {
        "benchmark": "cpu",
        "checkpoint": setup.label,
        "machine": facts,
        "others_cores": others.cores,
        "rounds": arguments.rounds,
        "threads": len(cores),
        "versions": report.versions(),
    }
    report.finish(about | summary(results, peak, workloads, checkpoints.read_shape(checkpoint)), arguments.json)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__)
    parser.add_argument("--checkpoint", default="", help="folder; default: all-MiniLM-L6-v2")
    parser.add_argument("--shape", default="", choices=("", *checkpoints.SHAPES), help="random weights, speed only")
    parser.add_argument("--models", type=Path, default=checkpoints.MODELS, help="folder for converted checkpoints")
    parser.add_argument("--engines", default="", help="comma-separated parts of engines' names; default: all")
    parser.add_argument("--workloads", default="passages,short,long", help="comma-separated")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--latency-repeats", type=int, default=200, help="0: no latencies")
    parser.add_argument("--threads", type=int, default=0, help="cores, and threads, of every engine; 0: all")
    parser.add_argument("--max-seq-len", type=int, default=512, help="tokens kept of a text, in every engine")
    parser.add_argument("--size", default="normal", choices=_NUM_TEXTS, help="texts; quick: padding weighs too much")
    parser.add_argument("--quick", dest="size", action="store_const", const="quick", help="the same as --size quick")
    parser.add_argument("--json", default="", help="also write the JSON line to this file")
    arguments = parser.parse_args(argv)
    arguments.workloads = arguments.workloads.split(",")
    for name in arguments.workloads:
        if name not in _NUM_TEXTS["full"]:
            parser.error(f"--workloads: {name!r} is not one of {', '.join(_NUM_TEXTS['full'])}")
    try:
        arguments.engines = select(arguments.engines)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def measure(
    arguments: argparse.Namespace, setup: Setup, workloads: dict[str, Workload]
) -> tuple[Results, Peak, Others]:
    """Load every engine, compare their vectors, then time them turn by turn."""
    texts = {name: workload.texts for name, workload in workloads.items()}
    peak, sample_peak = _peak_meter(setup.num_threads)
    results: Results = {}
    others = Others()
    with ExitStack() as stack:
        processes = _load(stack, arguments.engines, setup, texts, results)
        _compare(processes, results, list(workloads))
        for number in _progress(range(arguments.rounds), "rounds"):
            peak.samples.append(sample_peak())
            for name in workloads:
                for process in _turn(processes, number):
                    with _recorded(processes, results, process):
                        time.sleep(_SETTLE_SECONDS)
                        _time(process, name, results[process.name], others)
        if arguments.latency_repeats:
            _measure_latencies(arguments, processes, results, [name for name in _LATENCY if name in workloads])
        for process in processes.values():
            results[process.name].resident_mb = process.resident_bytes() / 1e6
    return results, peak, others


def _load(
    stack: ExitStack, engines: dict[str, Engine], setup: Setup, texts: dict[str, list[str]], results: Results
) -> dict[str, EngineProcess]:
    processes: dict[str, EngineProcess] = {}
    for name, engine in _progress(engines.items(), "loading"):
        if missing := engine.missing():
            results[name] = Result(status=f"not installed ({', '.join(missing)})")
            continue
        results[name] = Result()
        try:
            prepare(name, setup)
            processes[name] = EngineProcess(name, setup, texts)
            stack.callback(processes[name].close)
        except EngineFailed as error:
            results[name].status = f"failed: {error}"
    return processes


def _compare(processes: dict[str, EngineProcess], results: Results, names: list[str]) -> None:
    """An untimed pass over everything: the largest difference of any component from the reference engine's vectors."""
    reference: dict[str, FloatArray] = {}
    peers_first = sorted(processes.values(), key=lambda process: process.name == OURS)
    for process in _progress(peers_first, "untimed pass"):
        with _recorded(processes, results, process):
            vectors = {name: process.vectors(name) for name in names}
            reference = reference or vectors
            differences = [float(np.abs(vectors[name] - reference[name]).max()) for name in names]
            results[process.name].max_difference = max(differences)


def _time(process: EngineProcess, name: str, result: Result, others: Others) -> None:
    busy = report.busy_seconds()
    wall, cpu = process.cpu_seconds(name)
    others.used += report.busy_seconds() - busy - cpu
    others.timed += wall
    result.seconds.setdefault(name, []).append(wall)
    result.cpu_seconds.setdefault(name, []).append(cpu)


def _measure_latencies(
    arguments: argparse.Namespace, processes: dict[str, EngineProcess], results: Results, names: list[str]
) -> None:
    share = -(-arguments.latency_repeats // arguments.rounds)
    for number in _progress(range(arguments.rounds), "latencies"):
        for name in names:
            for process in _turn(processes, number):
                with _recorded(processes, results, process):
                    time.sleep(_SETTLE_SECONDS)
                    process.latencies(name, _WARM_UP)
                    results[process.name].latencies.setdefault(name, []).extend(process.latencies(name, share))


def _turn(processes: dict[str, EngineProcess], number: int) -> list[EngineProcess]:
    """Every engine once; each round begins with another one."""
    order = list(processes.values())
    start = number % max(1, len(order))
    return order[start:] + order[:start]


@contextmanager
def _recorded(processes: dict[str, EngineProcess], results: Results, process: EngineProcess) -> Iterator[None]:
    """An engine that fails is out of the run; its row says why."""
    try:
        yield
    except EngineFailed as error:
        results[process.name].status = f"failed: {error}"
        del processes[process.name]


def _peak_meter(num_threads: int) -> tuple[Peak, Callable[[], float]]:
    """Our register-only FMA loop, or numpy's matrix product where the loop is not built or (wrongly) slower."""
    product = _numpy_gflops()
    try:
        measure_peak = importlib.import_module("rtp_llm.ops.native_ops").measure_peak
        loop = float(measure_peak(num_threads, 0.3))
    except Exception as error:  # a benchmark must run without our kernels, whatever keeps them from loading
        print(f"our FMA loop cannot be run: {error}", file=sys.stderr)
        loop = 0.0
    if loop >= product:
        return Peak("register FMA loop"), lambda: float(measure_peak(num_threads, 0.3))
    return Peak(f"numpy matrix product, since our FMA loop reaches {loop:.0f}"), _numpy_gflops


def _numpy_gflops() -> float:
    size, repeats = 2048, 3
    a = np.ones((size, size), np.float32)
    a @ a
    start = time.perf_counter()
    for _ in range(repeats):
        a @ a
    return 2 * size**3 * repeats / (time.perf_counter() - start) / 1e9


def _progress(iterable: Any, label: str) -> Any:
    return tqdm(iterable, desc=label, file=sys.stderr, leave=False)


def _throughput(result: Result, workload: Workload) -> float:
    """Texts per second, the median round."""
    return len(workload.texts) / statistics.median(result.seconds[workload.name])


def _median_latency(result: Result, name: str) -> float:
    return statistics.median(result.latencies[name])


def _finished(results: Results) -> Results:
    return {name: result for name, result in results.items() if result.status == "ok"}


def _fastest_peer(results: Results, workload: Workload) -> str | None:
    peers = {name: _throughput(result, workload) for name, result in _finished(results).items() if name != OURS}
    return max(peers, key=peers.__getitem__) if peers else None


def _quickest_peer(results: Results, name: str) -> str | None:
    peers = {peer: _median_latency(result, name) for peer, result in _finished(results).items() if peer != OURS}
    return min(peers, key=peers.__getitem__) if peers else None


def print_tables(results: Results, peak: Peak, workloads: dict[str, Workload], shape: Shape) -> None:
    print(f"measured fp32 peak: {peak.gflops:.0f} GFLOP/s ({peak.source})")
    for workload in workloads.values():
        print(f"\n{workload}\n{_throughput_table(results, peak, workload, shape)}")
    for name, label in _LATENCY.items():
        if any(name in result.latencies for result in results.values()):
            print(f"\n{label} at a time, milliseconds\n{_latency_table(results, name)}")
    print("".join(f"\n{name}: {result.status}" for name, result in results.items() if result.status != "ok"))


def _throughput_table(results: Results, peak: Peak, workload: Workload, shape: Shape) -> str:
    best = _fastest_peer(results, workload)
    gflop = shape.flops(workload.num_tokens) / 1e9
    rows = []
    for name, result in _finished(results).items():
        rate, seconds = _throughput(result, workload), result.seconds[workload.name]
        gflops = gflop * rate / len(workload.texts)
        rows.append([
            name,
            f"{rate:.1f}",
            f"{(max(seconds) - min(seconds)) / statistics.median(seconds):.0%}",
            f"{statistics.median(result.cpu_seconds[workload.name]) / len(workload.texts) * 1e3:.2f}",
            f"{gflops:.0f}",
            f"{gflops / peak.gflops:.0%}",
            f"{rate / _throughput(results[best], workload):.2f}" if best else "-",
            f"{result.max_difference:.1e}",
            f"{result.resident_mb:.0f}",
        ])  # fmt: skip
    headers = ("engine", "texts/s", "spread", "CPU ms/text", "GFLOP/s", "of peak", "to best peer", "max diff", "RSS MB")
    return report.table(headers, rows)


def _latency_table(results: Results, name: str) -> str:
    best = _quickest_peer(results, name)
    rows = []
    for engine, result in _finished(results).items():
        p50, p90, p99 = np.percentile(result.latencies[name], (50, 90, 99)) * 1e3
        ratio = f"{_median_latency(results[best], name) * 1e3 / p50:.2f}" if best else "-"
        rows.append([engine, f"{p50:.2f}", f"{p90:.2f}", f"{p99:.2f}", ratio])
    return report.table(("engine", "p50", "p90", "p99", "speed to best peer"), rows)


def summary(results: Results, peak: Peak, workloads: dict[str, Workload], shape: Shape) -> dict[str, Any]:
    """The run as JSON: per engine its figures, and ours to the best peer per workload."""
    engines: dict[str, dict[str, Any]] = {name: asdict(result) for name, result in results.items()}
    for name, result in _finished(results).items():
        rates = {workload.name: _throughput(result, workload) for workload in workloads.values()}
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
        "ours_to_best_peer": _ratios(results, workloads),
        "workloads": {name: {"texts": len(w.texts), "tokens": w.total_tokens} for name, w in workloads.items()},
    }


def _percentiles(seconds: list[float]) -> dict[str, float]:
    return dict(zip(("p50", "p90", "p99"), np.percentile(seconds, (50, 90, 99)).tolist(), strict=True))


def _ratios(results: Results, workloads: dict[str, Workload]) -> dict[str, dict[str, Any]]:
    """Ours to the best peer, above 1 is faster: the median and range of the rounds' own ratios, and the latencies'."""
    ratios: dict[str, dict[str, Any]] = {}
    if OURS not in _finished(results):
        return ratios
    ours = results[OURS]
    for name, workload in workloads.items():
        if best := _fastest_peer(results, workload):
            rounds = [theirs / own for theirs, own in zip(results[best].seconds[name], ours.seconds[name], strict=True)]
            ratios[name] = {"peer": best, "median": statistics.median(rounds), "range": [min(rounds), max(rounds)]}
    for name in ours.latencies:
        if best := _quickest_peer(results, name):
            ratio = _median_latency(results[best], name) / _median_latency(ours, name)
            ratios[f"latency {name}"] = {"peer": best, "median": ratio}
    return ratios


if __name__ == "__main__":
    main()
