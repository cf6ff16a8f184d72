"""What may come in: the size of a request, how many are in flight over all protocols, and how long one may take."""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from rtp_llm.config import ServerConfig
from rtp_llm.core import Request
from rtp_llm.errors import InvalidRequest, Overloaded, RequestTooLarge

TIMEOUT_HEADER = b"x-request-timeout"


class Admission:
    """The limits that HTTP and gRPC share; each of several processes has its part of concurrency_limit, rounded up."""

    def __init__(self, config: ServerConfig, num_sharers: int = 1) -> None:
        self._config = config
        self._num_places = self._num_free = -(-config.concurrency_limit // num_sharers)
        self._patient: deque[asyncio.Future[None]] = deque()  # those who wait for a place, by age

    def check_room(self) -> None:
        """Overloaded when there is no place among those in flight: worth knowing before a body is decoded."""
        if self._num_free == 0:
            limit, own = self._config.concurrency_limit, self._num_places
            most = "the most allowed (concurrency_limit)"
            if own < limit:
                most = f"this front-end's part of the most allowed, {limit} (concurrency_limit)"
            raise Overloaded(f"{own} requests are in flight, {most}: try again shortly")

    async def enter(self) -> None:
        """Take a place among those in flight; Overloaded when there is none."""
        self.check_room()
        self._num_free -= 1

    def leave(self) -> None:
        """Give the place back, to whoever has waited longest for one."""
        while self._patient:
            waiter = self._patient.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._num_free += 1

    async def _wait(self) -> None:
        """Take a place as soon as there is one."""
        if self._num_free:
            self._num_free -= 1
            return
        waiter = asyncio.get_running_loop().create_future()
        self._patient.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():  # it had just got one
                self.leave()
            raise

    @asynccontextmanager
    async def place(self, *, patient: bool) -> AsyncIterator[None]:
        """A place among those in flight; where there is none, a `patient` caller waits for it, another is refused."""
        await (self._wait() if patient else self.enter())
        try:
            yield
        finally:
            self.leave()

    def check_size(self, request: Request, num_bytes: int, place: Callable[[int], str] = "input[{}]".format) -> None:
        """RequestTooLarge for a text that would take too long to tokenise; the request came as `num_bytes`.

        `place` names the field of the input of that number.
        """
        if num_bytes <= self._config.max_input_characters:
            return
        for index, value in enumerate(request.inputs):
            for text in value if isinstance(value, tuple) else (value,):
                self.check_text(text, place(index))

    def check_text(self, text: str | list[int], param: str) -> None:
        """RequestTooLarge for a text over the limit, or for more token ids than a request may have."""
        kind, limit, option = self._limit_of(text)
        if len(text) > limit:
            raise RequestTooLarge(
                f"{param} has {len(text)} {kind}, the limit is {limit} ({option}): split it", param=param
            )

    def check_together(self, texts: Sequence[str] | Sequence[list[int]], param: str) -> None:
        """RequestTooLarge for texts of which all tokens are asked for, or ids of which the text is, if too many."""
        total = sum(map(len, texts))
        kind, limit, option = self._limit_of(texts[0])
        if total > limit:
            raise RequestTooLarge(
                f"{param} has {total} {kind} in all, the limit is {limit} ({option}): send fewer", param=param
            )

    def _limit_of(self, text: str | list[int]) -> tuple[str, int, str]:
        """What is counted, how much of it there may be, and the option that says so."""
        if isinstance(text, str):
            return "characters", self._config.max_input_characters, "max_input_characters"
        return "token ids", self._config.max_request_tokens, "max_request_tokens"

    def seconds(self, headers: Mapping[bytes, bytes]) -> float:
        """How long the request may take: what its header asks for, at most `request_timeout`; inf: as long as it may.

        InvalidRequest for a header that is no number, or leaves no time.
        """
        limit = self._config.request_timeout or math.inf
        given = headers.get(TIMEOUT_HEADER)
        if given is None:
            return limit
        try:
            seconds = float(given)
        except ValueError:
            seconds = math.nan
        shown = given.decode("latin-1")
        if math.isnan(seconds):
            raise InvalidRequest(f"X-Request-Timeout: {shown!r:.100} is not a number of seconds")
        if seconds <= 0:
            most = f", at most {limit:g} (request_timeout)" if math.isfinite(limit) else ""
            message = f"X-Request-Timeout: {shown!r:.100} is not above 0; give seconds{most}, or leave it out"
            raise InvalidRequest(message)
        return min(seconds, limit)
