"""The load generator: what it counts, and from when (benchmarks/load_client.py)."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from benchmarks.load_client import Plan, Seen, _poisson, _Run, http_request


@contextmanager
def server(
    status: int = 200,
    delay: float = 0.0,
    close: bool = False,
    connection: str = "keep-alive",
    clients: set[Any] | None = None,
) -> Iterator[int]:
    """Answers every request alike -> its port; `clients` gets the addresses of connections."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(delay)
            if clients is not None:
                clients.add(self.client_address)
            if close:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Length", "2")
            self.send_header("Connection", connection)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 64

    with Server(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
        thread.start()
        yield listener.server_address[1]
        listener.shutdown()
        thread.join()


def run(port: int, connections: int, seconds: float, rate: float = 0.0, limit: int | None = None) -> Seen:
    request = http_request("/v1/embeddings", "x" * 10_000)
    return _Run(Plan([request], connections, seconds, rate, limit=limit), port).go()


def test_a_closed_loop_keeps_its_connections_busy() -> None:
    with server(delay=0.02) as port:
        seen = run(port, 4, 0.3)
    assert set(seen.statuses) == {200} and 8 <= seen.statuses[200] <= 64
    assert seen.latencies.min() >= 0.02


@pytest.mark.parametrize(("header", "connections"), [("keep-alive", 2), ("close", 10)])
def test_a_connection_serves_request_after_request_unless_the_server_ends_it(header: str, connections: int) -> None:
    clients: set[Any] = set()
    with server(connection=header, clients=clients) as port:
        assert run(port, 2, 60.0, limit=10).statuses == {200: 10}
    assert len(clients) == connections


def test_a_closed_loop_ends_with_its_limit() -> None:
    with server() as port:
        assert run(port, 4, 60.0, limit=10).statuses == {200: 10}


@pytest.mark.parametrize("status", [429, 500])
def test_other_answers_are_counted_but_have_no_latency(status: int) -> None:
    with server(status=status) as port:
        seen = run(port, 2, 60.0, limit=5)
    assert seen.statuses == {status: 5} and not len(seen.latencies)


def test_a_connection_that_ends_is_an_aborted_request() -> None:
    with server(close=True) as port:
        assert run(port, 2, 60.0, limit=5).statuses == {0: 5}


def test_an_open_loop_counts_the_wait_for_a_slow_server() -> None:
    # One connection that takes 20 ms a request, and 100 requests a second: the last ones wait for all before them.
    with server(delay=0.02) as port:
        seen = run(port, 1, 0.3, rate=100.0)
    assert seen.statuses[200] == len(list(_poisson(0.0, 0.3, 100.0, 0)))
    assert seen.latencies[-1] > 0.1 and np.median(seen.latencies) > 0.04


def test_arrivals_are_random_but_the_same_each_time() -> None:
    times = np.array(list(_poisson(5.0, 15.0, 200.0, 1)))
    assert 1800 < len(times) < 2200 and 5 < times[0] and times[-1] < 15
    assert list(_poisson(5.0, 15.0, 200.0, 1)) == list(times)
    assert abs(np.diff(times).std() * 200 - 1) < 0.1


def test_a_percentile_of_too_few_answers_is_none() -> None:
    seen = Seen(np.ones(500), {200: 500}, 0, 1.0, 0.0, 0.0)
    assert seen.percentile(0.99) == 1000 and seen.percentile(0.999) is None
