"""How much work a request's inputs are, before they are tokenised."""

import math
from collections.abc import Sequence

from rtp_llm.core import Chunking, Input
from rtp_llm.records import record

# English text has about four characters a token.
_CHARACTERS_PER_TOKEN = 4
_SPECIAL_TOKENS = 2
# What an input takes beside its characters, in characters. NOTE: measured are 7 us a text, 19 us a pair and 0.23 us a
# character; a thousand texts of one letter kept the event loop for 7 ms.
_EACH = 16


@record(frozen=True, slots=True)
class Estimate:
    """The measure of one request's inputs.

    lead         characters of prompt and instruction, which stand before each text and are tokenised with each
    max_seq_len  what is read of an input at once
    around_pair  characters of a reranker's own words, which are tokenised with each pair
    stride       tokens that a chunk has in common with the next
    """

    lead: int
    max_seq_len: int
    chunking: Chunking | None = None
    around_pair: int = 0
    stride: int = 0

    def characters(self, inputs: Sequence[Input], enough: float = math.inf) -> int:
        """What is tokenised, and some for each input; counting stops above `enough`. Ready token ids count too."""
        total = 0
        for value in inputs:
            total += self._characters(value)
            if total > enough:
                break
        return total

    def tokens(self, inputs: Sequence[Input], enough: float = math.inf) -> int:
        """About how many tokens are computed; counting stops above `enough`."""
        if self.chunking == "late":  # all inputs together are read at once, or refused
            enough = min(enough, self.max_seq_len)
        total = 0
        for value in inputs:
            total += self._tokens(value)
            if total > enough:
                break
        return min(total, self.max_seq_len) if self.chunking == "late" else total

    def end_of_part(
        self,
        inputs: Sequence[Input],
        start: int,
        max_inputs: int,
        *,
        max_tokens: float = math.inf,
        max_characters: float = math.inf,
    ) -> int:
        """Where a part from `start` ends that has at most so many inputs, about so many tokens, and one at least."""
        if self.chunking == "late":
            return len(inputs)
        stop, tokens, characters = start, 0, 0
        for value in inputs[start : start + max_inputs]:
            tokens += self._tokens(value)
            characters += self._characters(value)
            if stop > start and (tokens > max_tokens or characters > max_characters):
                break
            stop += 1
        return stop

    def _characters(self, value: Input) -> int:
        if isinstance(value, list):
            return _EACH + len(value)
        return _EACH + self._length(value) + (self.around_pair if isinstance(value, tuple) else 0)

    def _length(self, value: str | tuple[str, str]) -> int:
        return self.lead + (len(value) if isinstance(value, str) else len(value[0]) + len(value[1]))

    def _tokens(self, value: Input) -> int:
        if self.chunking == "mean":
            return self._in_chunks(value)
        if isinstance(value, list):
            return min(len(value), self.max_seq_len)
        return min(_SPECIAL_TOKENS + self._length(value) // _CHARACTERS_PER_TOKEN, self.max_seq_len)

    def _in_chunks(self, value: Input) -> int:
        """All of a text is read, each chunk of it with the prompt and special tokens of its own."""
        if isinstance(value, list):
            return len(value)
        frame = _SPECIAL_TOKENS + self.lead // _CHARACTERS_PER_TOKEN
        own = (self._length(value) - self.lead) // _CHARACTERS_PER_TOKEN
        chunks = math.ceil(max(own - self.stride, 1) / max(self.max_seq_len - frame - self.stride, 1))
        return own + frame * chunks + self.stride * (chunks - 1)
