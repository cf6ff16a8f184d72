"""What entities need of a tokenizer: its words, how they are written, and where in a text they stand."""

from collections.abc import Mapping
from typing import Any

import tokenizers

_NONE = (-1, -1)


class TokenWords:
    """The vocabulary of a tokenizer, as rtp_llm/entities.py asks for it.

    marks_subwords  whether a token that continues a word is written so that it shows, as WordPiece's ##ing
    special_ids     role -> id
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, special_ids: Mapping[str, int]) -> None:
        self._tokenizer = tokenizer
        self.special_ids = special_ids
        self.marks_subwords = bool(getattr(tokenizer.model, "continuing_subword_prefix", None))

    def piece(self, token_id: int) -> str:
        """The vocabulary's own word for an id (`▁what`, `##ing`), which no other id has."""
        token = self._tokenizer.id_to_token(token_id)
        return f"<id {token_id}>" if token is None else str(token)

    def joined(self, pieces: list[str]) -> str:
        """The text of such words. Source: transformers, convert_tokens_to_string."""
        decoder = self._tokenizer.decoder
        return " ".join(pieces) if decoder is None else str(decoder.decode(pieces))


def spans_of(encoding: Any, shift: int) -> list[tuple[int, int]]:
    """The characters that each token stands for, moved by `shift`; -1 of special tokens, and of what is before 0."""
    return [
        _NONE if special or start + shift < 0 else (start + shift, stop + shift)
        for (start, stop), special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
    ]
