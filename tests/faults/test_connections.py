"""Clients that behave badly on the wire: the server answers or lets go of them, and everybody else is served."""

import contextlib
import resource
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.faults.conftest import Faulty
from tests.server.conftest import CONFIG, running_server, wait_until
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.faults

BODY = b'{"input":"a"}'
REQUEST = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY


def connect(port: int) -> socket.socket:
    """A connection that waits as long as a busy machine may take: what is to end ends by the server's own timers."""
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def read_all(connection: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 16):
            received += part
    return received


def test_a_thousand_idle_connections(server: Faulty) -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit < 2100:
        pytest.skip(f"{limit} open files are allowed; client and server need one a connection each")
    with contextlib.ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(connect(server.port))
        assert server.works()
        assert server.ask("hello").status_code == 200
    assert server.works()


@pytest.mark.parametrize("first", [b"", b"POST /v1/emb", REQUEST + b"GET /hea"], ids=["nothing", "half a head", "next"])
def test_a_head_that_never_ends_is_given_up(first: bytes) -> None:
    config = replace(CONFIG, timeout_keep_alive=1)
    with running_server(FakeEngine(), config) as address, connect(address.port) as connection:
        began = time.monotonic()
        connection.sendall(first)
        received = read_all(connection)
        assert time.monotonic() - began > 0.5  # not at once
        assert received.startswith(b"HTTP/1.1 200") == first.startswith(REQUEST)


def test_a_head_drop_by_drop_is_given_up() -> None:
    with running_server(FakeEngine(), replace(CONFIG, timeout_keep_alive=1)) as address:
        with connect(address.port) as connection, pytest.raises(ConnectionError):
            for byte in REQUEST * 40:  # for a minute
                connection.sendall(bytes([byte]))
                time.sleep(0.02)


def test_a_slow_head_that_ends_is_served(server: Faulty) -> None:
    with connect(server.port) as connection:
        for start in range(0, len(REQUEST), 7):
            connection.sendall(REQUEST[start : start + 7])
            time.sleep(0.002)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("when", ["at once", "while it is computed"])
def test_a_client_that_closes_its_half(server: Faulty, when: str) -> None:
    """It is owed its answer, and the next one is served."""
    if when == "while it is computed":
        server.runtime.gate.clear()
    with connect(server.port) as connection:
        connection.sendall(REQUEST)
        connection.shutdown(socket.SHUT_WR)
        time.sleep(0.3)
        server.runtime.gate.set()
        assert b"HTTP/1.1 200 OK" in read_all(connection)
    assert server.works()


def test_clients_that_do_not_read_hold_up_nobody(server: Faulty) -> None:
    """Their answers fill the socket's buffers and stay there; the others' come."""
    text = b'{"input":[' + b",".join(b'"%d"' % n for n in range(150)) + b"]}"
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(text)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            connection = stack.enter_context(connect(server.port))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                for _ in range(40):
                    connection.sendall(head + text)
        assert server.works()
    assert server.works()


def test_many_clients_that_leave(server: Faulty) -> None:
    """All of them leave the queue; none of their work is computed."""
    server.runtime.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        stays = pool.submit(server.ask, "stays")
        wait_until(lambda: server.runtime.busy == 1)
        computed = len(server.runtime.batches)
        for n in range(20):
            with connect(server.port) as connection:
                body = b'{"input":"%d"}' % n
                head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
                connection.sendall(head + body)
                time.sleep(0.01)
        values = server.engine.metrics.registry.get_sample_value
        wait_until(lambda: values("rtp_llm_requests_in_flight", {"lane": "interactive"}) == 1)
        server.runtime.gate.set()
        assert stays.result().status_code == 200
    assert server.works() and len(server.runtime.batches) - computed <= 2


def test_a_head_of_megabytes_is_refused(server: Faulty) -> None:
    with connect(server.port) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Much: " + b"a" * (2 << 20))
        received = read_all(connection)
        assert received.startswith(b"HTTP/1.1 431") and b"connection: close" in received
    assert server.works()


def test_a_body_drop_by_drop_is_given_up() -> None:
    with running_server(FakeEngine(), replace(CONFIG, body_timeout=1)) as address, connect(address.port) as connection:
        head, _, body = REQUEST.partition(b"\r\n\r\n")
        connection.sendall(head + b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for byte in body[:-1]:
                connection.sendall(bytes([byte]))
                time.sleep(0.1)
        assert read_all(connection).startswith(b"HTTP/1.1 408")


def test_a_stream_whose_client_is_killed_frees_the_queue(server: Faulty) -> None:
    """gRPC: the connection breaks in the middle of a stream of texts; HTTP over the same engine goes on."""
    grpc = pytest.importorskip("grpc")
    proto = pytest.importorskip("rtp_llm.server.grpc.proto")
    from tests.server.grpc.conftest import Loop
    from tests.server.grpc.conftest import serving as serving_grpc

    loop = Loop()
    try:
        with serving_grpc(loop, server.engine, CONFIG) as address:
            channel = grpc.insecure_channel(address)
            call = channel.stream_stream("/tei.v1.Embed/EmbedStream")
            request = proto.message("EmbedRequest")(inputs="a").SerializeToString()
            answers = call(request for _ in range(10_000))
            assert next(answers)
            channel.close()
            values = server.engine.metrics.registry.get_sample_value
            wait_until(lambda: values("rtp_llm_requests_in_flight", {"lane": "interactive"}) == 0)
            assert server.works()
    finally:
        loop.close()
