"""One HTTP request and its answer: the headers that every answer carries, whoever writes it."""

import itertools
import os
import re

from starlette.types import Message, Receive, Scope, Send

from rtp_llm.server.errors import ErrorForm, Headers, openai_form

JSON = b"application/json"
_SANE_ID = re.compile(rb"[\w.:/+=@-]{1,128}").fullmatch
_PREFIX = os.urandom(4).hex()
_numbers = itertools.count(1)
_CORS: Headers = [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", b"*")]
_ALL_METHODS = b"GET, HEAD, POST, OPTIONS"


class Exchange:
    """A request's headers, its channels, and what has been sent of its answer.

    `status` is 0 until the answer starts; `route` is the path's template, for metrics; `error_form` tells failures.
    """

    __slots__ = (
        "_send",
        "error_form",
        "headers",
        "method",
        "path",
        "receive",
        "request_id",
        "route",
        "scope",
        "status",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.receive = receive
        self._send = send
        self.status = 0
        self.route = "unmatched"
        self.error_form: ErrorForm = openai_form
        given = self.headers.get(b"x-request-id")
        self.request_id = given.decode("latin-1") if given and _SANE_ID(given) else f"{_PREFIX}-{next(_numbers):x}"

    async def send(self, message: Message) -> None:
        """The ASGI channel, with the common headers added at the start of an answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], *self._common()]
        await self._send(message)

    async def respond(self, status: int, body: bytes, headers: Headers, content_type: bytes = JSON) -> None:
        """Send a whole answer."""
        self.status = status
        sized = [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), *headers, *self._common()]
        await self._send({"type": "http.response.start", "status": status, "headers": sized})
        await self._send({"type": "http.response.body", "body": body})

    def _common(self) -> Headers:
        own = (b"x-request-id", self.request_id.encode("latin-1"))
        return [own, *_CORS] if b"origin" in self.headers else [own]

    async def respond_to_options(self) -> None:
        """Let any page call any route, as the original does; a preflight is told so without asking the router."""
        wanted = self.headers.get(b"access-control-request-headers", b"*")
        headers = [
            (b"access-control-allow-methods", _ALL_METHODS),
            (b"access-control-allow-headers", wanted),
            (b"access-control-max-age", b"86400"),
            (b"allow", _ALL_METHODS),
        ]
        await self.send({"type": "http.response.start", "status": 204, "headers": headers})
        await self.send({"type": "http.response.body", "body": b""})
