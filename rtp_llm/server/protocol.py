"""The wire below the application: uvicorn's parser, with a limit on request heads and this server's error form."""

import asyncio
from collections import deque
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from rtp_llm.errors import InvalidRequest, NotReady, RtpError
from rtp_llm.server.closing import LINGER_SECONDS, HalfClosed, LingeringClose
from rtp_llm.server.dispatch import Dispatcher
from rtp_llm.server.errors import HeadTooLarge, UriTooLong, openai_form
from rtp_llm.server.exchange import choose_id
from rtp_llm.server.pipeline import MOST_PIPELINED, PipelineFlow, ReadAhead
from rtp_llm.server.plain_parser import PlainParser
from rtp_llm.server.unread import UnreadAnswer
from rtp_llm.server.unreadable import UnreadableLog

MAX_HEAD_BYTES = 64 << 10
_LINE_ENDS = len(b": \r\n")
_NO_TLS = "this port is for TLS, and what came is none: ask by https://"
_REASONS = {
    400: b"Bad Request",
    414: b"URI Too Long",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}
_HEAD = (
    b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nx-request-id: %b\r\n"
    b"connection: close\r\n\r\n"
)
# At shutdown a body that is still on its way gets so many seconds; work that is under way gets shutdown_timeout.
_BODY_GRACE = 1.0
# Seconds in which what a client has sent before it could know that the server ends is still taken.
LAST_CALL = 0.5


class Protocol(HttpToolsProtocol):
    """One connection."""

    unreadable = UnreadableLog()  # of all of them

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.parser: PlainParser = PlainParser(self)  # type: ignore[assignment]
        self._in_head = True
        self._is_arriving = False  # a request, of which some is here
        self._head_bytes = 0  # of what is known of a head
        self._blind_bytes = 0  # of reads that ended in no part that the parser knows
        self._too_large: RtpError | None = None
        self._ends_soon = False
        self._alarm: asyncio.TimerHandle | None = None
        self._closing: LingeringClose
        self._unread: UnreadAnswer
        self._half_closed: HalfClosed | None = None
        self._cycles: deque[RequestResponseCycle] = deque()  # pipelined requests and the one before them
        self._ahead = ReadAhead()
        self._has_ended = False  # no more will come than is there

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = PipelineFlow(transport, self.pipeline, self._ahead)
        self._closing = LingeringClose(transport, lambda: self._is_arriving)
        self._unread = UnreadAnswer(transport, self.config.timeout_keep_alive)
        self._set_alarm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_alarm()
        self._unread.stop()
        self._closing.stop()
        if self._half_closed is not None:
            self._half_closed.stop()
            self._half_closed = None
        self._let_go()
        super().connection_lost(exc)
        # Requests know their connection, and the other way round: all would wait for the garbage collector.
        self._cycles.clear()
        self.pipeline.clear()
        self._ahead.clear()
        self.cycle = None  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._closing.lingers:
            self._closing.drop(data)
            return
        self._unset_keepalive_if_required()
        self._ahead.add(data)
        self._parse_ahead()

    def _parse_ahead(self) -> None:
        """All that has come, or as much as makes MOST_PIPELINED requests wait."""
        while self._ahead and len(self.pipeline) < MOST_PIPELINED:
            data = self._ahead.take(MOST_PIPELINED)
            # NOTE: the parser keeps a name or value that has no end, of a head or of a trailer, and joins it anew for
            # each read: without a limit that costs memory and quadratic time.
            self._blind_bytes += len(data)
            self._parse(data)
            if not self._closing.is_closing() and self._blind_bytes > MAX_HEAD_BYTES:
                self._refuse(self._head_too_large())
            if self._closing.is_closing():
                self._ahead.clear()
                return
        if self._in_head and self._alarm is None:
            self._set_alarm()

    def _parse(self, data: bytes) -> None:
        """As uvicorn does, which logs neither who sent what cannot be read, nor why it cannot be."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._unsupported_upgrade_warning()
        except httptools.HttpParserError as error:
            refusal = self._too_large or InvalidRequest("this is not an HTTP/1.1 request that can be read")
            self.unreadable.tell(self.client, data, error, refusal.status)
            self._refuse(refusal)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread.watch()

    def resume_writing(self) -> None:
        self._unread.stop()
        super().resume_writing()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Whether the connection stays open: a client may end its half and wait for its answer.

        NOTE: over TLS the event loop closes it anyway.
        """
        if self._ahead and self.scheme != "https":
            self._has_ended = True
            return True
        if self._closing.is_closing() or self._is_arriving or self._is_idle() or self.scheme == "https":
            return None
        self.cycle.keep_alive = False
        is_old = any(cycle.scope["http_version"] == "1.0" for cycle in self._cycles)
        self._half_closed = HalfClosed(self.transport, self._is_between_answers, is_old=is_old)
        return True

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = self._is_arriving = True
        self._head_bytes = self._blind_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count(len(name) + len(value) + _LINE_ENDS)

    def _count(self, num_bytes: int) -> None:
        self._head_bytes += num_bytes
        if self._head_bytes > MAX_HEAD_BYTES:
            self._too_large = self._head_too_large()
            raise self._too_large  # which ends the parser, as what cannot be read does

    def _head_too_large(self) -> RtpError:
        if self._in_head and not self.headers:
            return UriTooLong(f"the request line is over {MAX_HEAD_BYTES} bytes")
        return HeadTooLarge(f"the request line and headers are over {MAX_HEAD_BYTES} bytes")

    def on_headers_complete(self) -> None:
        if self.parser.has_offer:
            return
        self._in_head = False
        self._blind_bytes = 0
        self._stop_alarm()
        super().on_headers_complete()
        self.cycle.transport = self._closing  # type: ignore[assignment]
        while self._cycles and self._cycles[0].response_complete:  # they are answered in order
            self._cycles.popleft()
        self._cycles.append(self.cycle)
        if self._ends_soon:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._blind_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.has_offer:
            return
        self._is_arriving = False
        self._stop_alarm()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._closing.lingers:
            return
        super().on_response_complete()
        if self._ahead and not self._closing.is_closing():
            self._read_on()
        if self._is_arriving and self._alarm is None:
            # Answered before it was read, as 401 is: its rest is dropped, for as long as one lingers.
            self._alarm = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _read_on(self) -> None:
        """There is room for requests that have come already, and then for others."""
        self._unset_keepalive_if_required()
        self._parse_ahead()
        self.flow.resume_reading()
        if self._has_ended and not self._ahead and not self.eof_received():
            self.transport.close()

    def _is_between_answers(self) -> bool:
        return not any(cycle.response_started and not cycle.response_complete for cycle in self._cycles)

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
        if self._closing.lingers:
            self.transport.close()
            return
        self._closing.seconds = LAST_CALL
        if self._is_idle():
            self._ends_soon = True
            self.loop.call_later(LAST_CALL, self._end_if_idle)
            return
        super().shutdown()
        if self._awaits_body():
            asyncio.get_running_loop().call_later(_BODY_GRACE, self._end_half_sent)

    def _awaits_body(self) -> bool:
        return self.cycle is not None and self.cycle.more_body and not self.cycle.response_started

    def _end_half_sent(self) -> None:
        if self._awaits_body() and not self.transport.is_closing():
            self._refuse(NotReady("the server is shutting down and the request's body did not arrive: try another one"))

    def _unsupported_upgrade_warning(self) -> None:
        """Of CONNECT, which is answered as a method that nothing takes: what comes after its head would be no HTTP.

        uvicorn itself logs that it lacks a library for websockets, which nobody has asked for.
        """
        self.cycle.keep_alive = False

    def _refuse(self, error: RtpError) -> None:
        _, body = openai_form(error)
        head = _HEAD % (error.status, _REASONS[error.status], len(body), choose_id().encode())
        self.transport.write(head + body)
        self._let_go()
        self._closing.linger()
        if isinstance(self.app, Dispatcher):
            self.app.observe_unreadable(error.status)

    def _let_go(self) -> None:
        """What was asked on this connection has no one to go to; uvicorn itself thinks of the last request alone."""
        for cycle in self._cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()


class PlainToTls(Protocol):
    """A connection without TLS to a port that is for TLS: it is told so, whatever it asks."""

    def _parse(self, data: bytes) -> None:
        refusal = InvalidRequest(_NO_TLS)
        self.unreadable.tell(self.client, data, refusal, refusal.status)
        self._refuse(refusal)
