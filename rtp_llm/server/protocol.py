"""The wire below the application: uvicorn's parser, with a limit on request heads and this server's error form."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from rtp_llm.errors import InvalidRequest, NotReady, RtpError
from rtp_llm.server.errors import HeadTooLarge, openai_form
from rtp_llm.server.exchange import choose_id

MAX_HEAD_BYTES = 64 << 10
_REASONS = {400: b"Bad Request", 431: b"Request Header Fields Too Large", 503: b"Service Unavailable"}
_HEAD = (
    b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nx-request-id: %b\r\n"
    b"connection: close\r\n\r\n"
)
# At shutdown a body that is still on its way gets so many seconds; work that is under way gets shutdown_timeout.
_BODY_GRACE = 1.0
# Seconds in which what a client has sent before it could know that the server ends is still taken.
_LAST_CALL = 0.5


class Protocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._in_head = True
        self._head_bytes = 0
        self._ends_soon = False
        self._alarm: asyncio.TimerHandle | None = None
        self._cycles: list[RequestResponseCycle] = []  # pipelined requests and the one before them

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._set_alarm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_alarm()
        self._let_go()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            # NOTE: the parser joins the parts of a header anew for each one: without end, it costs quadratic time.
            self._head_bytes += len(data)
            if self._alarm is None:
                self._set_alarm()
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(HeadTooLarge(f"the request line and headers are over {MAX_HEAD_BYTES} bytes"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_alarm()
        super().on_headers_complete()
        self._cycles = [*(cycle for cycle in self._cycles if not cycle.response_complete), self.cycle]
        if self._ends_soon:
            self.cycle.keep_alive = False

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _end_if_idle(self) -> None:
        if self._is_idle():
            self.transport.close()
        elif self._awaits_body():
            self.loop.call_later(_BODY_GRACE, self._end_half_sent)

    def _set_alarm(self) -> None:
        """A head that comes drop by drop is given up as an idle connection is; uvicorn itself waits for ever."""
        self._alarm = self.loop.call_later(self.config.timeout_keep_alive, self.transport.close)

    def _stop_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def shutdown(self) -> None:
        """Stopping: the answer under way is the last of this connection, and half a body gets none for long.

        On an idle connection a request may be on its way: it is answered, as the last one.
        """
        if self._is_idle():
            self._ends_soon = True
            self.loop.call_later(_LAST_CALL, self._end_if_idle)
            return
        super().shutdown()
        if self._awaits_body():
            asyncio.get_running_loop().call_later(_BODY_GRACE, self._end_half_sent)

    def _awaits_body(self) -> bool:
        return self.cycle is not None and self.cycle.more_body and not self.cycle.response_started

    def _end_half_sent(self) -> None:
        if self._awaits_body() and not self.transport.is_closing():
            self._refuse(NotReady("the server is shutting down and the request's body did not arrive: try another one"))

    def send_400_response(self, msg: str) -> None:
        """What cannot be parsed as HTTP at all."""
        self._refuse(InvalidRequest("this is not an HTTP/1.1 request that can be read"))

    def _refuse(self, error: RtpError) -> None:
        _, body = openai_form(error)
        head = _HEAD % (error.status, _REASONS[error.status], len(body), choose_id().encode())
        self.transport.write(head + body)
        self._let_go()
        self.transport.close()

    def _let_go(self) -> None:
        """What was asked on this connection has no one to go to; uvicorn itself thinks of the last request alone."""
        for cycle in self._cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
