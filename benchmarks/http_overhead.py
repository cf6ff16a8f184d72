"""CPU time of the HTTP server per request, over an engine that does nothing: decoding, dispatch, encoding, the socket.

    python3 -m benchmarks.http_overhead [--seconds 4] [--connections 8]

The server runs pinned to the first core and the load (wrk) to the second. CPU time is user + system of the whole server
process over a run, divided by the requests that wrk counted. The row `uvicorn alone` is an application that answers a
constant without reading the request: what no server on uvicorn can go below.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import uvicorn
from starlette.types import Receive, Scope, Send

from benchmarks.report import cpu_seconds
from rtp_llm.config import ServerConfig
from rtp_llm.core import ModelInfo, Request, Response, TaskType
from rtp_llm.observability import Metrics, Waiting
from rtp_llm.server import serve
from rtp_llm.server.engine_like import Part

_SENTENCE = "The quick brown fox jumps over the lazy dog near the bank of the river"
_ANSWER = b"x" * 2200
_INFO = ModelInfo(
    name="none",
    model_type="none",
    tasks=(TaskType.DENSE,),
    dimension=384,
    max_seq_len=512,
    vocab_size=30522,
    backend="none",
    instruction_set="none",
    num_threads=1,
    dtype="fp32",
    max_batch_tokens=512,
)


@dataclass(frozen=True)
class Case:
    """What every request of a run asks for."""

    name: str
    num_texts: int
    encoding_format: str


CASES = (
    Case("uvicorn alone", 1, "base64"),
    Case("1 text, base64", 1, "base64"),
    Case("1 text, float", 1, "float"),
    Case("32 texts, base64", 32, "base64"),
    Case("32 texts, float", 32, "float"),
)


@dataclass(frozen=True)
class Result:
    """What one run measured."""

    case: str
    requests: int
    errors: int
    requests_per_second: float
    cpu_us: float
    p50_ms: float
    p99_ms: float


class NoEngine:
    """Answers with the same vectors at once; 32 is the most inputs it is asked for."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self._rows = np.random.default_rng(0).standard_normal((32, 384)).astype(np.float32)

    def info(self) -> ModelInfo:
        return _INFO

    async def waiting(self) -> Waiting:
        return Waiting(0, 0)

    def check_health(self) -> None:
        pass

    def token_parts(self, text: str, *, add_special_tokens: bool = True) -> Iterator[Part]:
        return iter(())

    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        return ""

    def prompt(self, name: str) -> str:
        return ""

    def chat(self, messages: Any, **options: Any) -> str:
        return ""

    async def run(self, request: Request) -> Response:
        await asyncio.sleep(0)
        count = len(request.inputs)
        return Response(
            outputs={TaskType.DENSE: self._rows[:count]}, num_tokens=[16] * count, truncated=[False] * count
        )


async def constant(scope: Scope, receive: Receive, send: Send) -> None:
    """An application of the least work, with an answer as long as one base64 vector's."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_ANSWER))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": _ANSWER})


def serve_nothing(port: int, alone: bool) -> None:
    """The server process."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if alone:
        uvicorn.run(
            constant,
            port=port,
            http="httptools",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
        )
    else:
        serve(NoEngine(), ServerConfig(checkpoint_path="none", host="127.0.0.1", start_port=port))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def load(url: str, case: Case, connections: int, seconds: int) -> str:
    """wrk's report of one run."""
    body = {"input": [_SENTENCE] * case.num_texts, "model": "none", "encoding_format": case.encoding_format}
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write("wrk.method = 'POST'\nwrk.headers['Content-Type'] = 'application/json'\n")
        script.write(f"wrk.body = [==[{json.dumps(body)}]==]\n")
        script.flush()
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{seconds}s",
            "--latency",
            "-s",
            script.name,
            f"{url}/v1/embeddings",
        ]
        core = {max(os.sched_getaffinity(0))}
        run = subprocess.run(
            command, capture_output=True, text=True, check=True, preexec_fn=lambda: os.sched_setaffinity(0, core)
        )
    return run.stdout


@contextmanager
def server(alone: bool) -> Iterator[tuple[str, int]]:
    """Address and process id of a server that runs until the block ends."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.http_overhead", "--serve", str(port), *(["--alone"] if alone else [])]
    process = subprocess.Popen(command)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def measure(case: Case, connections: int, seconds: int) -> Result:
    """One run, after a second of warming up."""
    with server(alone=case == CASES[0]) as (url, pid):
        load(url, case, connections, 1)
        before = cpu_seconds(pid)
        report = load(url, case, connections, seconds)
        used = cpu_seconds(pid) - before
    count = re.search(r"(\d+) requests in ([\d.]+)s", report)
    if count is None:
        raise SystemExit(f"wrk's report has changed:\n{report}")
    requests = int(count[1])
    return Result(
        case=case.name,
        requests=requests,
        errors=sum(map(int, re.findall(r"Non-2xx or 3xx responses: (\d+)", report))),
        requests_per_second=round(requests / float(count[2]), 1),
        cpu_us=round(used / requests * 1e6, 1),
        p50_ms=latency_ms(report, 50),
        p99_ms=latency_ms(report, 99),
    )


def latency_ms(report: str, percentile: int) -> float:
    found = re.search(rf"^\s+{percentile}%\s+([\d.]+)(us|ms|s)$", report, re.MULTILINE)
    if found is None:
        return float("nan")
    return round(float(found[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[found[2]], 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=4, help="length of a run")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--serve", type=int, metavar="PORT", help=argparse.SUPPRESS)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve_nothing(options.serve, options.alone)
        return
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed (apt-get install wrk)")
    results = [measure(case, options.connections, options.seconds) for case in CASES]
    print(f"{'case':18} {'req/s':>8} {'CPU us/req':>11} {'p50 ms':>8} {'p99 ms':>8} {'errors':>7}")
    for r in results:
        print(f"{r.case:18} {r.requests_per_second:8.0f} {r.cpu_us:11.1f} {r.p50_ms:8.2f} {r.p99_ms:8.2f} {r.errors:7}")
    print(
        json.dumps(
            {"benchmark": "http_overhead", "connections": options.connections, "results": [asdict(r) for r in results]}
        )
    )


if __name__ == "__main__":
    main()
