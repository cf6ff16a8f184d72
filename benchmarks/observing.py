"""What logs and traces cost: CPU microseconds of the process a request, over an engine that does nothing.

    python -m benchmarks.observing [--requests 5000]

The application is called in process, without sockets; the thread that writes the log (to /dev/null) and the one that
sends traces (to a collector on loopback in a process of its own, which reads and throws away) count.
"""

import argparse
import asyncio
import logging
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from starlette.types import Message

from benchmarks import report
from benchmarks.http_overhead import NoEngine
from rtp_llm.config import ServerConfig
from rtp_llm.observability import Observer
from rtp_llm.observability.log_output import LogOutput
from rtp_llm.observability.logs import JsonLines, RequestLog, set_up
from rtp_llm.observability.tracing import Tracer
from rtp_llm.server.dispatch import Dispatcher

_BODY = b'{"input":"The quick brown fox jumps over the lazy dog","encoding_format":"base64"}'
_CALLER = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-%b"
_ROUNDS = 7


class _Collector(BaseHTTPRequestHandler):
    """Takes traces and forgets them."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def _collect(listener: socket.socket) -> None:
    server = ThreadingHTTPServer(listener.getsockname(), _Collector, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    server.serve_forever()


async def _send(app: Dispatcher, count: int, traceparent: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_BODY))]
    if traceparent:
        headers.append((b"traceparent", traceparent))
    scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": headers}

    async def receive() -> Message:
        return {"type": "http.request", "body": _BODY, "more_body": False}

    async def send(message: Message) -> None:
        assert message.get("status", 200) == 200

    for _ in range(count):
        await app(scope, receive, send)


def _microseconds(observers: Sequence[Observer], count: int, traceparent: bytes, flush: Callable[[], object]) -> float:
    app = Dispatcher(NoEngine(), ServerConfig(checkpoint_path="none"), observers)
    began = time.process_time()
    asyncio.run(_send(app, count, traceparent))
    flush()
    return (time.process_time() - began) / count * 1e6


def _nothing() -> None:
    """Nothing is left to write."""


def main(argv: Sequence[str] | None = None) -> None:
    """Each way of observing in turn, several times; the least, which other work on the machine disturbs least."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.observing", description=__doc__)
    parser.add_argument("--requests", type=int, default=5000, help="of a round")
    parser.add_argument("--json", default="", help="also write the JSON line to this file")
    arguments = parser.parse_args(argv)
    listener = socket.create_server(("127.0.0.1", 0))
    collector = multiprocessing.get_context("fork").Process(target=_collect, args=(listener,), daemon=True)
    collector.start()
    output = set_up(os.open(os.devnull, os.O_WRONLY))
    logging.getLogger().setLevel(logging.INFO)
    tracer = Tracer(f"http://127.0.0.1:{listener.getsockname()[1]}/v1/traces")
    costs = _measure(_ways(output, tracer), arguments.requests)
    tracer.close()
    collector.terminate()
    base = min(costs["off"])
    rows, results = [], {}
    for name, values in costs.items():
        least, median = min(values), statistics.median(values)
        results[name] = {"microseconds": least, "added": least - base, "median": median}
        rows.append([name, f"{least:.1f}", f"{least - base:+.1f}", f"{median:.1f}"])
    print(report.describe(report.machine()) + "\n")
    print(report.table(("", "us a request", "added", "median"), rows))
    report.finish(
        {"benchmark": "observing", **vars(arguments), "machine": report.machine(), "results": results}, arguments.json
    )


def _ways(output: LogOutput, tracer: Tracer) -> dict[str, tuple[Any, ...]]:
    """By name: observers, the caller's traceparent, what ends a round."""
    text = output.formatter
    assert text is not None

    def log(share: float, formatter: logging.Formatter) -> tuple[Any, ...]:
        return [RequestLog(share)], b"", lambda: output.flush(), formatter

    return {
        "off": ([], b"", _nothing, text),
        "a text line for each": log(1.0, text),
        "a JSON line for each": log(1.0, JsonLines()),
        "a JSON line for 1 %": log(0.01, JsonLines()),
        "traced, not sampled": ([tracer], _CALLER % b"00", _nothing, text),
        "traced, five spans": ([tracer], _CALLER % b"01", _nothing, text),
    }


def _measure(ways: dict[str, tuple[Any, ...]], count: int) -> dict[str, list[float]]:
    costs: dict[str, list[float]] = {name: [] for name in ways}
    (handler,) = logging.getLogger().handlers
    for _ in range(_ROUNDS):
        for name, (observers, traceparent, flush, formatter) in ways.items():
            handler.setFormatter(formatter)
            costs[name].append(_microseconds(observers, count, traceparent, flush))
    return costs


if __name__ == "__main__":
    main()
