"""Frames between processes: order, size, what cannot be sent, and an end that goes away."""

import asyncio
import math
import pickle
import socket
import threading
from typing import Any

import numpy as np
import pytest

from rtp_llm.frontends.channel import Channel, framed, read_frame
from tests.frontends.conftest import on_loop, until


class Ends:
    """Two channels, and what came out of the second."""

    def __init__(self, largest_here: float = math.inf) -> None:
        self.largest_here = largest_here
        self.received: list[Any] = []
        self.lost: list[str] = []

    async def open(self) -> "Ends":
        first, second = socket.socketpair()
        self.first = await Channel(self.received.append, lambda: self.lost.append("first"), _instead).open(first)
        self.second = await Channel(
            self.received.append, lambda: self.lost.append("second"), _instead, self.largest_here
        ).open(second)
        return self


def _instead(message: Any, error: Exception) -> Any:
    return None if message == "drop" else ("instead", type(error).__name__)


def test_messages_come_in_order_and_whole() -> None:
    async def run() -> None:
        ends = await Ends().open()
        big = np.arange(5_000_000, dtype=np.float32)  # many times what a socket holds
        for message in (1, big, "after"):
            ends.first.send(message)
        await asyncio.sleep(0)
        ends.first.send("next round")
        await until(lambda: len(ends.received) == 4)
        first, array, *rest = ends.received
        assert (first, rest) == (1, ["after", "next round"])
        assert np.array_equal(array, big) and array.flags.writeable
        ends.first.close()
        await until(lambda: sorted(ends.lost) == ["first", "second"])
        ends.second.send("into the void")
        await asyncio.sleep(0)
        assert not ends.first.is_open and not ends.second.is_open

    on_loop(run())


def test_one_round_is_one_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    frames: list[int] = []

    def counted(messages: list[Any]) -> bytes:
        frames.append(len(messages))
        return framed(messages)

    async def run() -> None:
        ends = await Ends().open()
        monkeypatch.setattr("rtp_llm.frontends.channel.framed", counted)
        for number in range(100):
            ends.first.send(number)
        await until(lambda: len(ends.received) == 100)
        ends.first.close()

    on_loop(run())
    assert frames == [100]


def test_what_cannot_be_pickled_takes_nothing_with_it(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> list[Any]:
        ends = await Ends().open()
        for message in ("before", threading.Lock(), "after"):
            ends.first.send(message)
        await until(lambda: len(ends.received) == 3)
        ends.first.close()
        return ends.received

    assert on_loop(run()) == ["before", ("instead", "TypeError"), "after"]
    assert "cannot be pickled" in caplog.text


class _Unreadable:
    """As a class that is known to the other process alone."""

    def __reduce__(self) -> Any:
        return _refuse, (b"x" * 5000,)


def _refuse(content: bytes) -> Any:
    raise ModuleNotFoundError("No module named 'elsewhere'")


@pytest.mark.parametrize("largest_here", [1000, math.inf])
def test_what_cannot_be_read_leaves_nobody_waiting(largest_here: float) -> None:
    """Who was to be answered by it is not known: all are told that the connection is lost."""

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        ends = await Ends(largest_here).open()
        ends.first.send(_Unreadable())
        await until(lambda: sorted(ends.lost) == ["first", "second"])

    on_loop(run())


def test_frames_that_come_drop_by_drop() -> None:
    async def run() -> None:
        ends = Ends()
        first, second = socket.socketpair()
        second.setblocking(True)
        channel = await Channel(ends.received.append, lambda: None).open(first)
        content = framed(["a", "b"]) + framed([{"c": 1}])
        for place in range(len(content)):
            second.send(content[place : place + 1])
            await asyncio.sleep(0)
        await until(lambda: ends.received == ["a", "b", {"c": 1}])
        channel.close()
        second.close()

    on_loop(run())


def test_the_first_frame_is_read_without_a_loop() -> None:
    first, second = socket.socketpair()
    with first, second:
        first.sendall(framed(["orders"]) + framed(["more"]))
        assert read_frame(second) == ["orders"]
        assert read_frame(second) == ["more"]
        first.close()
        with pytest.raises(EOFError, match="gone"):
            read_frame(second)


def test_frames_are_what_pickle_makes() -> None:
    assert pickle.loads(framed([1, 2])[8:]) == [1, 2]


def test_what_takes_long_holds_nobody_up() -> None:
    """It is pickled and read on threads, and comes when it is ready."""

    async def run() -> None:
        ends = await Ends(largest_here=1000).open()
        big = ["x" * 5000]
        ends.first.send_apart(big)
        ends.first.send_apart(threading.Lock())
        ends.first.send("small")
        await until(lambda: len(ends.received) == 3)
        assert all(one in ends.received for one in (big, "small", ("instead", "TypeError")))
        ends.first.send_apart("too late")
        ends.first.close()
        await until(lambda: len(ends.lost) == 2)

    on_loop(run())
