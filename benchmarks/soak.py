"""More than the server can do, for long: `python -m benchmarks.soak --minutes 10` (30 for the long one).

Single queries at four times the capacity, with deadlines of 2 and of 0.2 seconds. Every answer must be 200, 429 or 504,
no connection may end without one, and the server's memory must stay within 5 % of what it was after the first minute.
Requests that found none of the client's connections free for 2 seconds are counted as unsent: what was offered is told
apart from what was asked for.
"""

import argparse
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benchmarks import checkpoints, corpus, report
from benchmarks.load import latencies
from benchmarks.load_client import LoadClient, Plan, Seen, http_request
from benchmarks.load_plots import plot
from benchmarks.peers.process import pin
from benchmarks.server_process import ServerProcess, body

_ALLOWED = {200, 429, 504}
_SLICE = 20.0  # seconds of load whose latencies are kept at a time
_SETTLED = 60.0
_DEADLINES = (2.0, 2.0, 0.2)  # seconds, in turn
_DRIFT = 0.05
_PATIENCE = max(_DEADLINES)
_TEXTS = 12_000  # more than can be in flight, in whole turns of the deadlines


@dataclass(frozen=True)
class Sample:
    """The server's resident bytes at a time since the start."""

    seconds: float
    resident: int


class MemoryWatch(threading.Thread):
    """Reads the server's memory once a second until `stop`."""

    def __init__(self, server: ServerProcess) -> None:
        super().__init__(daemon=True)
        self.samples: list[Sample] = []
        self._server = server
        self._ended = threading.Event()

    def run(self) -> None:
        second = 0
        while not self._ended.wait(1.0):
            second += 1
            self.samples.append(Sample(float(second), self._server.memory()["Rss"]))

    def stop(self) -> list[Sample]:
        """End it; all that it read."""
        self._ended.set()
        self.join()
        return self.samples


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parse(argv)
    pin(0)
    checkpoint = checkpoints.choose(arguments.checkpoint, "")
    facts = report.machine()
    print(report.describe(facts))
    result = {"benchmark": "soak", "machine": facts, **measure(arguments, checkpoint)}
    print(report.table(("", "value"), [[key, f"{value}"] for key, value in result.items() if key != "samples"]))
    if arguments.plots:
        seconds, megabytes = zip(*result["samples"], strict=True)
        path = Path(arguments.plots) / "soak-memory.png"
        plot({"RSS": (seconds, megabytes)}, path, "four times the capacity", "seconds", "MB", "linear")
    report.finish(result, arguments.json)
    if not result["held"]:
        raise SystemExit("the server did not hold")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--checkpoint", default="", help="folder; default: all-MiniLM-L6-v2")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--times", type=float, default=4.0, help="the load, in capacities")
    parser.add_argument("--connections", type=int, default=6000, help="open at most; more than concurrency_limit")
    parser.add_argument("--options", default="", help="further options of the server, as on a command line")
    parser.add_argument("--plots", default="", help="folder for PNG files; empty: none")
    parser.add_argument("--json", default="", help="also write the JSON line to this file")
    return parser.parse_args(argv)


def measure(arguments: argparse.Namespace, checkpoint: Path) -> dict[str, Any]:
    """The capacity, then the load, slice by slice on the same connections' server."""
    texts = islice(corpus.numbered(corpus.load(checkpoint)["short"].texts), _TEXTS)
    bodies = [body([text]) for text in texts]
    patient = [http_request("/v1/embeddings", content) for content in bodies]
    limits = cycle(_DEADLINES)
    hurried = [http_request("/v1/embeddings", content, [f"X-Request-Timeout: {next(limits)}"]) for content in bodies]
    with ServerProcess(checkpoint, *arguments.options.split()) as server:
        server.wait_for_embedding("ready?")
        with closing(LoadClient(server.port)) as client:
            client.run(Plan(patient, 32, 1.0))
            capacity = client.run(Plan(patient, 32, 5.0)).rate
            watch = MemoryWatch(server)
            watch.start()
            count = max(round(arguments.minutes * 60 / _SLICE), 1)
            rate = capacity * arguments.times
            offer = partial(Plan, hurried, arguments.connections, _SLICE, rate, patience=_PATIENCE)
            plans = (offer(seed=seed) for seed in range(count))
            slices = [_tell(client.run(plan), watch) for plan in plans]
            samples = watch.stop()
            after = client.run(Plan(patient, 32, 5.0)).rate
    return summary(slices, samples, capacity, rate) | {"capacity_after": after}


def _tell(seen: Seen, watch: MemoryWatch) -> Seen:
    """A line a slice, so that a run which is broken off has said something."""
    resident = watch.samples[-1].resident / 1e6 if watch.samples else 0.0
    print(f"{len(watch.samples)} s: {seen.statuses}, {seen.unsent} unsent, {resident:.1f} MB", flush=True)
    return seen


def summary(slices: list[Seen], samples: list[Sample], capacity: float, rate: float) -> dict[str, Any]:
    """Statuses of all slices, latencies of the first and the last, memory after the first minute."""
    statuses = sum((Counter(seen.statuses) for seen in slices), Counter[int]())
    settled = [sample.resident for sample in samples if sample.seconds >= _SETTLED] or [samples[-1].resident]
    drift = max(abs(resident / settled[0] - 1) for resident in settled)
    return {
        "seconds": sum(seen.seconds for seen in slices),
        "capacity": capacity,
        "offered": rate,
        "statuses": dict(statuses),
        "unsent": sum(seen.unsent for seen in slices),
        "answers_per_second": statuses.total() / sum(seen.seconds for seen in slices),
        "useful_per_second": statuses[200] / sum(seen.seconds for seen in slices),
        "first": latencies(slices[0]),
        "last": latencies(slices[-1]),
        "client_cores": sum(seen.cpu_seconds for seen in slices) / sum(seen.seconds for seen in slices),
        "resident_mb": settled[0] / 1e6,
        "drift": drift,
        "samples": [(sample.seconds, round(sample.resident / 1e6, 1)) for sample in samples],
        "held": set(statuses) <= _ALLOWED and drift <= _DRIFT,
    }


if __name__ == "__main__":
    main()
