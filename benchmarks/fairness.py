"""Single queries beside a bulk job in the real server: `python -m benchmarks.fairness`.

The queries come as a Poisson process, first alone, then while a job of 100,000 texts runs as requests of 1,000, four in
flight. The bar: the queries' p99 is at most twice that of the idle server, plus one batch.
"""

import argparse
import urllib.request
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from benchmarks import checkpoints, corpus, report
from benchmarks.load import latencies, shown
from benchmarks.load_client import LoadClient, Plan, Seen, http_request
from benchmarks.peers.process import pin
from benchmarks.server_process import ServerProcess, body

_TEXTS_PER_REQUEST = 1000
_IN_FLIGHT = 4


@dataclass(frozen=True)
class Stretch:
    """Milliseconds of the queries, and what the job had meanwhile."""

    name: str
    p50_ms: float | None
    p99_ms: float | None
    p999_ms: float | None
    queries: int
    bulk_texts: int
    bulk_texts_per_second: float
    not_200: int


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parse(argv)
    pin(0)
    checkpoint = checkpoints.choose(arguments.checkpoint, "")
    facts = report.machine()
    print(report.describe(facts))
    stretches, batch_ms = measure(arguments, checkpoint)
    rows = [
        [s.name, *(shown(ms) for ms in (s.p50_ms, s.p99_ms, s.p999_ms))]
        + [f"{s.queries}", f"{s.bulk_texts}", f"{s.bulk_texts_per_second:.0f}", f"{s.not_200}"]
        for s in stretches
    ]
    headers = ("", "p50 ms", "p99 ms", "p99.9 ms", "queries", "bulk texts", "bulk texts/s", "not 200")
    print(report.table(headers, rows))
    idle, beside = (stretch.p99_ms for stretch in stretches)
    if idle is None or beside is None:
        raise SystemExit("too few queries for a p99: raise --rate or --seconds")
    limit = 2 * idle + batch_ms
    verdict = "held" if beside <= limit else "missed"
    print(f"mean batch beside the job {batch_ms:.1f} ms; p99 {beside:.1f} <= {limit:.1f} ms: {verdict}")
    result = {"benchmark": "fairness", "machine": facts, "batch_ms": batch_ms, "limit_ms": limit, "verdict": verdict}
    report.finish(result | {"stretches": [asdict(stretch) for stretch in stretches]}, arguments.json)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fairness", description=__doc__)
    parser.add_argument("--checkpoint", default="", help="folder; default: all-MiniLM-L6-v2")
    parser.add_argument("--rate", type=float, default=50.0, help="queries a second")
    parser.add_argument("--bulk-texts", type=int, default=100_000)
    parser.add_argument("--bulk", default="short", choices=("short", "passages"))
    parser.add_argument("--seconds", type=float, default=45.0, help="length of a stretch: most of the job's time")
    parser.add_argument("--options", default="", help="further options of the server, as on a command line")
    parser.add_argument("--json", default="", help="also write the JSON line to this file")
    return parser.parse_args(argv)


def measure(arguments: argparse.Namespace, checkpoint: Path) -> tuple[list[Stretch], float]:
    """The two stretches, and the mean milliseconds of a batch in the second."""
    texts = corpus.load(checkpoint)
    queries = Plan(
        [http_request("/v1/embeddings", body([text])) for text in texts["short"].texts],
        256,
        arguments.seconds,
        arguments.rate,
    )
    around = corpus.numbered(texts[arguments.bulk].texts)
    groups = [list(islice(around, _TEXTS_PER_REQUEST)) for _ in range(2 * _IN_FLIGHT)]
    requests = [http_request("/v1/embeddings", body(group)) for group in groups]
    limit = arguments.bulk_texts // _TEXTS_PER_REQUEST
    job = Plan(requests, _IN_FLIGHT, 600.0, limit=limit)
    with ServerProcess(checkpoint, *arguments.options.split()) as server:
        server.wait_for_embedding("ready?")
        with closing(LoadClient(server.port)) as client, closing(LoadClient(server.port)) as bulk:
            client.run(Plan(queries.requests, 8, 1.0))
            alone = client.run(queries)
            before = _batches(server)
            bulk.start(job)
            beside, seen = client.run(queries), bulk.finish()
            after = _batches(server)
    batch_ms = (after[1] - before[1]) / (after[0] - before[0]) * 1e3
    return [_stretch("queries alone", alone), _stretch("beside the job", beside, seen)], batch_ms


def _stretch(name: str, queries: Seen, bulk: Seen | None = None) -> Stretch:
    texts = len(bulk.latencies) * _TEXTS_PER_REQUEST if bulk else 0
    every = [queries, bulk] if bulk else [queries]
    return Stretch(
        name=name,
        **latencies(queries),
        queries=len(queries.latencies),
        bulk_texts=texts,
        bulk_texts_per_second=texts / bulk.seconds if bulk else 0.0,
        not_200=sum(count for seen in every for status, count in seen.statuses.items() if status != 200),
    )


def _batches(server: ServerProcess) -> tuple[float, float]:
    """How many batches the server has computed, and the seconds that they took."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as answer:
        lines = [line.split(" ") for line in answer.read().decode().splitlines() if not line.startswith("#")]
    names = ("rtp_llm_batch_seconds_count", "rtp_llm_batch_seconds_sum")
    count, total = (sum(float(line[1]) for line in lines if line[0].split("{")[0] == name) for name in names)
    return count, total


if __name__ == "__main__":
    main()
