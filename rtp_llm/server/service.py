"""What every route shares of the server: what an engine is, and an eye on clients that leave."""

import asyncio
import math
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from starlette.types import Receive

from rtp_llm.core import ModelInfo, Request, Response
from rtp_llm.errors import DeadlineExceeded
from rtp_llm.observability import Metrics
from rtp_llm.server.errors import ClientLeft

Result = TypeVar("Result")

# NOTE: a timer costs a request 1.9 us, a task that watches from the start 4.6 us, running the work in a task of its own
# 12.4 us; most answers are ready before the timer fires.
_WATCH_AFTER = 0.1


class Token(Protocol):
    """One token of a text and the characters it covers, start:stop; a special token covers none."""

    @property
    def id(self) -> int: ...

    @property
    def text(self) -> str: ...

    @property
    def special(self) -> bool: ...

    @property
    def start(self) -> int | None: ...

    @property
    def stop(self) -> int | None: ...


class Part(Protocol):
    """Characters start:stop of a text, and their tokens; the places are the whole text's."""

    @property
    def start(self) -> int: ...

    @property
    def stop(self) -> int: ...

    @property
    def tokens(self) -> Sequence[Token]: ...


class EngineLike(Protocol):
    """All that the server knows of an engine."""

    metrics: Metrics

    def info(self) -> ModelInfo:
        """The loaded model; NotReady before there is one."""

    def check_health(self) -> None:
        """Raise NotReady, with the reason, while requests cannot be answered."""

    async def run(self, request: Request) -> Response:
        """Answer one request; cancelling the coroutine drops what still waits of it."""

    def token_parts(self, text: str, *, add_special_tokens: bool = True) -> Iterator[Part]:
        """The tokens of a text as the model would read it, without prompt or limit, part by part."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; InvalidRequest for an id that is out of the vocabulary."""

    def prompt(self, name: str) -> str:
        """The text of the prompt called `name`, one of the model's."""

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """A conversation as the model's chat template writes it; InvalidRequest where it has none, or that fails."""


async def unless_client_leaves(work: Coroutine[Any, Any, Result], receive: Receive, seconds: float) -> Result:
    """The result of `work`; ClientLeft, with `work` cancelled, when the connection closes first.

    DeadlineExceeded, with `work` cancelled, when it takes longer than `seconds`.
    """
    watch = _Watch(receive, seconds)
    try:
        return await work
    except asyncio.CancelledError:
        if watch.client_left:
            raise ClientLeft from None
        if watch.expired:
            raise DeadlineExceeded(f"the answer was not ready after {seconds:g} seconds") from None
        raise
    finally:
        watch.stop()


class _Watch:
    """Cancels the task that made it when the client leaves, or when `seconds` are over."""

    __slots__ = ("_deadline", "_owner", "_receive", "_timer", "_watcher", "client_left", "expired")

    def __init__(self, receive: Receive, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self.client_left = self.expired = False
        self._receive = receive
        self._owner = asyncio.current_task()
        self._watcher: asyncio.Task[None] | None = None
        self._deadline = time.monotonic() + seconds
        self._timer = loop.call_later(_WATCH_AFTER, self._start) if seconds > _WATCH_AFTER else self._set_alarm()

    def stop(self) -> None:
        """Look no more; the tasks are let go, whose tracebacks lead back here: all go without the garbage collector."""
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        self._watcher = self._owner = None

    def _start(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch())
        if math.isfinite(self._deadline):
            self._timer = self._set_alarm()

    def _set_alarm(self) -> asyncio.TimerHandle:
        left = max(self._deadline - time.monotonic(), 0.0)
        return asyncio.get_running_loop().call_later(left, self._expire)

    def _expire(self) -> None:
        if time.monotonic() < self._deadline:  # uvloop counts from the start of its round
            self._timer = self._set_alarm()
            return
        assert self._owner is not None
        self.expired = True
        self._owner.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        assert self._owner is not None
        self.client_left = True
        self._owner.cancel()
