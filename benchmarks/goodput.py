"""What the server answers in time while more comes than it can do: `python -m benchmarks.goodput`.

The capacity is what 32 connections in closed loop get. Then single queries or passages are due as they please (Poisson)
at some multiples of it, each with a deadline (X-Request-Timeout), and counted is what is answered with 200 before that,
since the moment when it was due. No two texts in flight are the same. The load client shares the cores, and so does the
event loop, which reads and refuses what is too much: a part of the capacity is lost to both.
"""

import argparse
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import checkpoints, corpus, report
from benchmarks.load import latencies, shown
from benchmarks.load_client import LoadClient, Plan, Seen, http_request
from benchmarks.peers.process import pin
from benchmarks.server_process import ServerProcess, body

_MIXES = {"queries": "short", "passages": "passages"}
_CONNECTIONS = 32
_OPEN_CONNECTIONS = 4000  # more than concurrency_limit
_TEXTS = 8000
_ALLOWED = {200, 429, 504}


@dataclass(frozen=True)
class Window:
    """One stretch of load; of the requests, those that are answered in time a second, and the other ends.

    lateness_ms  within which 99 % of the requests were sent after they were due: the client's own part of the time
    """

    mix: str
    deadline: float
    load: float
    capacity: float
    offered: float
    in_time: float
    late: float
    refused: float
    expired: float
    unsent: float
    others: int
    p50_ms: float | None
    p99_ms: float | None
    lateness_ms: float

    @property
    def share(self) -> float:
        """In time, of what could be."""
        return self.in_time / min(self.offered, self.capacity)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parse(argv)
    pin(0)
    checkpoint = checkpoints.choose(arguments.checkpoint, "")
    facts = report.machine()
    print(f"{report.describe(facts)}\n{checkpoint.name}; load client: one process on the same cores")
    windows = [window for mix in arguments.mixes.split(",") for window in measure(arguments, checkpoint, mix)]
    print(_table(windows))
    held = not any(window.others for window in windows)
    result = {"benchmark": "goodput", "machine": facts, "held": held, "windows": [asdict(one) for one in windows]}
    report.finish(result, arguments.json)
    if not held:
        raise SystemExit(f"answers other than {sorted(_ALLOWED)}, or none")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.goodput", description=__doc__)
    parser.add_argument("--checkpoint", default="", help="folder; default: all-MiniLM-L6-v2")
    parser.add_argument("--mixes", default=",".join(_MIXES))
    parser.add_argument("--deadlines", default="0.1,0.3,1", help="seconds")
    parser.add_argument("--loads", default="0.5,1,2,4", help="in capacities")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of one stretch")
    parser.add_argument("--options", default="", help="further options of the server, as on a command line")
    parser.add_argument("--json", default="", help="also write the JSON line to this file")
    return parser.parse_args(argv)


def measure(arguments: argparse.Namespace, checkpoint: Path, mix: str) -> list[Window]:
    """A server's capacity, then each deadline at each load."""
    deadlines, loads = ([float(one) for one in text.split(",")] for text in (arguments.deadlines, arguments.loads))
    texts = islice(corpus.numbered(corpus.load(checkpoint)[_MIXES[mix]].texts), _TEXTS)
    bodies = [body([text]) for text in texts]
    patient = [http_request("/v1/embeddings", content) for content in bodies]
    windows = []
    with ServerProcess(checkpoint, *arguments.options.split()) as server:
        server.wait_for_embedding("ready?")
        with closing(LoadClient(server.port)) as client:
            client.run(Plan(patient, _CONNECTIONS, 1.0))
            capacity = client.run(Plan(patient, _CONNECTIONS, arguments.seconds)).rate
            for deadline in deadlines:
                hurried = [
                    http_request("/v1/embeddings", content, [f"X-Request-Timeout: {deadline}"]) for content in bodies
                ]
                for load in loads:
                    rate = load * capacity
                    seen = client.run(Plan(hurried, _OPEN_CONNECTIONS, arguments.seconds, rate, patience=deadline))
                    windows.append(make_window(mix, deadline, load, capacity, arguments.seconds, seen))
    return windows


def make_window(mix: str, deadline: float, load: float, capacity: float, seconds: float, seen: Seen) -> Window:
    """What came of so many seconds of load; answers that came after them count too."""
    in_time = int(np.count_nonzero(seen.latencies <= deadline))
    counts = seen.statuses
    return Window(
        mix=mix,
        deadline=deadline,
        load=load,
        capacity=capacity,
        offered=(sum(counts.values()) + seen.unsent) / seconds,
        in_time=in_time / seconds,
        late=(len(seen.latencies) - in_time) / seconds,
        refused=counts.get(429, 0) / seconds,
        expired=counts.get(504, 0) / seconds,
        unsent=seen.unsent / seconds,
        others=sum(count for status, count in counts.items() if status not in _ALLOWED),
        p50_ms=latencies(seen)["p50_ms"],
        p99_ms=latencies(seen)["p99_ms"],
        lateness_ms=seen.lateness * 1e3,
    )


def _table(windows: list[Window]) -> str:
    headers = (
        "mix", "deadline s", "load", "offered/s", "in time/s", "of what could be", "late/s", "429/s", "504/s",
        "unsent/s", "others", "p50 ms", "p99 ms", "sent late ms",
    )  # fmt: skip
    rows: list[list[Any]] = [
        [
            w.mix, f"{w.deadline:g}", f"{w.load:g}", f"{w.offered:.0f}", f"{w.in_time:.0f}", f"{w.share:.2f}",
            f"{w.late:.0f}", f"{w.refused:.0f}", f"{w.expired:.0f}", f"{w.unsent:.0f}", f"{w.others}",
            shown(w.p50_ms), shown(w.p99_ms), f"{w.lateness_ms:.1f}",
        ]
        for w in windows
    ]  # fmt: skip
    return report.table(headers, rows)


if __name__ == "__main__":
    main()
