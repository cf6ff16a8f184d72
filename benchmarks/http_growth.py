"""How the server grows, with the texts of a request and the tokens of a text: `python -m benchmarks.http_growth`.

Texts: all-MiniLM-L6-v2, one request of 1 to 10,000 short texts. Tokens: a model of bge-m3's shape with random weights
and few layers, one text of 1 to 8192 tokens. Milliseconds are the median of a few calls over HTTP; memory is the most
that the server had resident during them, beyond what it had at rest before the first.
"""

import argparse
import http.client
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks import checkpoints, corpus, report
from benchmarks.load_plots import plot
from benchmarks.peers.process import pin
from benchmarks.server_process import ServerProcess, body

_COUNTS = (1, 10, 100, 1000, 10_000)
_LENGTHS = (1, 8, 64, 512, 1024, 2048, 4096, 8192)
_LAYERS = 2


@dataclass(frozen=True)
class Point:
    """One size; `unit_us` is the time a text or a token, `peak_mb` what the server had beyond its rest."""

    size: int
    milliseconds: float
    unit_us: float
    peak_mb: float


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http_growth", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="calls of each size; the median is shown")
    parser.add_argument("--plots", default="", help="folder for PNG files; empty: none")
    parser.add_argument("--json", default="", help="also write the JSON line to this file")
    arguments = parser.parse_args(argv)
    pin(0)
    facts = report.machine()
    print(report.describe(facts))
    tables = {"texts of a request": by_texts(arguments.repeats), "tokens of a text": by_tokens(arguments.repeats)}
    for name, points in tables.items():
        rows = [[f"{p.size}", f"{p.milliseconds:.1f}", f"{p.unit_us:.1f}", f"{p.peak_mb:.1f}"] for p in points]
        print(report.table((name, "ms", f"us a {name.split()[0][:-1]}", "peak MB"), rows))
        if arguments.plots:
            sizes = [float(point.size) for point in points]
            lines = {
                "ms": (sizes, [point.milliseconds for point in points]),
                "peak MB": (sizes, [max(point.peak_mb, 0.1) for point in points]),
            }
            file = Path(arguments.plots) / f"http-growth-{name.split()[0]}.png"
            plot(lines, file, f"growth with the {name}", name, "ms, MB beyond rest")
    points_by_table = {name: [asdict(point) for point in points] for name, points in tables.items()}
    report.finish({"benchmark": "http_growth", "machine": facts, **points_by_table}, arguments.json)


def by_texts(repeats: int) -> list[Point]:
    """Requests of more and more short texts."""
    checkpoint = checkpoints.minilm()
    texts = corpus.numbered(corpus.load(checkpoint)["short"].texts)
    bodies = {count: body(list(islice(texts, count))) for count in _COUNTS}
    with ServerProcess(checkpoint, "--max_client_batch_size", f"{_COUNTS[-1]}") as server:
        return measure(server, bodies, repeats)


def by_tokens(repeats: int) -> list[Point]:
    """Requests of one longer and longer text, as token ids, so that the tokeniser's work is left out."""
    checkpoint = checkpoints.random_weights("bge-m3", layers=_LAYERS).resolve()
    bodies = {n: json.dumps({"input": [10 + i % 20_000 for i in range(n)]}) for n in _LENGTHS}
    with ServerProcess(checkpoint) as server:
        return measure(server, bodies, repeats)


def measure(server: ServerProcess, bodies: dict[int, str], repeats: int) -> list[Point]:
    """The sizes one after the other, each a few times."""
    _wait(server, next(iter(bodies.values())))
    rest = server.memory()["Rss"]
    points = []
    for size, content in bodies.items():
        server.reset_peak()
        times = [_seconds(partial(_post, server.port, content)) for _ in range(repeats)]
        middle = statistics.median(times)
        points.append(Point(size, middle * 1e3, middle / size * 1e6, (server.peak() - rest) / 1e6))
    return points


def _wait(server: ServerProcess, content: str) -> None:
    while True:
        try:
            _post(server.port, content)
            return
        except OSError:
            if time.perf_counter() - server.started > 120:
                raise
            time.sleep(0.05)


def _post(port: int, content: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request("POST", "/v1/embeddings", content, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise RuntimeError(f"status {response.status}: {answer[:500]!r}")


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
