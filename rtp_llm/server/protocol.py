"""The wire below the application: uvicorn's parser, with a limit on request heads and this server's error form."""

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from rtp_llm.errors import InvalidRequest
from rtp_llm.server.errors import HeadTooLarge, openai_form

MAX_HEAD_BYTES = 64 << 10
_REASONS = {400: b"Bad Request", 431: b"Request Header Fields Too Large"}


class Protocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._in_head = True
        self._head_bytes = 0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            # NOTE: the parser joins the parts of a header anew for each one: without end, it costs quadratic time.
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(HeadTooLarge(f"the request line and headers are over {MAX_HEAD_BYTES} bytes"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """What cannot be parsed as HTTP at all."""
        self._refuse(InvalidRequest("this is not an HTTP/1.1 request that can be read"))

    def _refuse(self, error: InvalidRequest) -> None:
        _, body = openai_form(error)
        head = b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (error.status, _REASONS[error.status], len(body)) + body)
        self.transport.close()
