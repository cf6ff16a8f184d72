"""Below the application: heads without end, bodies that do not come, bytes that are not HTTP."""

import contextlib
import logging
import re
import socket
import time
from dataclasses import replace

import orjson
import pytest

from rtp_llm.server import closing
from tests.server.conftest import CONFIG, MAX_BODY_BYTES, Address, running_server, wait_until
from tests.server.fake_engine import FakeEngine

BODY = b'{"input":"a"}'
POST = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\n"
WHOLE = POST + b"content-length: %d\r\n\r\n" % len(BODY) + BODY


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
        (b"GET /health HTTP/1.1\r\nhost: x\r\nx-long: " + b"a" * 65_530 + b"\r\n\r\n", 431, "head_too_large"),
        (b"GET /health HTTP/1.1\r\n" + b"x-more: abcdef\r\n" * 20_000 + b"\r\n", 431, "head_too_large"),
        (b"GET /" + b"a" * 66_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414, "uri_too_long"),
        (b"GET /" + b"a" * 900_000, 414, "uri_too_long"),
        (b"garbage\r\n\r\n", 400, None),
        (b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", 400, None),
        (b"GET /health HTTP/9.9\r\nhost: x\r\n\r\n", 400, None),
        (b"GET /health HTTP/1.1\r\nhost: x\r\nx-long: " + b"a" * 200_000, 431, "head_too_large"),
        (b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414, "uri_too_long"),
    ],
)
def test_what_is_not_http_gets_the_same_error_form(data: bytes, status: int, code: str | None) -> None:
    with running_server(FakeEngine()) as address:
        head, _, body = exchange_raw(address.port, data).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert orjson.loads(body)["error"]["code"] == code


def test_who_waits_for_100_continue_gets_it(address: Address) -> None:
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 15\r\n\r\n"
    with socket.create_connection(("127.0.0.1", address.port), timeout=5) as connection:
        connection.sendall(head)
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b'{"input": "ab"}')
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")


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


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nhost: x\r\nx-long: " + b"a" * 65_000 + b"\r\n",
        b"GET /health?" + b"a" * 65_000 + b" HTTP/1.1\r\nhost: x\r\n",
    ],
)
def test_a_head_just_under_the_limit_is_read(address: Address, head: bytes) -> None:
    assert exchange_raw(address.port, head + b"connection: close\r\n\r\n").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("key", [b"", b"authorization: Bearer key\r\n"], ids=["refused", "let in"])
@pytest.mark.parametrize("rest", [b"0\r\nx: ", b"0\r\n", b"1;"], ids=["trailer", "trailers", "extension"])
def test_a_trailer_without_end(rest: bytes, key: bytes) -> None:
    """It would be kept until it ends, also of a request that has been answered already."""
    with running_server(FakeEngine(), replace(CONFIG, api_key=("key",))) as address:
        endless = (b"a: b\r\n" if rest.endswith(b"\n") else b"a" * 6) * 200_000
        received = exchange_raw(address.port, POST + key + b"transfer-encoding: chunked\r\n\r\n" + rest + endless)
    assert b"HTTP/1.1 431 " in received


FRAMINGS = {
    "length": (b"content-length: 16000000\r\n\r\n", b"a" * 16_000_000),
    "chunks": (b"transfer-encoding: chunked\r\n\r\n", (b"10000\r\n" + b"a" * 65536 + b"\r\n") * 250 + b"0\r\n\r\n"),
}


@pytest.mark.parametrize("name", FRAMINGS)
def test_who_sends_too_much_reads_why(address: Address, name: str) -> None:
    """Not a reset, although the server answers long before all is sent."""
    headers, body = FRAMINGS[name]
    with socket.create_connection(("127.0.0.1", address.port), timeout=5) as connection:
        connection.sendall(POST + headers + body)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert received.startswith(b"HTTP/1.1 413 ") and b"connection: close" in received and b"max_body_bytes" in received


def test_who_sends_without_end_is_cut_off(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "LINGER_BYTES", 1 << 20)
    sent = 0
    with socket.create_connection(("127.0.0.1", address.port), timeout=5) as connection:
        connection.sendall(POST + b"content-length: %d\r\n\r\n" % (1 << 40))
        with contextlib.suppress(ConnectionError):
            while sent < 1 << 30:
                sent += connection.send(b"a" * MAX_BODY_BYTES)
    assert sent < 1 << 26


@pytest.mark.parametrize("ends", ["in time", "with the server"])
def test_who_neither_sends_nor_closes_is_let_go(monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    monkeypatch.setattr(closing, "LINGER_SECONDS", 0.2 if ends == "in time" else 60)
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(running_server(FakeEngine()))
        with socket.create_connection(("127.0.0.1", address.port), timeout=5) as connection:
            connection.sendall(POST + b"content-length: 99999999\r\n\r\n{")
            assert b"".join(iter(lambda: connection.recv(65536), b"")).startswith(b"HTTP/1.1 413 ")
            if ends == "in time":
                time.sleep(0.4)
                with pytest.raises(ConnectionError):
                    while connection.send(b"a" * 65536):
                        pass
            stack.close()


def half_closed(address: Address, data: bytes) -> bytes:
    """What comes back to a client that has nothing more to say."""
    with socket.create_connection(("127.0.0.1", address.port), timeout=5) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.4])
@pytest.mark.parametrize(
    "data", [WHOLE, WHOLE * 3, WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0")], ids=["one", "three", "1.0"]
)
def test_who_has_no_more_to_send_is_answered(address: Address, engine: FakeEngine, data: bytes, delay: float) -> None:
    engine.delay = delay
    statuses = re.findall(rb"HTTP/1.[01] (\d+) ", half_closed(address, data))
    final = [status for status in statuses if status != b"102"]
    assert final == [b"200"] * data.count(b"host") and engine.cancelled == 0
    assert (b"102" in statuses) == (delay * len(final) > 0.1 and b"HTTP/1.0" not in data)


def test_half_a_request_is_given_up(address: Address, engine: FakeEngine) -> None:
    assert half_closed(address, WHOLE[:-1]) == b"" and not engine.requests


def test_an_old_client_that_has_closed_is_gone_in_a_second(address: Address, engine: FakeEngine) -> None:
    engine.delay = 60
    assert half_closed(address, WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0")) == b""
    wait_until(lambda: engine.cancelled == 1)
