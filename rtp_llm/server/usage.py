"""How many tokens the model has read for an answer, as OpenAI's clients are told of it."""

import msgspec

from rtp_llm.core import Response


class Usage(msgspec.Struct, kw_only=True):
    """Tokens that the model read: after truncation, special tokens included."""

    prompt_tokens: int
    total_tokens: int


def usage(response: Response) -> dict[str, int]:
    """A `Usage`, for an answer that is written as a dict."""
    tokens = response.total_tokens
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def usage_json(response: Response) -> bytes:
    """A `Usage`, for an answer that is written as bytes."""
    tokens = response.total_tokens
    return b'{"prompt_tokens":%d,"total_tokens":%d}' % (tokens, tokens)
