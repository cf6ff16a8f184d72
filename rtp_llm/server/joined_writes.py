"""The head of an answer goes out with the first of its body: one system call and one packet instead of two."""

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from rtp_llm.server.closing import LingeringClose


class JoinedWrites:
    """A connection's transport, as the cycle of one request writes to it.

    The head waits for the body, as ASGI asks of a server; what uvicorn writes before it (100 Continue) does not.
    """

    __slots__ = ("_cycle", "_head", "_transport", "is_closing")

    def __init__(self, cycle: RequestResponseCycle, transport: LingeringClose) -> None:
        self.is_closing = transport.is_closing
        self._cycle = cycle
        self._transport = transport
        self._head: bytes | None = None  # b"" once it is sent

    def write(self, data: bytes) -> None:
        """Send `data`, or keep it if it is the head of an answer that has a body."""
        if self._head:
            self._transport.writelines((self._head, data))
            self._head = b""
        elif self._head is None and self._cycle.response_started and self._cycle.scope["method"] != "HEAD":
            self._head = data
        else:
            self._transport.write(data)

    def close(self) -> None:
        """As the transport does it, with nothing kept back."""
        if self._head:
            self._transport.write(self._head)
        self._transport.close()
