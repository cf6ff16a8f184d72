"""What cannot be read as HTTP: the log says who sent it and why it cannot be, and does not grow with a flood."""

import logging
import socket
from typing import Any

import httptools
import httpx
import pytest

from rtp_llm.server.protocol import Protocol
from rtp_llm.server.unreadable import UnreadableLog
from tests.server.conftest import Address

NAME = "rtp_llm.server.unreadable"


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Ours; the server's start is told too, by whichever test comes first."""
    return [record.getMessage() for record in caplog.records if record.name == NAME]


@pytest.mark.parametrize(
    ("sent", "status", "reason"),
    [
        (b"HELLO\r\n\r\n", 400, "Invalid method encountered"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "it looks like TLS"),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * (65 << 10) + b"\r\n\r\n", 431, "headers are over 65536 bytes"),
    ],
    ids=["no method", "TLS", "a long head"],
)
def test_one_line_says_who_and_why(
    sent: bytes,
    status: int,
    reason: str,
    address: Address,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Protocol, "unreadable", UnreadableLog())
    with (
        caplog.at_level(logging.INFO),
        socket.create_connection(("127.0.0.1", address.port), timeout=20) as connection,
    ):
        connection.sendall(sent)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 %d " % status)
        own = connection.getsockname()[1]
    (line,) = lines(caplog)
    assert line.startswith(f"127.0.0.1:{own} sent what cannot be read as an HTTP request (") and reason in line
    assert line.endswith(f"and was answered with {status}")
    assert f'route="unreadable",status="{status}"}}' in httpx.get(f"{address.url}/metrics", trust_env=False).text


def test_a_flood_has_a_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now, error = 0.0, httptools.HttpParserError("Invalid method encountered")
    log = UnreadableLog(lambda: now)
    told: tuple[Any, ...] = ("10.0.0.1", 5), b"x", error, 400
    with caplog.at_level(logging.INFO, NAME):
        for _ in range(1000):
            log.tell(*told)
        assert len(lines(caplog)) == 1
        now = 61.0
        log.tell(*told)
        log.tell(*told)
    assert len(lines(caplog)) == 2
    assert lines(caplog)[1].endswith("answered with 400; since the last such line there were 999 more")


def test_handshakes_share_the_lines(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    log = UnreadableLog(lambda: now)
    with caplog.at_level(logging.INFO, NAME):
        log.tell_handshake(("10.0.0.1", 5), "unsupported protocol")
        log.tell(("10.0.0.1", 6), b"x", httptools.HttpParserError("Invalid method encountered"), 400)
        now = 61.0
        log.tell_handshake(("10.0.0.1", 7), "tlsv1 alert unknown ca")
    assert lines(caplog) == [
        "10.0.0.1:5 failed at the TLS handshake (unsupported protocol)",
        "10.0.0.1:7 failed at the TLS handshake (tlsv1 alert unknown ca); since the last such line there were 1 more",
    ]


def test_a_reason_is_no_longer_than_a_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, NAME):
        UnreadableLog().tell(None, b"x", httptools.HttpParserError("a" * 5000), 400)
    assert lines(caplog)[0].startswith("a client sent") and len(lines(caplog)[0]) < 250
