"""What a tokenizer tells of a text: its tokens one by one, or framed by what stands around them."""

from dataclasses import dataclass
from typing import NamedTuple

from rtp_llm.core import Int32Array


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a text and the characters it covers, start:stop; a special token covers none."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None

    def moved(self, characters: int) -> "Token":
        """The same in a text that has so many characters before this one."""
        if self.start is None or self.stop is None:
            return self
        return Token(self.id, self.text, self.special, self.start + characters, self.stop + characters)


class Part(NamedTuple):
    """Characters start:stop of a text, and their tokens; the places are the whole text's."""

    start: int
    stop: int
    tokens: list[Token]


class Framed(NamedTuple):
    """One input's tokens: those before it (leading special ones, the prompt), its own, and those after it.

    prompt_length  as of an Item
    """

    head: Int32Array
    body: Int32Array
    tail: Int32Array
    prompt_length: int
