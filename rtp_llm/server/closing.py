"""Ends of a connection that TCP leaves to the application: one with bytes unread, and that of the client's half."""

import asyncio
import socket
from collections.abc import Callable

# What is still read of a client that has been answered: so many seconds, and so many bytes.
LINGER_SECONDS = 30.0
LINGER_BYTES = 256 << 20
_LOOK_EVERY = 0.1  # seconds
_PROBES = (1, 10, 100)  # the looks before which something is written
_OLD_GRACE = 10  # looks that an HTTP/1.0 client gets
_PROBE = b"HTTP/1.1 102 Processing\r\n\r\n"


def _nothing() -> bool:
    return False


class LingeringClose:
    """A transport as uvicorn's cycle uses it; `close` reads and drops what the client still sends, within bounds.

    A kernel that closes a socket with unread bytes resets the connection, and the client may lose the answer to it.
    `has_unread` tells whether a request is still arriving; `seconds` may be lessened before it closes.
    """

    def __init__(self, transport: asyncio.Transport, has_unread: Callable[[], bool]) -> None:
        self.write = transport.write
        self.lingers = False
        self.seconds = LINGER_SECONDS
        self._transport = transport
        self._has_unread = has_unread
        self._left = LINGER_BYTES
        self._timer: asyncio.TimerHandle | None = None

    def is_closing(self) -> bool:
        """Whether nothing more can be said."""
        return self.lingers or self._transport.is_closing()

    def close(self) -> None:
        """Say no more; close once the client has, or at the bounds."""
        if self._has_unread():
            self.linger()
        else:
            self._transport.close()

    def linger(self) -> None:
        """`close`, whatever is known of unread bytes."""
        if self.is_closing():
            return
        self.lingers = True
        self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._timer = asyncio.get_running_loop().call_later(self.seconds, self._transport.close)

    def drop(self, data: bytes) -> None:
        """What has come while it lingers."""
        self._left -= len(data)
        if self._left < 0:
            self._transport.close()

    def stop(self) -> None:
        """The connection is lost, and with it what is unread; the connection's object is not held any longer."""
        self._has_unread = _nothing
        if self._timer is not None:
            self._timer.cancel()


class HalfClosed:
    """Watches a client that has ended its sending side and is owed an answer; it is cut off once it has gone.

    A client that waits and one that has closed its socket look the same, until something is sent: the second resets the
    connection then. What HTTP/1.1 allows before an answer is an interim one (RFC 9110, 15.2), and clients pass over
    it. HTTP/1.0 has none: such a client is taken to be gone after a second.
    """

    def __init__(self, transport: asyncio.Transport, may_probe: Callable[[], bool], *, is_old: bool) -> None:
        self._transport = transport
        self._socket: socket.socket = transport.get_extra_info("socket")
        self._may_probe = may_probe
        self._is_old = is_old
        self._looks = 0
        self._timer = self._wait()

    def stop(self) -> None:
        """It has been answered, or the connection is lost."""
        self._timer.cancel()

    def _wait(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(_LOOK_EVERY, self._look)

    def _look(self) -> None:
        self._looks += 1
        has_gone = (
            self._looks >= _OLD_GRACE if self._is_old else self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        )
        if has_gone:
            self._transport.abort()
            return
        if not self._is_old and self._looks in _PROBES and self._may_probe():
            self._transport.write(_PROBE)
        self._timer = self._wait()
