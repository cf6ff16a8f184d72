"""The server under load, beside Infinity: `python -m benchmarks.load --infinity FOLDER/bin/infinity_emb`.

For every mix of requests: the throughput of 32 connections in closed loop (the capacity), then the latency at 25, 50,
75 and 90 % of that server's own capacity in open loop, counted from the moment when a request was due. The load client
shares the cores: its share is a column. What `Model.embed` makes of the same texts without HTTP is the engine's speed.
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks import checkpoints, corpus, report
from benchmarks.load_client import LoadClient, Plan, Seen, http_request
from benchmarks.load_plots import plot_latencies
from benchmarks.peers import OURS, Setup
from benchmarks.peers.process import EngineProcess, pin
from benchmarks.server_process import InfinityProcess, ServerProcess, body

INFINITY = "infinity"
SHARES = (0.25, 0.5, 0.75, 0.9)
_CONNECTIONS = 32
_OPEN_CONNECTIONS = 256
_ENGINE_TEXTS = 2000  # of a mix, at most, for the engine's own speed
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Mix:
    """What is sent: groups of texts, one a request, around and around."""

    name: str
    groups: list[list[str]]
    connections: int = _CONNECTIONS

    @property
    def texts_per_request(self) -> float:
        return sum(len(group) for group in self.groups) / len(self.groups)

    def requests(self) -> list[bytes]:
        """The calls that both servers understand."""
        bodies = (json.loads(body(group)) | {"model": "default"} for group in self.groups)
        return [http_request("/v1/embeddings", json.dumps(content)) for content in bodies]


@dataclass(frozen=True)
class Window:
    """One stretch of load. Milliseconds are of whole requests; `share` is 0 in closed loop."""

    server: str
    mix: str
    share: float
    offered: float
    requests_per_second: float
    texts_per_second: float
    p50_ms: float | None
    p99_ms: float | None
    p999_ms: float | None
    statuses: dict[int, int]
    loop_us: float
    server_us: float
    client_cores: float
    other_cores: float
    lateness_ms: float


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parse(argv)
    cores = pin(0)
    checkpoint = checkpoints.choose(arguments.checkpoint, "")
    facts = report.machine()
    print(f"{report.describe(facts)}\n{checkpoint.name}; load client: one process on the same cores")
    mixes = [mix for mix in make_mixes(checkpoint) if mix.name in arguments.mixes.split(",")]
    engine = engine_speed(checkpoint, mixes, len(cores), arguments.seconds)
    windows = [window for mix in mixes for window in measure(arguments, checkpoint, mix)]
    print(_table(windows))
    bars = _bars(windows, engine)
    print(report.table(("bar", "mix", "value", "wanted", ""), bars))
    if arguments.plots:
        plot_latencies([asdict(window) for window in windows], Path(arguments.plots))
    result = {"benchmark": "load", "machine": facts, "engine": engine, "windows": [asdict(w) for w in windows]}
    report.finish(result | {"bars": bars}, arguments.json)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--checkpoint", default="", help="folder; default: all-MiniLM-L6-v2")
    parser.add_argument("--infinity", default="", help="infinity_emb of an environment of its own; empty: left out")
    parser.add_argument("--mixes", default="queries,passages,bulk,adversarial")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of one stretch")
    parser.add_argument("--options", default="", help="further options of our server, as on a command line")
    parser.add_argument("--plots", default="", help="folder for PNG files; empty: none")
    parser.add_argument("--json", default="", help="also write the JSON line to this file")
    return parser.parse_args(argv)


def make_mixes(checkpoint: Path) -> list[Mix]:
    """Single queries, single passages, jobs of 64 to 1000 texts, and lengths as uneven as they can be."""
    texts = corpus.load(checkpoint)
    short, passages, long = (texts[name].texts for name in ("short", "passages", "long"))
    several = corpus.numbered([*short[:192], *passages[:64]])
    sizes = random.Random(0).choices((64, 128, 256, 1000), (12, 3, 1, 1), k=34)
    uneven = [group for i in range(32) for group in _uneven(short[i * 13 : i * 13 + 13], long[i * 3 : i * 3 + 3])]
    return [
        Mix("queries", [[text] for text in short]),
        Mix("passages", [[text] for text in passages]),
        Mix("bulk", [list(islice(several, size)) for size in sizes], connections=4),
        Mix("adversarial", uneven),
    ]


def _uneven(short: list[str], long: list[str]) -> list[list[str]]:
    """The shortest beside the longest, in one request and in several."""
    return [["a"], long[:1], ["a", long[1]], *([text] for text in short[:8]), [*short[8:], long[2]]]


def engine_speed(checkpoint: Path, mixes: list[Mix], num_threads: int, seconds: float) -> dict[str, dict[str, float]]:
    """By mix: texts a second of `Model.embed`, and its CPU microseconds a text."""
    speeds = {}
    texts = {mix.name: [text for group in mix.groups for text in group][:_ENGINE_TEXTS] for mix in mixes}
    with closing(EngineProcess(OURS, Setup(checkpoint, checkpoints.MODELS, 0, num_threads), texts)) as engine:
        for name, own in texts.items():
            engine.vectors(name)
            runs = [engine.cpu_seconds(name)]
            while sum(wall for wall, _ in runs) < seconds / 2:
                runs.append(engine.cpu_seconds(name))
            wall, cpu = (statistics.median(part) for part in zip(*runs, strict=True))
            speeds[name] = {"texts_per_second": len(own) / wall, "cpu_us": cpu / len(own) * 1e6}
    return speeds


def measure(arguments: argparse.Namespace, checkpoint: Path, mix: Mix) -> list[Window]:
    """Both servers, one after the other: capacity, then the shares of it."""
    windows = []
    with both(arguments, checkpoint) as servers:
        answers = {name: server.embed(mix.groups[0]) for name, server in servers.items()}
        _compare(answers)
        for name, server in tqdm(servers.items(), desc=mix.name, file=sys.stderr, leave=False):
            with closing(LoadClient(server.port)) as client, ExitStack() as others:
                for other in servers.values():
                    if other is not server:
                        others.enter_context(other.paused())
                requests = mix.requests()
                client.run(Plan(requests, mix.connections, 1.0))
                full = _window(name, mix, server, client, Plan(requests, mix.connections, arguments.seconds))
                windows.append(full)
                for share in SHARES:
                    rate = full.requests_per_second * share
                    plan = Plan(requests, _OPEN_CONNECTIONS, arguments.seconds, rate)
                    windows.append(_window(name, mix, server, client, plan, share))
    return windows


@contextmanager
def both(arguments: argparse.Namespace, checkpoint: Path) -> Iterator[dict[str, ServerProcess]]:
    """Ours, and Infinity where its executable is given; one is stopped while the other is measured."""
    with ServerProcess(checkpoint, *arguments.options.split()) as ours:
        ours.wait_for_embedding("ready?")
        if not arguments.infinity:
            yield {OURS: ours}
            return
        InfinityProcess.executable = arguments.infinity
        os.environ.update(DO_NOT_TRACK="1", HF_HUB_OFFLINE="1")
        with InfinityProcess(checkpoint) as infinity:
            infinity.wait_for_embedding("ready?")
            yield {OURS: ours, INFINITY: infinity}


def _compare(answers: dict[str, Any]) -> None:
    ours = answers[OURS]
    for name, theirs in answers.items():
        difference = float(np.abs(ours - theirs).max())
        if difference > _TOLERANCE:
            raise SystemExit(f"{name}'s vectors are {difference:.1e} from ours: the two do not do the same work")


def _window(name: str, mix: Mix, server: ServerProcess, client: LoadClient, plan: Plan, share: float = 0.0) -> Window:
    time.sleep(0.5)  # threads that spin after work have stopped
    loop, total = server.cpu_by_thread()
    busy, began = report.busy_seconds(), time.perf_counter()
    seen = client.run(plan)
    busy, wall = report.busy_seconds() - busy, time.perf_counter() - began
    loop_end, total_end = server.cpu_by_thread()
    requests = max(sum(seen.statuses.values()), 1)
    return Window(
        server=name,
        mix=mix.name,
        share=share,
        offered=plan.rate,
        requests_per_second=seen.rate,
        texts_per_second=seen.rate * mix.texts_per_request,
        **latencies(seen),
        statuses=seen.statuses,
        loop_us=(loop_end - loop) / requests * 1e6,
        server_us=(total_end - total) / requests * 1e6,
        client_cores=seen.cpu_seconds / seen.seconds,
        other_cores=(busy - (total_end - total) - seen.cpu_seconds) / wall,
        lateness_ms=seen.lateness * 1e3,
    )


def latencies(seen: Seen) -> dict[str, float | None]:
    """p50, p99 and p99.9; None where too few answers stand behind it."""
    return {f"p{name}_ms": seen.percentile(share) for name, share in (("50", 0.5), ("99", 0.99), ("999", 0.999))}


def shown(milliseconds: float | None) -> str:
    """Two digits, or nothing for what is not known."""
    return "" if milliseconds is None else f"{milliseconds:.2f}"


def _table(windows: list[Window]) -> str:
    headers = (
        "mix", "server", "load", "req/s", "texts/s", "p50 ms", "p99 ms", "p99.9 ms", "not 200",
        "loop us/req", "server us/req", "client cores", "other cores", "late ms",
    )  # fmt: skip
    rows = [
        [
            w.mix, w.server, f"{w.share:.0%}" if w.share else "closed", f"{w.requests_per_second:.1f}",
            f"{w.texts_per_second:.0f}", *(shown(ms) for ms in (w.p50_ms, w.p99_ms, w.p999_ms)),
            f"{sum(count for status, count in w.statuses.items() if status != 200)}",
            f"{w.loop_us:.0f}", f"{w.server_us:.0f}", f"{w.client_cores:.2f}", f"{w.other_cores:.2f}",
            f"{w.lateness_ms:.2f}",
        ]
        for w in windows
    ]  # fmt: skip
    return report.table(headers, rows)


def _bars(windows: list[Window], engine: dict[str, dict[str, float]]) -> list[list[str]]:
    """What is asked of the server, what was measured, and whether that is enough."""
    bars = []
    for mix, speed in engine.items():
        own = {window.share: window for window in windows if window.mix == mix and window.server == OURS}
        checks = [("of the engine's texts/s", own[0].texts_per_second / speed["texts_per_second"], 0.9, True)]
        if own[0.75].p99_ms and own[0.75].p50_ms:
            checks.append(("p99 / p50 at 75 %", own[0.75].p99_ms / own[0.75].p50_ms, 4.0, False))
        for window in windows:
            if window.mix == mix and window.server == INFINITY and not window.share:
                checks.append(("times Infinity", own[0].texts_per_second / window.texts_per_second, 2.0, True))
        for name, value, wanted, is_least in checks:
            held = value >= wanted if is_least else value <= wanted
            sign = ">=" if is_least else "<="
            bars.append([name, mix, f"{value:.2f}", f"{sign} {wanted}", "held" if held else "missed"])
    return bars


if __name__ == "__main__":
    main()
