"""What front-end processes are worth: `python -m benchmarks.frontends`.

Single queries from many connections in closed loop, with each number of front-ends in turn. The processor's time that a
request takes is told apart: the thread that has the event loop beside the engine, the engine's batch threads, all
front-ends, and the client, which shares the cores. What the loop's thread takes is the limit that no number of cores
lifts: `the loop ends at` is 1 over it. The model is MiniLM, or (`--shape bert-tiny`) one that takes next to no time.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks import checkpoints, corpus, report
from benchmarks.load_client import LoadClient, Plan, http_request
from benchmarks.peers.process import pin
from benchmarks.server_process import ServerProcess, body


@dataclass(frozen=True)
class Window:
    """One stretch of load; microseconds are of processor time, a request."""

    front_ends: int
    requests_per_second: float
    not_200: int
    p50_ms: float | None
    p99_ms: float | None
    loop_us: float
    batches_us: float
    front_ends_us: float
    client_us: float


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parse(argv)
    pin(0)
    checkpoint = checkpoints.choose(arguments.checkpoint, arguments.shape)
    texts = corpus.load(checkpoint)["short"].texts
    requests = [http_request("/v1/embeddings", body([text])) for text in texts]
    facts = report.machine()
    print(f"{report.describe(facts)}\n{checkpoint.name}, one short text a request, {arguments.connections} connections")
    counts = [int(word) for word in arguments.counts.split(",")]
    windows = [
        measure(checkpoint, requests, count, arguments)
        for _ in tqdm(range(arguments.rounds), desc="rounds", file=sys.stderr, leave=False)
        for count in counts
    ]
    print(_table(windows, counts))
    report.finish(
        {"benchmark": "frontends", "machine": facts, "model": checkpoint.name, "connections": arguments.connections}
        | {"windows": [asdict(window) for window in windows]},
        arguments.json,
    )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frontends", description=__doc__)
    parser.add_argument("--checkpoint", default="", help="folder; default: all-MiniLM-L6-v2")
    parser.add_argument("--shape", default="", choices=("", *checkpoints.SHAPES), help="random weights, speed only")
    parser.add_argument("--counts", default="1,2", help="numbers of front-ends; 1: one process does it all")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one stretch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", default="", help="also write the JSON line to this file")
    return parser.parse_args(argv)


def measure(checkpoint: Path, requests: list[bytes], count: int, arguments: argparse.Namespace) -> Window:
    """A stretch with so many front-ends, in a server of its own."""
    with ServerProcess(checkpoint, "--frontend_server_count", str(count)) as server:
        server.wait_for_embedding("ready?")
        time.sleep(1.0)  # the other front-ends
        with closing(LoadClient(server.port)) as client:
            client.run(Plan(requests, arguments.connections, 1.0))
            others = _front_ends(server.pid)
            loop, total = server.cpu_by_thread()
            apart = sum(map(report.cpu_seconds, others))
            seen = client.run(Plan(requests, arguments.connections, arguments.seconds))
            apart = sum(map(report.cpu_seconds, others)) - apart
            loop_end, total_end = server.cpu_by_thread()
    answered = max(sum(seen.statuses.values()), 1)
    loop, total = loop_end - loop, total_end - total
    return Window(
        front_ends=count,
        requests_per_second=seen.rate,
        not_200=answered - seen.statuses.get(200, 0),
        p50_ms=seen.percentile(0.5),
        p99_ms=seen.percentile(0.99),
        loop_us=loop / answered * 1e6,
        batches_us=(total - loop) / answered * 1e6,
        front_ends_us=apart / answered * 1e6,
        client_us=seen.cpu_seconds / answered * 1e6,
    )


def _front_ends(server: int) -> list[int]:
    """Child processes of a server: Linux tells those of its main thread, which has started them."""
    return [int(word) for word in Path(f"/proc/{server}/task/{server}/children").read_text().split()]


def _table(windows: Sequence[Window], counts: Sequence[int]) -> str:
    headers = (
        "front-ends", "requests/s", "p50 ms", "p99 ms", "not 200", "loop us", "batches us", "front-ends us",
        "client us", "the loop ends at",
    )  # fmt: skip
    rows = []
    for count in counts:
        own = [window for window in windows if window.front_ends == count]
        middle = {
            name: statistics.median(value for value in (getattr(window, name) for window in own) if value is not None)
            for name in Window.__annotations__
        }
        rows.append([
            f"{count}", f"{middle['requests_per_second']:.0f}", f"{middle['p50_ms']:.2f}", f"{middle['p99_ms']:.2f}",
            f"{sum(window.not_200 for window in own)}",
            *(f"{middle[name]:.0f}" for name in ("loop_us", "batches_us", "front_ends_us", "client_us")),
            f"{1e6 / middle['loop_us']:.0f}/s",
        ])  # fmt: skip
    return report.table(headers, rows)


if __name__ == "__main__":
    main()
