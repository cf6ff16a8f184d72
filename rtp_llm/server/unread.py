"""Answers that nobody reads."""

import asyncio
import socket
import sys


class UnreadAnswer:
    """Ends a connection whose client has taken nothing of its answer for `seconds`, and so lets the answer go.

    An answer leaves the server's memory as it is read; one that is read slowly is left alone.
    """

    def __init__(self, transport: asyncio.Transport, seconds: float) -> None:
        self._transport = transport
        self._seconds = seconds
        self._left = 0
        self._alarm: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        """More of an answer waits than the connection takes at once."""
        self._left = self._count()
        self._alarm = asyncio.get_running_loop().call_later(self._seconds, self._look)

    def stop(self) -> None:
        """What waited has been read, or the connection is lost."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _look(self) -> None:
        if self._count() >= self._left:
            self._transport.abort()
        else:
            self.watch()

    def _count(self) -> int:
        """Bytes that the client's system has not taken: here, and in this one's own buffer, which takes more seldom."""
        own: socket.socket = self._transport.get_extra_info("socket")
        return self._transport.get_write_buffer_size() + _in_system(own)


def _in_system(connection: socket.socket) -> int:
    """Bytes sent and not acknowledged; 0 where the system does not tell."""
    if sys.platform == "win32":
        return 0
    import fcntl
    import termios

    try:
        return int.from_bytes(fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except OSError:
        return 0
