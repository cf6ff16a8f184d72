"""The tokens of a long text, part by part: between two parts others have their turn, and a deadline may pass."""

from collections.abc import Iterator

from rtp_llm.engine.tokenizer import Tokenizer
from rtp_llm.engine.tokens import Part, Token

_CHARACTERS = 16_384
_PROBE = "a"


def token_parts(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool = True) -> Iterator[Part]:
    """What `Tokenizer.tokens` gives, in parts; one part where the text is short or has no place for a cut.

    RequestTooLarge for a part that is too long, InvalidInput for text that is no Unicode.
    """
    cuts = tokenizer.cuts
    if len(text) <= 2 * _CHARACTERS or cuts is None or not cuts.tails:
        yield Part(0, len(text), tokenizer.tokens(text, add_special_tokens=add_special_tokens))
        return
    before, after = _frame(tokenizer) if add_special_tokens else ([], [])
    yield Part(0, 0, before)
    start = 0
    while start < len(text):
        part = cuts.head(text[start:], _CHARACTERS)
        tokens = tokenizer.tokens(part, add_special_tokens=False)
        yield Part(start, start + len(part), [token.moved(start) for token in tokens])
        start += len(part)
    yield Part(start, start, after)


def _frame(tokenizer: Tokenizer) -> tuple[list[Token], list[Token]]:
    """The special tokens before a text and after it."""
    probe = tokenizer.tokens(_PROBE)
    own = [place for place, token in enumerate(probe) if not token.special]
    return probe[: own[0]], probe[own[-1] + 1 :]
