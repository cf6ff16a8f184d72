"""One HTTP request and its answer: the headers that every answer carries, whoever writes it."""

import asyncio
import itertools
import os
import re
import time
from collections.abc import Collection
from copy import copy

from starlette.types import Message, Receive, Scope, Send

from rtp_llm.core import Whole
from rtp_llm.observability import Answered, RequestMetrics, Seen, server_timing
from rtp_llm.server.cors import Cors
from rtp_llm.server.errors import ErrorForm, Headers, openai_form

JSON = b"application/json"
_SANE_ID = re.compile(rb"[\w.:/+=@-]{1,128}").fullmatch
_PREFIX = os.urandom(4).hex()
_numbers = itertools.count(1)


def choose_id(given: bytes | None = None) -> str:
    """The caller's own name for its request where it is a sane one, else a new one."""
    return given.decode("latin-1") if given and _SANE_ID(given) else f"{_PREFIX}-{next(_numbers):x}"


async def nobody_leaves() -> Message:
    """The channel of what has no client of its own to watch."""
    await asyncio.Event().wait()
    raise AssertionError("it waits until it is cancelled")


class Exchange:
    """A request's headers, its channels, and what has been sent of its answer.

    `status` is 0 until the answer starts; `route` is the path's template, and `metrics` are those of the model that was
    asked, once it is known; `error_form` tells failures, and `failure` is why a request that was in order failed;
    `content_type` is that of an answer that is no failure; `answered` is what the engine has answered; `deployment` is
    the model that the path names, as Azure's do, and beats every other name; `hosted_model` is that of NVIDIA's path,
    which may spell it otherwise than the body, or name the company alone: it counts where the body says none; `whole`
    is what this is a part of.
    """

    __slots__ = (
        "_cors",
        "_send",
        "answered",
        "content_type",
        "deployment",
        "error_form",
        "failure",
        "headers",
        "hosted_model",
        "method",
        "metrics",
        "path",
        "receive",
        "request_id",
        "route",
        "scope",
        "started_at",
        "status",
        "whole",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, cors: Cors | None = None) -> None:
        self._cors = cors or Cors()
        self.started_at = time.perf_counter()
        self.answered: list[Answered] = []
        self.scope = scope
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.receive = receive
        self._send = send
        self.status = 0
        self.failure = ""
        self.route = "unmatched"
        self.metrics: RequestMetrics | None = None
        self.error_form: ErrorForm = openai_form
        self.content_type = JSON
        self.deployment = self.hosted_model = ""
        self.whole: Whole | None = None
        self.request_id = choose_id(self.headers.get(b"x-request-id"))

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

    def part(self, whole: Whole) -> "Exchange":
        """An exchange for a part of this one's body: nobody leaves it, and its answer, which is JSON, is kept here."""
        part = copy(self)
        part.whole = whole
        part.headers = {name: value for name, value in self.headers.items() if name != b"accept"}
        part.receive = nobody_leaves
        return part

    def seen(self) -> Seen:
        """The exchange, now that it has ended."""
        return Seen(
            request_id=self.request_id,
            method=self.method,
            route=self.route,
            status=self.status,
            started_at=self.started_at,
            seconds=time.perf_counter() - self.started_at,
            failure=self.failure,
            model=self._model(),
            answered=self.answered,
            headers=self.headers,
        )

    def _model(self) -> str:
        if self.answered:
            return self.answered[0].model
        return self.metrics.model_name if self.metrics is not None else ""

    def _common(self) -> Headers:
        common = [(b"x-request-id", self.request_id.encode("latin-1")), *self._cors.headers(self.headers)]
        if self.answered:
            common.append((b"server-timing", server_timing(self.answered)))
        return common

    async def respond_to_options(self, methods: Collection[str]) -> None:
        """Answer a preflight of a path that takes these methods, without asking the router."""
        headers = self._cors.preflight(self.headers, methods)
        await self.send({"type": "http.response.start", "status": 204, "headers": headers})
        await self.send({"type": "http.response.body", "body": b""})
