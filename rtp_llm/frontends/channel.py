"""Messages between a front-end and the engine's process, over a pair of connected Unix sockets.

A frame is a length (8 bytes, little-endian) and the pickle of a list of messages. Copying through a socket costs a
millisecond for 4 MB, beside 30 for the JSON that is made of them: shared memory would save nothing that is felt, and
a socket tells at once that the other side has gone.

NOTE: a pickle does what it says. Both ends are processes of one server, and nobody else has the sockets.
"""

import asyncio
import logging
import math
import pickle
import socket
import struct
from collections.abc import Callable
from typing import Any, TypeAlias

logger = logging.getLogger(__name__)

_LENGTH = struct.Struct("<Q")
_PROTOCOL = 5  # of pickle: arrays are copied once
Receiver: TypeAlias = Callable[[Any], None]
# What to send instead of a message that cannot be pickled; None: nothing.
Substitute: TypeAlias = Callable[[Any, Exception], Any]


def _nothing(message: Any, error: Exception) -> None:
    """Nobody waits for it."""


class Channel(asyncio.Protocol):
    """One end, on one event loop. What is sent in one round of the loop goes in one frame, in order.

    on_message    is called with each message that comes
    on_lost       is called once, when the other side has gone or `close` was called
    largest_here  bytes of a frame above which it is read on a thread, and may come after later ones
    """

    def __init__(
        self,
        on_message: Receiver,
        on_lost: Callable[[], None],
        substitute: Substitute = _nothing,
        largest_here: float = math.inf,
    ) -> None:
        self._largest_here = largest_here
        self._on_message = on_message
        self._on_lost = on_lost
        self._substitute = substitute
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiting: list[Any] = []
        self._received = bytearray()

    async def open(self, end: socket.socket) -> "Channel":
        """Speak over a connected socket, which is the channel's from now on."""
        end.setblocking(False)
        await self._loop.create_connection(lambda: self, sock=end)
        return self

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, message: Any) -> None:
        """Send a message with the next frame; what is sent after the other side has gone is dropped."""
        self._waiting.append(message)
        if len(self._waiting) == 1:
            self._loop.call_soon(self._flush)

    def send_apart(self, message: Any) -> None:
        """Send what takes long to pickle, in a frame of its own, as soon as a thread has made it."""
        making = self._loop.run_in_executor(None, self._framed_alone, message)
        making.add_done_callback(lambda made: self._write(made.result()))

    def close(self) -> None:
        """Send what waits, and end."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        self._received += data
        start = 0
        while len(self._received) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._received, start)
            stop = start + _LENGTH.size + length
            if stop > len(self._received):
                break
            with memoryview(self._received) as view, view[start + _LENGTH.size : stop] as content:
                self._take(content)
            start = stop
        del self._received[:start]

    def _take(self, content: memoryview) -> None:
        if len(content) <= self._largest_here:
            self._hand_over(pickle.loads(content))
            return
        reading = self._loop.run_in_executor(None, pickle.loads, bytes(content))
        reading.add_done_callback(self._hand_over_read)

    def _hand_over_read(self, reading: "asyncio.Future[list[Any]]") -> None:
        try:
            self._hand_over(reading.result())
        except Exception:  # as the event loop does where `data_received` fails: who waits for an answer is told
            logger.exception("a message from another process cannot be read")
            if self._transport is not None:
                self._transport.abort()

    def _hand_over(self, messages: list[Any]) -> None:
        for message in messages:
            self._on_message(message)

    def _flush(self) -> None:
        messages, self._waiting = self._waiting, []
        if not messages or not self.is_open:
            return
        try:
            frame = framed(messages)
        except Exception:  # the border: one answer that cannot be pickled must not take the others with it
            frame = b"".join(map(self._framed_alone, messages))
        self._write(frame)

    def _write(self, frame: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)

    def _framed_alone(self, message: Any) -> bytes:
        """Empty where it cannot be pickled, and there is nothing to send instead."""
        try:
            return framed([message])
        except Exception as error:
            logger.exception("a message to another process cannot be pickled")
            instead = self._substitute(message, error)
            return b"" if instead is None else framed([instead])


def framed(messages: list[Any]) -> bytes:
    """Messages as they are sent."""
    content = pickle.dumps(messages, _PROTOCOL)
    return _LENGTH.pack(len(content)) + content


def read_frame(end: socket.socket) -> list[Any]:
    """The messages of the next frame, waiting for it; EOFError where the other side has gone."""
    (length,) = _LENGTH.unpack(_read_exactly(end, _LENGTH.size))
    messages: list[Any] = pickle.loads(_read_exactly(end, length))
    return messages


def _read_exactly(end: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = end.recv(count - len(parts))
        if not part:
            raise EOFError("the other process has gone")
        parts += part
    return bytes(parts)
