"""What capacity planning predicts beside a load that was measured: `python -m benchmarks.predicted LOAD.json`.

LOAD.json is what `python -m benchmarks.load --mixes queries,passages --json LOAD.json` has just written on this
machine, with no other work on it. The costs of a step are measured now, as `benchmarks.capacity` does; what a request
costs is what the load's closed loop says: CPU time of the event loop, and of the client, which shared the cores.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import checkpoints, corpus, report
from benchmarks.capacity import Traffic, fit, measure
from benchmarks.load import shown
from benchmarks.simulator import Costs
from rtp_llm.config import EngineConfig
from rtp_llm.engine.loading import load_engine

_TEXTS = {"queries": "short", "passages": "passages"}  # the mixes of one text a request, by their workload


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the costs, run the scheduler at each rate that was offered, compare."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predicted", description=__doc__)
    parser.add_argument("load", help="JSON of benchmarks.load")
    parser.add_argument("--checkpoint", default="", help="folder; default: all-MiniLM-L6-v2")
    parser.add_argument("--json", default="", help="also write the JSON line to this file")
    arguments = parser.parse_args(argv)
    checkpoint = checkpoints.choose(arguments.checkpoint, "")
    with closing(load_engine(EngineConfig(checkpoint_path=str(checkpoint)), "predicted")) as engine:
        measured, info = measure(engine), engine.info()
    costs, error = fit(measured, info.num_threads)
    print(f"{report.describe(report.machine())}\n{costs}, fitted within {error:.0%}\n")
    windows = json.loads(Path(arguments.load).read_text())["windows"]
    workloads = corpus.load(checkpoint)
    rows = [
        row
        for mix, name in _TEXTS.items()
        for row in _rows(
            [window for window in windows if window["mix"] == mix],
            [[tokens] for tokens in workloads[name].num_tokens],
            (info.max_batch_tokens, info.num_threads),
            costs,
        )
    ]
    headers = ("mix", "load", "offered", "answered", "p50 ms", "predicted", "p99 ms", "predicted", "cores busy")
    print(report.table(headers, [[one if isinstance(one, str) else shown(one) for one in row] for row in rows]))
    facts = {"benchmark": "predicted", "machine": report.machine(), "costs": vars(costs), "fit_error": error}
    report.finish({**facts, "rows": rows}, arguments.json)


def _rows(
    windows: list[dict[str, Any]], requests: list[list[int]], device: tuple[int, int], costs: Costs
) -> Iterator[list[Any]]:
    """Of a mix: what full steps would reach beside the closed loop, then each share of that."""
    for window in windows:
        if not window["share"]:
            client = window["client_cores"] / window["requests_per_second"]
            costs = replace(costs, per_request=window["loop_us"] / 1e6 + client)
            most = Traffic(requests, *device, costs).most
            yield [window["mix"], "closed", most, window["requests_per_second"], *[None] * 5]
            continue
        p50, p99, busy = Traffic(requests, *device, costs).latencies(window["offered"])
        rates = [window["offered"], window["requests_per_second"]]
        latencies = [window["p50_ms"], p50 * 1e3, window["p99_ms"], p99 * 1e3]
        yield [window["mix"], f"{window['share']:.0%}", *rates, *latencies, f"{busy:.0%}"]


if __name__ == "__main__":
    main()
