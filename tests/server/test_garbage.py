"""What requests and connections leave is freed as it is let go, without a search for garbage."""

import gc
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPResponse
from types import CoroutineType, FrameType
from typing import Any

import pytest

from rtp_llm.server import garbage
from tests.server.conftest import CONFIG, Address, running_server, wait_until
from tests.server.fake_engine import FakeEngine
from tests.server.rtp_clients import Served

OURS = ("rtp_llm", "uvicorn", "asyncio", "uvloop")
OK = {"input": ["a", "b"]}


def request(body: Any, headers: str = "", path: str = "/v1/embeddings") -> bytes:
    content = json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(content)}\r\n\r\n".encode() + content


def ask(address: Address, sent: bytes, status: int) -> None:
    with socket.create_connection(("127.0.0.1", address.port), timeout=20) as connection:
        for _ in range(2):
            connection.sendall(sent)
            # The whole answer: head and body may come apart, and the rest would pass for the next one's head.
            with HTTPResponse(connection) as answer:
                answer.begin()
                assert answer.read() and answer.status == status


def leave(address: Address, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", address.port)) as connection:
        connection.sendall(sent)
        time.sleep(0.2)


def end_half(address: Address, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", address.port), timeout=20) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 ")


CASES: dict[str, Callable[[Address], None]] = {
    "answered": lambda address: ask(address, request(OK), 200),
    "wrong": lambda address: ask(address, request({"input": 3}), 400),
    "unknown": lambda address: ask(address, request(OK, path="/nowhere"), 404),
    "not HTTP": lambda address: leave(address, b"nonsense\r\n\r\n"),
    "late at once": lambda address: ask(address, request(OK, "X-Request-Timeout: 1e-6\r\n"), 504),
    "late": lambda address: ask(address, request(OK, "X-Request-Timeout: 0.15\r\n"), 504),
    "gone": lambda address: leave(address, request(OK)),
    "gone in its body": lambda address: leave(address, request(OK)[:-3]),
    "half closed": lambda address: end_half(address, request(OK)),
}


@pytest.fixture(autouse=True, scope="module")
def _searched_afterwards() -> Iterator[None]:
    """What these tests have spared is searched before the next file's."""
    yield
    gc.unfreeze()


@contextmanager
def kept_garbage() -> Iterator[list[Any]]:
    """What a search finds at the end that nothing had freed by then."""
    found: list[Any] = []
    gc.collect()
    gc.freeze()  # what is there already is not searched again: with torch loaded that takes a second
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def of_the_server(found: list[Any]) -> list[str]:
    def place(value: Any) -> str:
        frame = value.cr_frame if isinstance(value, CoroutineType) else value
        return frame.f_code.co_filename if isinstance(frame, FrameType) else type(value).__module__

    return [repr(value) for value in found if any(name in place(value) for name in OURS)]


@pytest.mark.parametrize("case", CASES)
def test_nothing_waits_for_a_search(case: str) -> None:
    engine = FakeEngine()
    engine.delay = 0.3 if case in ("late", "gone", "half closed") else 0.0
    with running_server(engine) as address:
        CASES[case](address)  # what is made once
        wait_until(lambda: engine.running == 0)
        with kept_garbage() as found:
            CASES[case](address)
            wait_until(lambda: engine.running == 0)
            time.sleep(0.3)
    assert of_the_server(found) == []


def test_refusals_leave_nothing() -> None:
    engine = FakeEngine()
    engine.delay = 1.0
    with running_server(engine, replace(CONFIG, concurrency_limit=1)) as address:
        leave(address, request(OK))
        wait_until(lambda: engine.running == 0)
        with (
            kept_garbage() as found,
            socket.create_connection(("127.0.0.1", address.port)) as connection,
        ):
            connection.sendall(request(OK))
            wait_until(lambda: engine.running == 1)
            ask(address, request(OK), 429)
            time.sleep(0.2)
    assert of_the_server(found) == []


def test_a_failure_of_the_engine_leaves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine()
    engine.error = RuntimeError("broken")
    with running_server(engine) as address:
        ask(address, request(OK), 500)
        caplog.clear()
        with kept_garbage() as found:
            ask(address, request(OK), 500)
            time.sleep(0.2)
            caplog.clear()  # what is logged holds the traceback
    assert of_the_server(found) == []


def test_the_engine_leaves_nothing(dense: Served) -> None:
    address = Address(dense.client.base_url.port or 0)
    with kept_garbage() as found:
        ask(address, request(OK), 200)
        ask(address, request({"input": "word " * 5000}), 200)
        ask(address, request(OK, "X-Request-Timeout: 1e-6\r\n"), 504)
        time.sleep(0.3)
    assert of_the_server(found) == []


def test_a_search_is_seldom_and_spares_what_is_there() -> None:
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    try:
        garbage.collect_seldom()
        assert gc.get_threshold()[0] > before[0] and gc.get_threshold()[1:] == before[1:]
        assert gc.get_freeze_count() > frozen
    finally:
        gc.set_threshold(*before)
