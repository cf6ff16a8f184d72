"""What of the engine's throughput is left behind HTTP: `python -m benchmarks.http_throughput`.

Many connections send short texts, one a request, to the real server; in turn with that, the same texts go through
`Model.embed` in a process of its own on the same cores. The client (wrk, else httpx) shares those cores, so its
CPU time is measured and shown: what it takes, the server cannot have.
"""

import argparse
import asyncio
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks import checkpoints, corpus, report
from benchmarks.corpus import Workload
from benchmarks.peers import OURS, Setup
from benchmarks.peers.process import EngineProcess, pin
from benchmarks.server_process import ServerProcess, body

_TOLERANCE = 1e-5
_WRK_SCRIPT = """
local requests, place = {}, 0
function init(arguments)
  wrk.headers["Content-Type"] = "application/json"
  for line in io.lines(arguments[1]) do
    requests[#requests + 1] = wrk.format("POST", "/v1/embeddings", nil, line)
  end
end
function request()
  place = place % #requests + 1
  return requests[place]
end
function done(summary, latency)
  local e = summary.errors
  io.write(string.format('\\n{"requests": %d, "seconds": %.6f, "errors": %d, "p50_ms": %.3f, "p99_ms": %.3f}\\n',
    summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""


@dataclass(frozen=True)
class Window:
    """One stretch of load, as the client and /proc saw it."""

    texts_per_second: float
    errors: int
    p50_ms: float
    p99_ms: float
    server_cpu_us: float
    client_cpu_us: float


@dataclass(frozen=True)
class Offline:
    """One stretch of `Model.embed`."""

    texts_per_second: float
    cpu_us: float


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parse(argv)
    cores = pin(arguments.threads)
    checkpoint = checkpoints.choose(arguments.checkpoint, arguments.shape)
    workload = corpus.load(checkpoint)[arguments.workload]
    facts = report.machine()
    client = "wrk" if shutil.which("wrk") else "httpx"
    print(f"{report.describe(facts)}\n{workload}\n{arguments.connections} connections, client: {client}")
    difference, offline, windows = measure(arguments, checkpoint, workload, len(cores))
    ratio = statistics.median(w.texts_per_second / o.texts_per_second for w, o in zip(windows, offline, strict=True))
    print(_table(offline, windows))
    print(f"over HTTP / offline: {ratio:.2f}; largest difference of answers: {difference:.1e}")
    result = {
        "benchmark": "http_throughput",
        "client": client,
        "connections": arguments.connections,
        "machine": facts,
        "max_difference": difference,
        "offline": [asdict(part) for part in offline],
        "ratio": ratio,
        "texts_per_request": arguments.texts_per_request,
        "windows": [asdict(window) for window in windows],
        "workload": str(workload),
    }
    report.finish(result, arguments.json)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http_throughput", description=__doc__)
    parser.add_argument("--checkpoint", default="", help="folder; default: all-MiniLM-L6-v2")
    parser.add_argument("--shape", default="", choices=("", *checkpoints.SHAPES), help="random weights, speed only")
    parser.add_argument("--workload", default="short", choices=("short", "passages", "long"))
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--texts-per-request", type=int, default=1)
    parser.add_argument("--encoding", default="base64", choices=("base64", "float"))
    parser.add_argument("--seconds", type=int, default=5, help="length of one stretch")
    parser.add_argument("--rounds", type=int, default=4, help="stretches of each kind, in turn")
    parser.add_argument("--threads", type=int, default=0, help="cores for server and client together; 0: all")
    parser.add_argument("--json", default="", help="also write the JSON line to this file")
    return parser.parse_args(argv)


def measure(
    arguments: argparse.Namespace, checkpoint: Path, workload: Workload, num_threads: int
) -> tuple[float, list[Offline], list[Window]]:
    """Largest difference between the two paths' vectors, then the stretches in turn."""
    size = arguments.texts_per_request
    groups = [workload.texts[i : i + size] for i in range(0, len(workload.texts) - size + 1, size)]
    bodies = [body(group, arguments.encoding) for group in groups]
    setup = Setup(checkpoint, checkpoints.MODELS, num_threads=num_threads)
    engine = EngineProcess(OURS, setup, {"texts": workload.texts})
    with closing(engine), ServerProcess(checkpoint, "--num_threads", str(num_threads)) as server:
        server.wait_for_embedding("ready?")
        expected = engine.vectors("texts")[:32]
        difference = float(np.abs(server.embed(workload.texts[:32]) - expected).max())
        if difference > _TOLERANCE:
            raise SystemExit(f"the server's vectors are {difference:.1e} from Model.embed's: they are wrong")
        _load(server, bodies, arguments.connections, 1, size)
        offline, windows = [], []
        for _ in tqdm(range(arguments.rounds), desc="rounds", file=sys.stderr, leave=False):
            offline.append(_offline(engine, len(workload.texts), arguments.seconds))
            windows.append(_load(server, bodies, arguments.connections, arguments.seconds, size))
    return difference, offline, windows


def _offline(engine: EngineProcess, num_texts: int, seconds: float) -> Offline:
    wall, cpu, passes = 0.0, 0.0, 0
    while wall < seconds:
        more_wall, more_cpu = engine.cpu_seconds("texts")
        wall, cpu, passes = wall + more_wall, cpu + more_cpu, passes + 1
    return Offline(passes * num_texts / wall, cpu / (passes * num_texts) * 1e6)


def _load(server: ServerProcess, bodies: list[str], connections: int, seconds: int, texts_per_request: int) -> Window:
    url = f"http://127.0.0.1:{server.port}"
    server_cpu, client_cpu = server.cpu_seconds(), _client_cpu_seconds()
    run = _wrk if shutil.which("wrk") else _httpx
    seen = run(url, bodies, connections, seconds)
    requests = max(1.0, seen["requests"])
    return Window(
        texts_per_second=requests * texts_per_request / seen["seconds"],
        errors=int(seen["errors"]),
        p50_ms=seen["p50_ms"],
        p99_ms=seen["p99_ms"],
        server_cpu_us=(server.cpu_seconds() - server_cpu) / requests * 1e6,
        client_cpu_us=(_client_cpu_seconds() - client_cpu) / requests * 1e6,
    )


def _client_cpu_seconds() -> float:
    """This process and the children that have ended: wrk, but not the server."""
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _wrk(url: str, bodies: list[str], connections: int, seconds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        script, lines = Path(folder) / "load.lua", Path(folder) / "bodies.txt"
        script.write_text(_WRK_SCRIPT)
        lines.write_text("\n".join(bodies) + "\n")
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script), url]
        run = subprocess.run([*command, "--", str(lines)], capture_output=True, text=True, check=True)
    answer: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return answer


def _httpx(url: str, bodies: list[str], connections: int, seconds: int) -> dict[str, float]:
    return asyncio.run(_httpx_load(url, bodies, connections, seconds))


async def _httpx_load(url: str, bodies: list[str], connections: int, seconds: int) -> dict[str, float]:
    import httpx

    latencies: list[float] = []
    errors = 0

    async def send(client: httpx.AsyncClient, waiting: Iterator[str]) -> None:
        nonlocal errors
        while (begun := time.perf_counter()) < end:
            response = await client.post(f"{url}/v1/embeddings", content=next(waiting))
            errors += response.status_code != 200
            latencies.append(time.perf_counter() - begun)

    begin = time.perf_counter()
    end = begin + seconds
    headers = {"Content-Type": "application/json"}
    limits = httpx.Limits(max_connections=connections)
    async with httpx.AsyncClient(headers=headers, limits=limits, timeout=30) as client:
        waiting = cycle(bodies)
        await asyncio.gather(*(send(client, waiting) for _ in range(connections)))
    wall = time.perf_counter() - begin
    p50, p99 = np.percentile(latencies, (50, 99)) * 1e3
    return {"requests": len(latencies), "seconds": wall, "errors": errors, "p50_ms": float(p50), "p99_ms": float(p99)}


def _table(offline: list[Offline], windows: list[Window]) -> str:
    headers = ("", "texts/s", "p50 ms", "p99 ms", "errors", "server CPU us/request", "client CPU us/request")
    rows = [["Model.embed", f"{part.texts_per_second:.0f}", "", "", "", f"{part.cpu_us:.0f}", ""] for part in offline]
    for window in windows:
        rows.append([
            "over HTTP",
            f"{window.texts_per_second:.0f}",
            f"{window.p50_ms:.2f}",
            f"{window.p99_ms:.2f}",
            f"{window.errors}",
            f"{window.server_cpu_us:.0f}",
            f"{window.client_cpu_us:.0f}",
        ])  # fmt: skip
    return report.table(headers, rows)


if __name__ == "__main__":
    main()
