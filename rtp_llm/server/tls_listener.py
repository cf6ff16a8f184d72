"""Connections over TLS: who comes without it is told so, and of a handshake that fails somebody is told."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_HANDSHAKE = b"\x16"  # the kind of TLS' first record
_AT_ONCE = 64  # connections that are taken before the event loop sees to others
_REST = 0.1  # seconds without accepting, where this process may open no more files


class TlsListener:
    """Accepts the connections of a listening socket, on the running event loop; ends as asyncio's servers do, with it.

    secure      makes the protocol of a connection, after its handshake
    plain       makes that of one whose first byte begins no handshake
    seconds     that the first byte may take, and then the handshake
    on_failure  is told of a handshake that fails: with whom, and why. Who leaves without a word, as a balancer that
                looks whether the port is open does, is no failure.
    """

    def __init__(
        self,
        listener: socket.socket,
        context: ssl.SSLContext,
        secure: Callable[[], asyncio.Protocol],
        plain: Callable[[], asyncio.Protocol],
        seconds: float,
        on_failure: Callable[[Any, str], None],
    ) -> None:
        self._listener = listener
        self._context = context
        self._secure = secure
        self._plain = plain
        self._seconds = seconds
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._meetings: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        self._resume()

    async def finish(self, seconds: float) -> None:
        """Accept no more; who has connected gets so many seconds for the handshake.

        With the last word of one, its client may have sent a request, which would be lost.
        """
        self._accept()  # whose connection waits here already would be reset
        self._end_accepting()
        if self._meetings:
            await asyncio.wait(self._meetings, timeout=seconds)

    def close(self) -> None:
        """Accept no more, and give up what handshakes are under way."""
        self._end_accepting()
        for meeting in self._meetings:
            meeting.cancel()

    async def wait_closed(self) -> None:
        """Until no handshake is under way."""
        if self._meetings:
            await asyncio.wait(self._meetings)

    def _end_accepting(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, client = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:  # no file, or no memory, is left: the next would fail as well, and at once
                self._loop.remove_reader(self._listener.fileno())
                self._pause = self._loop.call_later(_REST, self._resume)
                return
            connection.setblocking(False)
            meeting = self._loop.create_task(self._meet(connection, client))
            self._meetings.add(meeting)
            meeting.add_done_callback(self._meetings.discard)

    async def _meet(self, connection: socket.socket, client: Any) -> None:
        try:
            first = await self._first_byte(connection)
        except BaseException:
            connection.close()
            raise
        if not first:
            connection.close()
        elif first == _HANDSHAKE:
            await self._shake_hands(connection, client)
        else:
            with suppress(OSError):
                await self._loop.connect_accepted_socket(self._plain, connection)

    async def _first_byte(self, connection: socket.socket) -> bytes:
        """What it has sent first, which stays to be read; nothing where it has gone, or sends nothing in time."""
        readable = asyncio.Event()
        self._loop.add_reader(connection.fileno(), readable.set)
        try:
            await asyncio.wait_for(readable.wait(), self._seconds)
            return connection.recv(1, socket.MSG_PEEK)
        except (asyncio.TimeoutError, OSError):
            return b""
        finally:
            self._loop.remove_reader(connection.fileno())

    async def _shake_hands(self, connection: socket.socket, client: Any) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._secure, connection, ssl=self._context, ssl_handshake_timeout=self._seconds
            )
        except OSError as error:
            self._on_failure(client, _reason(error))


def _reason(error: OSError) -> str:
    """Why a handshake failed, in OpenSSL's words where it has some."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    if isinstance(error, ConnectionResetError):
        return "the client closed the connection"
    return str(error) or type(error).__name__
