"""Requests that offer another protocol, as Java's HttpClient offers h2c on every connection without TLS."""

import http.client
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.server.plain_parser import PlainParser
from tests.server.conftest import Address
from tests.server.fake_engine import FakeEngine, vector_of

OFFER = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAEAAEAAAAIAAAABAAMAAABk"}
WEBSOCKET = {"Connection": "keep-alive, Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "eA=="}
TEXTS = ["one", "two"]
BODY = json.dumps({"input": TEXTS}).encode()
OFFERED = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAA\r\n"
HEAD = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\n" + OFFERED
WHOLE = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
PLAIN = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"


def pieces() -> Iterator[bytes]:
    yield BODY[:5]
    yield BODY[5:]


@pytest.mark.parametrize("headers", [OFFER, WEBSOCKET])
@pytest.mark.parametrize("chunked", [False, True])
def test_an_offer_is_passed_over(headers: dict[str, str], chunked: bool, address: Address, engine: FakeEngine) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", address.port, timeout=20)
    for _ in range(2):  # the connection stays
        connection.request("POST", "/v1/embeddings", pieces() if chunked else BODY, headers)
        answer = connection.getresponse()
        data = json.loads(answer.read())["data"]
        assert answer.status == 200 and answer.version == 11
        for item, text in zip(data, TEXTS, strict=True):
            np.testing.assert_array_equal(np.float32(item["embedding"]), vector_of(text))
    connection.close()
    assert len(engine.requests) == 2


JAVA = """
import java.net.URI;
import java.net.http.*;

public class Ask {
    public static void main(String[] arguments) throws Exception {
        var body = HttpRequest.BodyPublishers.ofString("{\\"input\\": [\\"a text\\"]}");
        var request = HttpRequest.newBuilder(URI.create(arguments[0])).POST(body).build();
        System.out.print(HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString()).body());
    }
}
"""


@pytest.mark.skipif(shutil.which("javac") is None, reason="no JDK is installed")
def test_javas_own_client(tmp_path: Path, address: Address, engine: FakeEngine) -> None:
    source = tmp_path / "Ask.java"
    source.write_text(JAVA)
    called = ["java", str(source), f"{address.url}/v1/embeddings"]
    answer = subprocess.run(called, capture_output=True, text=True, timeout=60, check=True).stdout
    np.testing.assert_array_equal(np.float32(json.loads(answer)["data"][0]["embedding"]), vector_of("a text"))


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_in_any_pieces(size: int, address: Address, engine: FakeEngine) -> None:
    sent = WHOLE + CHUNKED + PLAIN + WHOLE.replace(b"Upgrade,", b"close, upgrade,")
    with socket.create_connection(("127.0.0.1", address.port), timeout=20) as connection:
        for start in range(0, len(sent), size):
            connection.sendall(sent[start : start + size])
        answers = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert answers.count(b"HTTP/1.1 200 OK") == 4 and answers.count(b"HTTP/1.1") == 4
    assert [list(request.inputs) for request in engine.requests] == [TEXTS] * 3


def test_a_body_that_is_no_http_is_refused(address: Address) -> None:
    with socket.create_connection(("127.0.0.1", address.port), timeout=20) as connection:
        connection.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\nnot a chunk\r\n")
        assert b" 400 Bad Request" in connection.recv(1 << 16)


def test_connect_is_a_method_that_nothing_takes(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_connection(("127.0.0.1", address.port), timeout=20) as connection:
        connection.sendall(b"CONNECT /v1/embeddings HTTP/1.1\r\nhost: x\r\n\r\n\x16\x03\x01")
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))  # up to its end
    assert answer.startswith(b"HTTP/1.1 405 ") and answer.count(b"HTTP/1.1") == 1
    assert not caplog.records


class Told:
    """Heads and bodies, as a parser tells them."""

    def __init__(self) -> None:
        self.parser = PlainParser(self)
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.heads: list[Any] = []
        self.bodies: list[bytes] = []

    def on_message_begin(self) -> None:
        self.url, self.headers = b"", []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if not self.parser.has_offer:
            self.heads.append((self.parser.get_method(), self.url, dict(self.headers), self.parser.should_keep_alive()))
            self.bodies.append(b"")

    def on_body(self, body: bytes) -> None:
        self.bodies[-1] += body


def test_nothing_of_an_offer_is_left() -> None:
    told = Told()
    told.parser.feed_data(WHOLE)
    assert told.heads == [(b"POST", b"/v1/embeddings", {b"host": b"x", b"content-length": b"%d" % len(BODY)}, True)]
    assert told.bodies == [BODY]


def test_many_offers_at_once_cost_no_more_than_they_are() -> None:
    """No recursion, and no copy of the rest for each."""
    told = Told()
    told.parser.feed_data(WHOLE * 3000)
    assert len(told.heads) == 3000 and all(one == other for one, other in pairwise(told.bodies))
