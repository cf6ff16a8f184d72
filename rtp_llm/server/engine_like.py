"""What the server knows of an engine."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from rtp_llm.core import ModelInfo, Request, Response
from rtp_llm.observability import RequestMetrics, Waiting


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

    @property
    def metrics(self) -> RequestMetrics:
        """Where its requests are counted."""

    def info(self) -> ModelInfo:
        """The loaded model; NotReady before there is one."""

    def check_health(self) -> None:
        """Raise NotReady, with the reason, while requests cannot be answered."""

    async def run(self, request: Request) -> Response:
        """Answer one request; cancelling the coroutine drops what still waits of it."""

    async def waiting(self) -> Waiting:
        """What has no answer yet."""

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


class Elsewhere(Protocol):
    """The process in which the engines are, where that is another one, and serves several like this one.

    num_sharers  so many have each their part of `concurrency_limit`
    """

    num_sharers: int

    async def open(self, end: Callable[[], None], reload: Callable[[], None]) -> None:
        """Speak with it, on this event loop; `end` and `reload` are called for what it passes on of signals."""

    async def may_accept(self) -> bool:
        """Say that this process can serve, and wait -> whether it is to; False: the server ends instead."""

    async def exposition(self) -> bytes:
        """The metrics of the whole server."""

    async def close(self) -> None:
        """Say what is still to be said, and no more."""
