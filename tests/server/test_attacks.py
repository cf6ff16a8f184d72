"""Getting past API keys as an attacker would: parser, router and keys must take a request for the same."""

import re
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.server.conftest import CONFIG, Address, running_server
from tests.server.fake_engine import FakeEngine

BODY = b'{"input":"a"}'
LENGTH = b"content-length: %d\r\n" % len(BODY)


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="module")
def address(engine: FakeEngine) -> Iterator[Address]:
    config = replace(CONFIG, api_key=("first-key",), cors_origins=("https://app.example",))
    with running_server(engine, config) as where:
        yield where


def statuses(address: Address, data: bytes) -> list[int]:
    """Of every answer on one connection, to these bytes and a close."""
    with socket.create_connection(("127.0.0.1", address.port), timeout=5) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", received)]


def request(line: bytes, headers: bytes = b"", body: bytes = b"") -> bytes:
    return line + b"\r\nhost: x\r\nconnection: close\r\n" + headers + b"\r\n" + body


POSTS = [
    b"POST //v1/embeddings HTTP/1.1", b"POST /v1//embeddings HTTP/1.1", b"POST /v1/embeddings/ HTTP/1.1",
    b"POST /v1/embeddings// HTTP/1.1", b"POST /./v1/embeddings HTTP/1.1", b"POST /health/../v1/embeddings HTTP/1.1",
    b"POST /health/%2e%2e/v1/embeddings HTTP/1.1", b"POST /health%2f..%2fv1%2fembeddings HTTP/1.1",
    b"POST /%76%31/embeddings HTTP/1.1", b"POST /v1%2fembeddings HTTP/1.1", b"POST /v1/embeddings%00 HTTP/1.1",
    b"POST /health%00/../v1/embeddings HTTP/1.1", b"POST /v1/embeddings;/health HTTP/1.1",
    b"POST /v1/embeddings?/health HTTP/1.1", b"POST /v1/embeddings?x=/health HTTP/1.1",
    b"POST /v1/embeddings#/health HTTP/1.1", b"POST http://x/v1/embeddings HTTP/1.1",
    b"POST http://x/health/../v1/embeddings HTTP/1.1", b"POST https://127.0.0.1/v1/embeddings HTTP/1.1",
    b"POST /V1/EMBEDDINGS HTTP/1.1", b"POST /v1/embeddings HTTP/1.0", b"POST / HTTP/1.1", b"POST // HTTP/1.1",
    b"POST /docs HTTP/1.1", b"PUT /v1/embeddings HTTP/1.1", b"PATCH / HTTP/1.1", b"PROPFIND /docs HTTP/1.1",
    b"post /v1/embeddings HTTP/1.1", b"POST \\v1\\embeddings HTTP/1.1", b"POST /v1/embeddings HTTP/1.1 ",
]  # fmt: skip
GETS = [
    b"GET /metrics HTTP/1.1", b"HEAD /metrics HTTP/1.1", b"GET //metrics HTTP/1.1", b"GET /metrics/ HTTP/1.1",
    b"GET /docs/../metrics HTTP/1.1", b"GET /docs/metrics HTTP/1.1", b"GET /%6detrics HTTP/1.1",
    b"HEAD /v1/models HTTP/1.1",
    b"GET http://x/metrics HTTP/1.1", b"GET /v1/models/health HTTP/1.1", b"GET /v1/models//health HTTP/1.0",
    b"GET /models/docs HTTP/1.1", b"GET /v1/models/../../docs HTTP/1.1", b"GET /info HTTP/1.1",
    b"GET /version HTTP/1.1",
    b"TRACE /metrics HTTP/1.1", b"DELETE /v1/models HTTP/1.1", b"GET /openapi.json/../metrics HTTP/1.1",
]  # fmt: skip


@pytest.mark.parametrize("line", [*POSTS, *GETS])
def test_no_path_leads_past_the_key(address: Address, engine: FakeEngine, line: bytes) -> None:
    engine.reset()
    posted = line[:4].upper() == b"POST"
    found = statuses(address, request(line, LENGTH if posted else b"", BODY if posted else b""))
    assert found and set(found) <= {400, 401}, line
    assert not engine.requests


@pytest.mark.parametrize(
    "headers",
    [
        b"x-http-method-override: GET\r\n",
        b"x-http-method: OPTIONS\r\nx-method-override: OPTIONS\r\n",
        b"x-original-url: /health\r\nx-rewrite-url: /health\r\n",
        b"x-forwarded-path: /health\r\nx-forwarded-prefix: /health\r\n",
        b"x-forwarded-for: 127.0.0.1\r\nforwarded: for=127.0.0.1\r\n",
        b"authorization : Bearer first-key\r\n",
        b"authorization: Bearer wrong\r\nx-api-key: first-ke\r\n",
        b"authorization: Bearer first-key\r\nauthorization: Bearer wrong\r\n",
        b"authorization: Bearer first-key,Bearer wrong\r\n",
        b"authorization: Bearer\r\n first-key\r\n",
        b"authorization: Bearer first-key\x00\r\n",
        b"authorization: Bearer *\r\n",
        b"authorization: Bearer first-key\xff\r\n",
        b"x_api_key: first-key\r\n",
        b"cookie: api-key=first-key\r\n",
        b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-key: eA==\r\nsec-websocket-version: 13\r\n",
        b"upgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: AAMAAABk\r\n",
    ],
)
def test_no_header_stands_for_the_key(address: Address, engine: FakeEngine, headers: bytes) -> None:
    engine.reset()
    found = statuses(address, request(b"POST /v1/embeddings HTTP/1.1", LENGTH + headers, BODY))
    assert found and set(found) <= {400, 401}
    assert not engine.requests


HIDDEN = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\n" + LENGTH + b"\r\n" + BODY
FRAMES = {
    "length and chunks": (b"content-length: 4\r\ntransfer-encoding: chunked\r\n", b"0\r\n\r\n" + HIDDEN),
    "chunks, no chunks": (b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n", b"0\r\n\r\n" + HIDDEN),
    "odd chunked": (b"transfer-encoding: xchunked\r\n", b"0\r\n\r\n" + HIDDEN),
    "space before colon": (b"transfer-encoding : chunked\r\n", b"0\r\n\r\n" + HIDDEN),
    "two lengths": (b"content-length: 0\r\ncontent-length: %d\r\n" % len(HIDDEN), HIDDEN),
    "list of lengths": (b"content-length: 0, 0\r\n", HIDDEN),
    "plus sign": (b"content-length: +5\r\n", b"xxxxx" + HIDDEN),
    "hex length": (b"content-length: 0x5\r\n", b"xxxxx" + HIDDEN),
    "negative chunk": (b"transfer-encoding: chunked\r\n", b"-1\r\n\r\n" + HIDDEN),
    "huge chunk": (b"transfer-encoding: chunked\r\n", b"ffffffffffffffffff\r\n" + HIDDEN),
    "bare line feeds": (b"x: y\n\n", HIDDEN),
}


@pytest.mark.parametrize("name", FRAMES)
def test_no_request_hides_in_another(address: Address, engine: FakeEngine, name: str) -> None:
    """Behind an open probe, in any framing; what is hidden asks for its own key."""
    engine.reset()
    headers, rest = FRAMES[name]
    found = statuses(address, b"POST /health HTTP/1.1\r\nhost: x\r\n" + headers + b"\r\n" + rest)
    assert set(found) <= {200, 400, 401, 413} and found.count(200) <= 1
    assert not engine.requests


@pytest.mark.parametrize("path", [b"/v1/embeddings", b"/metrics", b"*", b"/health"])
def test_options_tells_nothing_and_runs_nothing(address: Address, engine: FakeEngine, path: bytes) -> None:
    engine.reset()
    found = statuses(address, request(b"OPTIONS " + path + b" HTTP/1.1", LENGTH, BODY))
    assert found == [204] or found == [400]
    assert not engine.requests


@pytest.mark.parametrize(
    "origin",
    [b"https://app.example.evil.example", b"https://app.exampl", b"http://app.example", b"null", b"https://app.example/",
     b"HTTPS://APP.EXAMPLE", b"https://app.example, https://evil.example", b"*", b""],
)  # fmt: skip
def test_no_other_origin_is_let_in(address: Address, origin: bytes) -> None:
    head = request(b"OPTIONS /v1/embeddings HTTP/1.1", b"origin: " + origin + b"\r\n")
    with socket.create_connection(("127.0.0.1", address.port), timeout=5) as connection:
        connection.sendall(head)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b"access-control-allow-origin" not in received


def test_headers_of_a_preflight_cannot_be_split(address: Address) -> None:
    head = request(
        b"OPTIONS / HTTP/1.1", b"origin: https://app.example\r\naccess-control-request-headers: a\rset-cookie: b\r\n"
    )
    with socket.create_connection(("127.0.0.1", address.port), timeout=5) as connection:
        connection.sendall(head)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b"\rset-cookie" not in received
