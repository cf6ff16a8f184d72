"""Encoding inputs on threads of its own, each request by what is wanted of it."""

import os
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from rtp_llm.core import Input, Item, Params, Request, TaskType
from rtp_llm.engine.estimate import Estimate
from rtp_llm.engine.lane import Lane
from rtp_llm.engine.lane_threads import LaneThreads, Work
from rtp_llm.engine.listwise import Listwise
from rtp_llm.engine.tokenizer import Tokenizer
from rtp_llm.errors import EngineFailure

_SMALL_CHARACTERS = 2000
# What is encoded in a turn of a thread, some 25 ms of work, before others have theirs.
PART_CHARACTERS = 1 << 16


class Encoder(Protocol):
    """Inputs to Items, as `Tokenizer.encode` does it."""

    def encode(self, inputs: Sequence[Input], params: Params, start: int = 0) -> list[Item]: ...


class PairEncoder(Encoder, Protocol):
    """Pairs as one text each, of which `around_pair` characters are neither query nor document."""

    around_pair: int


class Tokenized(NamedTuple):
    """What was made of all inputs of a request, and when, as time.perf_counter() counts."""

    items: list[Item]
    started_at: float
    ended_at: float


class TokenizerPool:
    """A Tokenizer on threads of its own; others may encode what is embedded, scored, or chunks."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        num_threads: int,
        embedding: Encoder | None = None,
        reranking: PairEncoder | None = None,
        chunking: Encoder | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self._embedding = embedding or tokenizer
        self._reranking: Encoder = reranking or tokenizer
        self._around_pair = reranking.around_pair if reranking else 0
        self._is_listwise = isinstance(reranking, Listwise)
        self._chunking = chunking or tokenizer
        # The library reads only this variable; unset, each call would take all cores from the batches that run.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._threads = LaneThreads(num_threads, "tokenizer")

    def estimate(self, params: Params) -> Estimate:
        """The measure of inputs that come with these parameters."""
        prompts, name = self.tokenizer.prompts, params.prompt_name or self.tokenizer.default_prompt_name
        prompt = params.prompt if params.prompt is not None else prompts.get(name or "", "")
        most = self.tokenizer.max_seq_len if params.max_tokens is None else params.max_tokens
        lead = len(prompt) + len(params.instruction or "")
        max_seq_len = max(min(most, self.tokenizer.max_seq_len), 1)
        chunking = params.chunking if params.stride is None else "mean"
        if self._is_listwise:  # all inputs together are one item, as in late chunking
            chunking = "late"
        return Estimate(lead, max_seq_len, chunking, self._around_pair, params.stride or 0)

    def is_small(self, inputs: Sequence[Input], estimate: Estimate) -> bool:
        """Whether encoding takes less time than a hop to another thread: do it where you are."""
        # With a stride, a short text may become any number of items.
        return not estimate.stride and estimate.characters(inputs, _SMALL_CHARACTERS) <= _SMALL_CHARACTERS

    def is_one_part(self, inputs: Sequence[Input], estimate: Estimate) -> bool:
        """Whether encoding is no more than one turn's work of a thread."""
        return not estimate.stride and estimate.characters(inputs, PART_CHARACTERS) <= PART_CHARACTERS

    def encode(self, inputs: Sequence[Input], params: Params, start: int = 0, *, rerank: bool = False) -> list[Item]:
        """`Tokenizer.encode`, on the caller's thread; `rerank`: these are to be scored."""
        if params.chunking is not None or params.stride is not None:
            return self._chunking.encode(inputs, params, start)
        return (self._reranking if rerank else self._embedding).encode(inputs, params, start)

    def read(self, request: Request, start: int, stop: int) -> list[Item]:
        """The inputs start:stop of a request, encoded."""
        rerank = TaskType.RERANK in request.tasks
        try:
            return self.encode(request.inputs[start:stop], request.params, start, rerank=rerank)
        except (Exception, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic inside the tokenizers library is no Exception
            raise EngineFailure(f"tokenising failed: {type(error).__name__}") from error

    def submit(self, work: Work, lane: Lane) -> None:
        """Work, turn by turn, on the pool's threads: `LaneThreads.submit`."""
        self._threads.submit(work, lane)

    def close(self, timeout: float) -> None:
        """Take no more work, and wait until what was submitted is done, or given up: `LaneThreads.close`."""
        self._threads.close(timeout)
