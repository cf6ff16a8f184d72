"""A long text is tokenised only as far as the model reads it, and never more of it at a time than a bound allows.

Over that bound, texts are refused that have no place for a cut, or next to no tokens, or come as a pair of long ones.
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from rtp_llm.engine.tokenizer_cuts import Cuts
from rtp_llm.errors import InputTooLarge

Side: TypeAlias = Literal["left", "right"]
Text: TypeAlias = "str | tuple[str, str]"

# A long text is first tried with this many characters for each token that may be kept: 100 kB of English for a model
# of 512 tokens is then encoded in 2 ms instead of 35.
CHARACTERS_PER_TOKEN = 16
# What is tokenised of one text at a time, in about 0.1 s; more only where the model's own limit asks for more.
_MOST_CHARACTERS = 200_000


def most_characters(max_seq_len: int) -> int:
    """How much of one text is tokenised at a time."""
    return max(_MOST_CHARACTERS, 2 * max_seq_len * CHARACTERS_PER_TOKEN)


def parts_of(text: Text) -> tuple[str, ...]:
    """A text alone, or both of a pair."""
    return (text,) if isinstance(text, str) else text


@dataclass(frozen=True, slots=True)
class Shortening:
    """The rules for one tokenizer (`cuts`), the end that is kept (`side`: what is lost) and a limit of tokens."""

    cuts: Cuts | None
    side: Side
    max_seq_len: int

    def first(self, index: int, text: Text) -> Text:
        """The part to try first; the text itself where it is short. InputTooLarge where it cannot be cut."""
        return self._checked(index, self._shortened(text, self.max_seq_len * CHARACTERS_PER_TOKEN))

    def more(self, index: int, text: Text) -> Text:
        """All that may be tried."""
        most = most_characters(self.max_seq_len)
        return self._checked(index, self._shortened(text, most) if max(map(len, parts_of(text))) > most else text)

    def suffices(self, encoding: Any, text: Text, tried: Text) -> bool:
        """Whether what was shortened still has more tokens than can be kept, and its partner no more than that."""
        if tried is text:
            return True
        if isinstance(text, str):
            return bool(len(encoding) > self.max_seq_len)
        counts = [encoding.sequence_ids.count(sequence) for sequence in (0, 1)]
        shortened, partner = counts if tried[0] is not text[0] else reversed(counts)
        return bool(shortened > self.max_seq_len >= partner)

    def start(self, text: Text, tried: Text) -> int:
        """How many characters of a single text are before what was tried of it."""
        return len(text) - len(tried) if self.side == "left" else 0

    def refuse(self, index: int) -> InputTooLarge:
        """What is told of a text of which `more` did not suffice."""
        most = most_characters(self.max_seq_len)
        return InputTooLarge(index, f" has too few tokens in {most} characters, the most that are tokenised: clean it")

    def _shortened(self, text: Text, enough: int) -> Text:
        """`enough` characters, up to a safe place."""
        if isinstance(text, tuple):
            first, second = self._shortened(text[0], enough), self._shortened(text[1], enough)
            # Which of two long texts is the longer decides where an odd token goes, so one at most is shortened.
            return text if (first is text[0]) == (second is text[1]) else (str(first), str(second))
        if len(text) <= 2 * self.max_seq_len * CHARACTERS_PER_TOKEN or self.cuts is None:
            return text
        return self.cuts.tail(text, enough) if self.side == "left" else self.cuts.head(text, enough)

    def _checked(self, index: int, text: Text) -> Text:
        most, longest = most_characters(self.max_seq_len), max(map(len, parts_of(text)))
        if longest <= most:
            return text
        why = "without a known place for a cut" if isinstance(text, str) else "beside another long text"
        raise InputTooLarge(index, f" has {longest} characters {why}, the limit for that is {most}: split it")
