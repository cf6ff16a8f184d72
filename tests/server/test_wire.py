"""Below the application: heads without end, bodies that do not come, bytes that are not HTTP."""

import contextlib
import logging
import socket
from dataclasses import replace

import orjson
import pytest

from tests.server.conftest import CONFIG, running_server
from tests.server.fake_engine import FakeEngine


def exchange_raw(port: int, data: bytes) -> bytes:
    """What the server says to these bytes, until it closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=3) as connection:
        received = b""
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
        with contextlib.suppress(ConnectionError, TimeoutError):
            while part := connection.recv(65536):
                received += part
    return received


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"garbage\r\n\r\n", 400, None),
        (b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", 400, None),
        (b"GET /health HTTP/9.9\r\nhost: x\r\n\r\n", 400, None),
        (b"GET /health HTTP/1.1\r\nhost: x\r\nx-long: " + b"a" * 200_000, 431, "head_too_large"),
        (b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 431, "head_too_large"),
    ],
)
def test_what_is_not_http_gets_the_same_error_form(data: bytes, status: int, code: str | None) -> None:
    with running_server(FakeEngine()) as address:
        head, _, body = exchange_raw(address.port, data).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert orjson.loads(body)["error"]["code"] == code


def test_a_body_that_does_not_arrive() -> None:
    config = replace(CONFIG, body_timeout=1)
    with running_server(FakeEngine(), config) as address:
        answer = exchange_raw(address.port, b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")
    assert b"408" in answer.split(b"\r\n")[0] and b"body_timeout" in answer


def test_half_a_body_does_not_hold_up_the_end() -> None:
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(running_server(FakeEngine()))
        with socket.create_connection(("127.0.0.1", address.port), timeout=20) as connection:
            connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")
            with socket.create_connection(("127.0.0.1", address.port), timeout=20) as later:
                # One loop reads both connections: an answer here means that the half over there has been seen.
                later.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
                later.recv(65536)
            stack.close()
            answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 503 Service Unavailable") and b"shutting down" in answer


def test_garbage_behind_two_requests_is_no_fault_of_the_servers(caplog: pytest.LogCaptureFixture) -> None:
    one = b'POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 13\r\n\r\n{"input":"a"}'
    engine = FakeEngine()
    engine.delay = 0.05
    with running_server(engine) as address:
        assert b" 400 " in exchange_raw(address.port, one + one + b"garbage\r\n\r\n")
    assert engine.running == 0
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
