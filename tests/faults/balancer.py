"""A small load balancer: it asks each server for its /health and sends requests to those that say 200."""

import http.client
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_LOOK_AGAIN = 0.1


class Balancer:
    """`port` is where it listens; `healthy` are the ports of the servers that it sends to."""

    def __init__(self, ports: Sequence[int]) -> None:
        self.port = 0
        self.healthy: list[int] = []
        self._ports = ports
        self._turn = 0
        self._over = threading.Event()

    def watch(self) -> None:
        while not self._over.wait(_LOOK_AGAIN):
            self.healthy = [port for port in self._ports if _exchange(port, "GET", "/health", b"")[0] == 200]

    def forward(self, path: str, body: bytes) -> tuple[int, bytes]:
        """A server's answer; 599 where one broke off: that request is lost."""
        self._turn += 1
        healthy = self.healthy
        if not healthy:
            return 502, b""
        return _exchange(healthy[self._turn % len(healthy)], "POST", path, body)

    def close(self) -> None:
        self._over.set()


def _exchange(port: int, method: str, path: str, body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        return 599, repr(error).encode()
    finally:
        connection.close()


@contextmanager
def balancing(ports: Sequence[int]) -> Iterator[Balancer]:
    balancer = Balancer(ports)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            status, body = balancer.forward(self.path, self.rfile.read(int(self.headers["content-length"])))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    balancer.port = server.server_port
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,)), threading.Thread(target=balancer.watch)]
    for thread in threads:
        thread.start()
    try:
        yield balancer
    finally:
        balancer.close()
        server.shutdown()
        for thread in threads:
            thread.join()
        server.server_close()
