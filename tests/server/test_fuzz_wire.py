"""Requests grown below the body: heads, framings and halves that no client sends. Nothing is a 5xx, nothing hangs.

`pytest -m slow` tries 20,000 of them.
"""

import contextlib
import re
import socket
import time
from collections.abc import Iterator, Set

import orjson
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rtp_llm.core import TaskType
from rtp_llm.server.openapi_dialects import ROWS
from tests.server.conftest import MAX_BODY_BYTES, Address, running_server
from tests.server.fake_engine import FakeEngine

HANG = 2.0  # seconds
LONG = "ignore:Generating overly large repr"
quick = settings(max_examples=300, phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None)
BODIES = [(path, orjson.dumps(body)) for row in ROWS for path in row.paths for body in row.examples.values()]
PATHS = st.sampled_from(
    [*(path for path, _ in BODIES), "/health", "/metrics", "/v1/models", "/v1/models/x", "/nowhere"]
)
VALUES = st.binary(max_size=40).map(lambda value: re.sub(rb"[\r\n\x00]", b" ", value)) | st.sampled_from(
    [b"", b"*", b"nan", b"inf", b"-1", b"1e999", b"0.5", b"gzip", b"identity", b"application/x-npy", b"text/plain",
     b"application/octet-stream", b"application/json; charset=utf-16", b"bulk", b"Bearer", b"100-continue", b"chunked",
     b"\xff\xfe", b"a" * 3000, b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", b"multipart/form-data"]
)  # fmt: skip
NAMES = st.sampled_from(
    [b"content-type", b"content-encoding", b"accept", b"accept-encoding", b"x-request-timeout", b"x-priority",
     b"x-model", b"x-request-id", b"authorization", b"x-api-key", b"traceparent", b"origin", b"te",
     b"access-control-request-headers", b"access-control-request-method", b"host", b"cookie",
     b"range", b"if-none-match", b"x-http-method-override"]
)  # fmt: skip
_FINE = frozenset({100, 504, *range(200, 500)})  # 504 where it asked for as little time
METHODS = st.sampled_from([b"POST"] * 8 + [b"GET", b"HEAD", b"PUT", b"OPTIONS", b"DELETE", b"PATCH"])


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, bytes]:
    """A path, and mostly a body of its own: whole, with a key twice, with NaN, deep, damaged."""
    path, body = draw(st.sampled_from(BODIES))
    how = draw(st.sampled_from(["whole", "whole", "twice", "nan", "deep", "damaged", "large", "surrogate", "other"]))
    if how == "twice":
        body = body[:-1] + b"," + body[1:]
    elif how == "nan":
        body = re.sub(rb"\d+|true|\"a[^\"]*\"", draw(st.sampled_from([b"NaN", b"-Infinity", b"1e999", b"null"])), body)
    elif how == "deep":
        body = body[:-1] + b',"x":' + draw(st.sampled_from([b"[", b'{"a":'])) * draw(st.integers(1, 5000))
    elif how == "damaged":
        cut = draw(st.integers(0, len(body)))
        body = body[:cut] + draw(st.binary(max_size=4)) + body[cut + draw(st.integers(0, 3)) :]
    elif how == "large":
        body = body[:-1] + b" " * draw(st.sampled_from([MAX_BODY_BYTES - len(body), MAX_BODY_BYTES])) + b"}"
    elif how == "surrogate":
        body = body.replace(b"a", draw(st.sampled_from([rb"\ud800", rb"\udc00\ud800", b"\xed\xa0\x80", rb"\u0000"])))
    return (draw(PATHS) if how == "other" else path), body


@st.composite
def framed(draw: st.DrawFn) -> bytes:
    """A request as bytes, in one of the framings, right or wrong."""
    path, body = draw(bodies())
    headers = draw(st.lists(st.tuples(NAMES, VALUES), max_size=3))
    how = draw(st.sampled_from(["length", "length", "length", "chunks", "short", "long", "both", "none", "half head"]))
    length = len(body) + {"short": -3, "long": 7}.get(how, 0)
    if how in ("chunks", "both"):
        step = max(draw(st.integers(1, 4096)), len(body) // 50 + 1)
        parts = [body[start : start + step] for start in range(0, len(body), step)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        headers.append((b"transfer-encoding", b"chunked"))
    if how not in ("chunks", "none"):
        headers.append((b"content-length", b"%d" % max(length, 0)))
    head = b"".join(b"%b: %b\r\n" % header for header in headers)
    line = b"%b %b%b HTTP/1.%d\r\n" % (draw(METHODS), path.encode(), draw(st.sampled_from([b"", b"", b"/", b"?a=b"])),
                                        draw(st.sampled_from([1, 1, 1, 0])))  # fmt: skip
    sent = line + b"host: x\r\nconnection: close\r\n" + head + b"\r\n" + body
    return sent[: draw(st.integers(0, len(sent)))] if how == "half head" else sent


def ask(port: int, data: bytes, expected: Set[int] = _FINE) -> None:
    """What comes back in time is HTTP and no fault of the server's."""
    started = time.monotonic()
    received = b""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=HANG) as connection,
        contextlib.suppress(ConnectionError),
    ):
        connection.sendall(data)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)  # it may have closed already
        while part := connection.recv(65536):
            received += part
    assert time.monotonic() - started < HANG, data
    statuses = [int(one) for one in re.findall(rb"HTTP/1\.[01] (\d{3}) ", received)]
    assert set(statuses) <= expected, (data, received)
    assert b"Traceback" not in received
    if statuses and statuses[-1] != 100:
        assert b"x-request-id: " in received, (data, received)


@pytest.fixture(scope="module")
def address() -> Iterator[Address]:
    engine = FakeEngine(tasks=(TaskType.DENSE, TaskType.RERANK, TaskType.CLASSIFY), labels=("no", "yes"))
    with running_server(engine) as where:
        yield where


@pytest.mark.filterwarnings(LONG)
@quick
@given(data=framed())
def test_requests(address: Address, data: bytes) -> None:
    ask(address.port, data)


@pytest.mark.slow
@pytest.mark.filterwarnings(LONG)
@settings(quick, max_examples=20_000)
@given(data=framed())
def test_many_requests(address: Address, data: bytes) -> None:
    ask(address.port, data)


@pytest.mark.filterwarnings(LONG)
@quick
@given(first=framed(), second=framed())
def test_what_follows_is_served(
    caplog: pytest.LogCaptureFixture, address: Address, first: bytes, second: bytes
) -> None:
    """Two on one connection, whatever the first was; then a good one on another. The log has no faults."""
    caplog.clear()
    ask(address.port, first.replace(b"connection: close\r\n", b"", 1) + second)
    ask(address.port, b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", {200})
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
