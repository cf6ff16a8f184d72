"""A parser that stays with HTTP/1.1, whatever else a request offers to speak.

Java's own client, and so LangChain4j's and Spring's, offers h2c with each request to an address without TLS. A server
may ignore the offer (RFC 9110, 7.8), but httptools ends such a request at its head and reads its body as the next one.
"""

from typing import Protocol

import httptools

_OFFERS = frozenset({b"upgrade", b"http2-settings"})


class Receiver(Protocol):
    """What is told of a request."""

    url: bytes
    headers: list[tuple[bytes, bytes]]


class PlainParser:
    """httptools' parser of requests; a head with an offer is parsed again, without it.

    While `has_offer`, what is told of a request is not to be heeded: it will be told again.
    """

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._parser = _parser(receiver)

    def get_http_version(self) -> str:
        """As 1.1."""
        return self._parser.get_http_version()

    def get_method(self) -> bytes:
        """In capitals."""
        return self._parser.get_method()

    def should_keep_alive(self) -> bool:
        """Whether the connection may have another request."""
        return self._parser.should_keep_alive()

    def should_upgrade(self) -> bool:
        """Whether what comes after the head is not HTTP: of an offer, or after CONNECT."""
        return self._parser.should_upgrade()

    @property
    def has_offer(self) -> bool:
        """Whether the head that has just been parsed offers another protocol."""
        return self._parser.should_upgrade() and self._parser.get_method() != b"CONNECT"

    def feed_data(self, data: bytes) -> None:
        """HttpParserError for what is not HTTP, HttpParserUpgrade after CONNECT."""
        rest: bytes | memoryview = data
        while rest:
            try:
                self._parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as offer:
                if not self.has_offer:
                    raise
                rest = memoryview(rest)[offer.args[0] :]
            head = self._head()
            self._parser = _parser(self._receiver)
            self._parser.feed_data(head)

    def _head(self) -> bytes:
        """The request's, as it came, without the offer."""
        version = self._parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self._parser.get_method(), self._receiver.url, version)]
        for name, value in self._receiver.headers:
            if name == b"connection":
                words = map(bytes.strip, value.split(b","))
                value = b", ".join(word for word in words if word.lower() not in _OFFERS)
            if name not in _OFFERS and (value or name != b"connection"):
                lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join([*lines, b"\r\n"])


def _parser(receiver: Receiver) -> httptools.HttpRequestParser:
    parser = httptools.HttpRequestParser(receiver)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
    return parser
