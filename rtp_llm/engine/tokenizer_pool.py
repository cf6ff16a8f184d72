"""Encoding inputs on threads of its own, each request by what is wanted of it."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from rtp_llm.core import Input, Item, Params
from rtp_llm.engine.tokenizer import Tokenizer

_SMALL_CHARACTERS = 2000


class Encoder(Protocol):
    """Inputs to Items, as `Tokenizer.encode` does it."""

    def encode(self, inputs: Sequence[Input], params: Params, start: int = 0) -> list[Item]: ...


class TokenizerPool:
    """A Tokenizer on threads of its own, one job a request; others may encode what is embedded, scored, or chunks."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        num_threads: int,
        embedding: Encoder | None = None,
        reranking: Encoder | None = None,
        chunking: Encoder | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self._embedding = embedding or tokenizer
        self._reranking = reranking or tokenizer
        self._chunking = chunking or tokenizer
        # The library reads only this variable; unset, each call would take all cores from the batches that run.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix="tokenizer")

    @staticmethod
    def is_small(inputs: Sequence[Input]) -> bool:
        """Whether encoding takes less time than a hop to another thread: do it where you are."""
        total = 0
        for value in inputs:
            total += 1 + (len(value[0]) + len(value[1]) if isinstance(value, tuple) else len(value))
            if total > _SMALL_CHARACTERS:
                return False
        return True

    def encode(self, inputs: Sequence[Input], params: Params, start: int = 0, *, rerank: bool = False) -> list[Item]:
        """`Tokenizer.encode`, on the caller's thread; `rerank`: these are to be scored."""
        if params.chunking is not None:
            return self._chunking.encode(inputs, params, start)
        return (self._reranking if rerank else self._embedding).encode(inputs, params, start)

    def submit(self, work: Callable[..., None], *arguments: object) -> None:
        """Run `work(*arguments)` on one of the pool's threads; it sees to its own errors."""
        self._executor.submit(work, *arguments)

    def close(self) -> None:
        """Take no more work, and wait until what was submitted is done."""
        self._executor.shutdown(wait=True)
