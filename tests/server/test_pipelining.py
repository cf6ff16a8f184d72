"""Requests that come on one connection before the first of them is answered."""

import asyncio
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http import httptools_impl
from uvicorn.server import ServerState

from rtp_llm.server.pipeline import MOST_PIPELINED
from rtp_llm.server.protocol import Protocol

GET = b"GET /live HTTP/1.1\r\n\r\n"


class Client(asyncio.Transport):
    """Counts what the server says, and knows whether it listens."""

    def __init__(self) -> None:
        super().__init__()
        self.num_answers = 0
        self.is_read = True
        self._is_closing = False

    def write(self, data: Any) -> None:
        self.num_answers += data.count(b"HTTP/1.1 204")

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._is_closing = True


def connected(permits: asyncio.Semaphore) -> tuple[Protocol, Client]:
    """A connection to an app that answers a request for each permit."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await permits.acquire()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    config = uvicorn.Config(app, lifespan="off", log_config=None)
    config.load()
    protocol, client = Protocol(config, ServerState(), {}), Client()
    protocol.connection_made(client)
    return protocol, client


async def answered(client: Client, permits: asyncio.Semaphore, count: int) -> None:
    """Let `count` more requests be answered."""
    goal = client.num_answers + count
    for _ in range(count):
        permits.release()
    while client.num_answers < goal:
        await asyncio.sleep(0)
    await asyncio.sleep(0)


def test_a_client_that_sends_ahead_is_not_read() -> None:
    async def check() -> None:
        permits = asyncio.Semaphore(0)
        protocol, client = connected(permits)
        protocol.data_received(GET * (MOST_PIPELINED + 10))
        await answered(client, permits, 10)
        assert not client.is_read
        await answered(client, permits, 1)
        assert client.is_read
        protocol.data_received(GET)  # few wait
        assert not client.is_read
        await answered(client, permits, 1)
        assert client.is_read
        await answered(client, permits, MOST_PIPELINED - 1)
        protocol.connection_lost(None)

    asyncio.run(check())


@pytest.mark.parametrize("size", [1, 37, 1 << 18])
def test_of_one_read_no_more_are_parsed_than_may_wait(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands come in one read; what is left of it is parsed as answers are given, and none is lost."""
    num_begun = 0

    class Counting(httptools_impl.RequestResponseCycle):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            nonlocal num_begun
            num_begun += 1
            super().__init__(*arguments, **options)

    async def check() -> None:
        permits = asyncio.Semaphore(0)
        protocol, client = connected(permits)
        count, post = 1000, b"POST /live HTTP/1.1\r\nContent-Length: 6\r\n\r\na\r\n\r\nb"
        data = (GET + post) * (count // 2)
        for start in range(0, len(data), size):
            protocol.data_received(data[start : start + size])
        for _ in range(0, count - 2 * MOST_PIPELINED, 50):
            assert num_begun <= client.num_answers + 2 * MOST_PIPELINED + 1 and not client.is_read
            await answered(client, permits, 50)
        protocol.eof_received()
        await answered(client, permits, count - client.num_answers)
        assert num_begun == client.num_answers == count
        protocol.connection_lost(None)

    monkeypatch.setattr(httptools_impl, "RequestResponseCycle", Counting)
    asyncio.run(check())


def test_half_a_request_behind_many_is_read_on() -> None:
    async def check() -> None:
        permits = asyncio.Semaphore(0)
        protocol, client = connected(permits)
        protocol.data_received(GET * 40 + GET[:9])
        await answered(client, permits, 40)
        assert client.is_read
        protocol.data_received(GET[9:])
        await answered(client, permits, 1)
        assert client.num_answers == 41 and client.is_read
        protocol.connection_lost(None)

    asyncio.run(check())


def test_each_request_is_read_in_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many wait before it: a read of 256 KB has 12,000, and the event loop has others to serve."""
    num_looks = 0

    class Counting(httptools_impl.RequestResponseCycle):
        def __getattribute__(self, name: str) -> Any:
            nonlocal num_looks
            num_looks += name == "response_complete"
            return super().__getattribute__(name)

    async def check() -> None:
        protocol, _ = connected(asyncio.Semaphore(0))
        protocol.data_received(GET * 100)
        assert MOST_PIPELINED <= num_looks <= 300
        protocol.connection_lost(None)
        await asyncio.sleep(0)

    monkeypatch.setattr(httptools_impl, "RequestResponseCycle", Counting)
    asyncio.run(check())
