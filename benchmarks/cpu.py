"""CPU throughput and latency, ours beside its peers, in one run: `python -m benchmarks.cpu`.

Every engine has its own process on the same cores. After one untimed pass, whose vectors are compared, each round asks
every engine in turn for every workload, so that a drift of the machine meets all of them; medians are reported.
"""

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks import checkpoints, corpus, report
from benchmarks.corpus import Workload
from benchmarks.cpu_tables import LATENCY, Peak, Result, Results, print_tables, summary
from benchmarks.disk import installed_bytes
from benchmarks.peers import OURS, Engine, FloatArray, Setup, select
from benchmarks.peers.process import EngineFailed, EngineProcess, Others, pin, prepare

_SETTLE_SECONDS = 0.3  # some engines' threads spin for a while after their work
_NUM_TEXTS = {
    "quick": {"passages": 64, "short": 128, "long": 16},
    "small": {"passages": 96, "short": 512, "long": 16},
    "normal": {"passages": 256, "short": 512, "long": 64},
    "full": {"passages": 256, "short": 512, "long": 256},
}
_WARM_UP = 20


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parse(argv)
    cores = pin(arguments.threads)
    checkpoint = checkpoints.choose(arguments.checkpoint, arguments.shape, arguments.models)
    setup = Setup(checkpoint, arguments.models.resolve(), arguments.max_seq_len, len(cores))
    workloads = corpus.load(checkpoint, arguments.max_seq_len)
    workloads = {name: workloads[name].head(_NUM_TEXTS[arguments.size][name]) for name in arguments.workloads}
    facts = report.machine()
    print(f"{report.describe(facts)}\n{setup.label}, {len(cores)} threads, {arguments.rounds} rounds")
    print("\n".join(f"  {workload}" for workload in workloads.values()))
    results, peak, others = measure(arguments, setup, workloads)
    print(f"other processes used {others.cores:.2f} cores while engines were timed")
    print_tables(results, peak, workloads, checkpoints.read_shape(checkpoint))
    about = {
        "benchmark": "cpu",
        "checkpoint": setup.label,
        "machine": facts,
        **report.provenance(),
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
    peak, sample = _peak_meter(setup.num_threads)
    results: Results = {}
    others = Others()
    with ExitStack() as stack:
        processes = _load(stack, arguments.engines, setup, texts, results)
        _compare(processes, results, list(workloads))
        for number in _progress(range(arguments.rounds), "rounds"):
            sample()
            for name in workloads:
                for process in _turn(processes, number):
                    with _recorded(processes, results, process):
                        time.sleep(_SETTLE_SECONDS)
                        _time(process, name, results[process.name], others)
        if arguments.latency_repeats:
            names = [name for name in LATENCY if name in workloads]
            _measure_latencies(arguments, processes, results, names, sample)
        for process in processes.values():
            results[process.name].resident_mb = process.resident_bytes() / 1e6
    return results, peak, others


def _load(
    stack: ExitStack, engines: dict[str, Engine], setup: Setup, texts: dict[str, list[str]], results: Results
) -> dict[str, EngineProcess]:
    processes: dict[str, EngineProcess] = {}
    for name, engine in _progress(engines.items(), "loading"):
        if missing := engine.missing():
            results[name] = Result(f"not installed ({', '.join(missing)})", engine.precision)
            continue
        results[name] = Result(precision=engine.precision, installed_mb=installed_bytes(engine.distributions) / 1e6)
        try:
            prepare(name, setup)
            started = time.perf_counter()
            processes[name] = EngineProcess(name, setup, texts)
            results[name].start_seconds = time.perf_counter() - started
            stack.callback(processes[name].close)
        except EngineFailed as error:
            results[name].status = f"failed: {error}"
    return processes


def _compare(processes: dict[str, EngineProcess], results: Results, names: list[str]) -> None:
    """An untimed pass over everything: differences from the vectors of the reference engine, the first fp32 peer."""
    reference: FloatArray | None = None
    order = sorted(
        processes.values(), key=lambda process: (results[process.name].precision != "fp32", _is_ours(process))
    )
    for process in _progress(order, "untimed pass"):
        with _recorded(processes, results, process):
            vectors = np.concatenate([process.vectors(name) for name in names])
            reference = vectors if reference is None else reference
            cosines = (vectors * reference).sum(axis=1)
            results[process.name].max_difference = float(np.abs(vectors - reference).max())
            results[process.name].cosines = float(cosines.min()), float(cosines.mean())


def _is_ours(process: EngineProcess) -> bool:
    return process.name.startswith(OURS)


def _time(process: EngineProcess, name: str, result: Result, others: Others) -> None:
    wall, cpu = others.time(process, name)
    result.seconds.setdefault(name, []).append(wall)
    result.cpu_seconds.setdefault(name, []).append(cpu)


def _measure_latencies(
    arguments: argparse.Namespace,
    processes: dict[str, EngineProcess],
    results: Results,
    names: list[str],
    sample: Callable[[], None],
) -> None:
    share = -(-arguments.latency_repeats // arguments.rounds)
    for number in _progress(range(arguments.rounds), "latencies"):
        sample()
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


def _peak_meter(num_threads: int) -> tuple[Peak, Callable[[], None]]:
    """What bounds every engine, and how to take a sample of it.

    Arithmetic: our register-only FMA loop, or numpy's matrix product where the loop is not built or (wrongly) slower.
    """
    product = _numpy_gflops()
    try:
        native = importlib.import_module("rtp_llm.ops.native_library")
        loop = float(native.measure_peak(num_threads, 0.3))
    except Exception as error:  # a benchmark must run without our kernels, whatever keeps them from loading
        print(f"our FMA loop cannot be run: {error}", file=sys.stderr)
        peak = Peak("numpy matrix product")
        return peak, lambda: peak.samples.append(_numpy_gflops())
    is_faster = loop >= product
    peak = Peak("register FMA loop" if is_faster else f"numpy matrix product, since our FMA loop reaches {loop:.0f}")

    def sample() -> None:
        peak.samples.append(float(native.measure_peak(num_threads, 0.3)) if is_faster else _numpy_gflops())
        peak.read_samples.append(float(native.measure_read_rate(num_threads, 0.5)))

    return peak, sample


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


if __name__ == "__main__":
    main()
