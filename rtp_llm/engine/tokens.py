"""What a tokenizer tells of a text: its tokens one by one, or framed by what stands around them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rtp_llm.core import Int32Array
from rtp_llm.errors import InvalidInput

_SLICE = 1 << 16


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
    spans          of its own tokens, where they are wanted
    """

    head: Int32Array
    body: Int32Array
    tail: Int32Array
    prompt_length: int
    spans: Int32Array | None = None


class Encoded(NamedTuple):
    """The library's encoding of a text or a pair; `spans` as `Item.spans`, where they are wanted."""

    encoding: Any
    is_pair: bool
    spans: list[tuple[int, int]] | None = None


def outlier(ids: Sequence[int], num_ids: int) -> int | None:
    """One of the ids that is not among 0 ... num_ids - 1; None: there is none.

    NOTE: in slices, since min() and max() of millions keep all other threads waiting.
    """
    for start in range(0, len(ids), _SLICE):
        part = ids[start : start + _SLICE]
        for extreme in (max(part), min(part)):
            if not 0 <= extreme < num_ids:
                return extreme
    return None


def check_ids(ids: Sequence[int], index: int, vocab_size: int) -> None:
    """InvalidInput for ready ids that this model's tokenizer cannot have given the input at `index`."""
    if not ids:
        raise InvalidInput(index, " is an empty list of token ids; send at least one")
    for token_id in ids:
        if type(token_id) is not int:
            raise InvalidInput(index, f": {token_id!r} is not a token id; a list holds whole numbers only")
    wrong = outlier(ids, vocab_size)
    if wrong is not None:
        raise InvalidInput(
            index,
            f": token id {wrong} is out of this model's vocabulary of {vocab_size}; send text, "
            "or ids of this model's own tokenizer (LangChain's OpenAIEmbeddings: check_embedding_ctx_length=False)",
        )


def unicode_problem(text: str) -> str:
    """Where `text` has a lone surrogate, which no tokenizer can read; empty: nowhere."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f" is not valid Unicode: a lone surrogate, {text[error.start]!a}, at character {error.start}"
    return ""
