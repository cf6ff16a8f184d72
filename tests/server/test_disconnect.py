"""A client that leaves frees its place: its work is cancelled, nothing is sent, nothing is logged as an error."""

import logging
import socket

import httpx
import pytest

from tests.server.conftest import Address, wait_until
from tests.server.fake_engine import FakeEngine

HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
BODY = b'{"input":"a"}'


def left(engine: FakeEngine) -> float:
    labels = {"route": "/v1/embeddings", "status": "499", "model": ""}
    return engine.metrics.registry.get_sample_value("rtp_llm_requests_total", labels) or 0


def test_waiting_work_is_cancelled(
    client: httpx.Client, address: Address, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.delay = 60
    before = left(engine)
    with socket.create_connection(("127.0.0.1", address.port)) as connection:
        connection.sendall(HEAD % len(BODY) + BODY)
        wait_until(lambda: engine.running == 1)
    wait_until(lambda: engine.cancelled == 1)
    wait_until(lambda: left(engine) == before + 1)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_half_a_body(
    client: httpx.Client, address: Address, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    before = left(engine)
    with socket.create_connection(("127.0.0.1", address.port)) as connection:
        connection.sendall(HEAD % 1000 + BODY)
    wait_until(lambda: left(engine) == before + 1)
    assert not engine.requests
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_many_leave_and_one_stays(client: httpx.Client, address: Address, engine: FakeEngine) -> None:
    engine.delay = 0.3
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", address.port)) as connection:
            connection.sendall(HEAD % len(BODY) + BODY)
    assert client.post("/v1/embeddings", content=BODY).status_code == 200
    wait_until(lambda: engine.running == 0)
    assert engine.cancelled + sum(1 for _ in engine.requests) >= 1
