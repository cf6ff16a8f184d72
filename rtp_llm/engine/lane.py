"""Lanes: work that somebody waits for overtakes work that nobody does."""

from collections.abc import Sequence
from enum import Enum

from rtp_llm.core import Input, Request

# English text has about four characters a token; where a token has fewer, the input is cut at the model's limit anyway.
_CHARACTERS_PER_TOKEN = 4


class Lane(str, Enum):
    """Where a request waits."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


def lane_of(request: Request, batch_tokens: int) -> Lane:
    """What the request says; where it says nothing, a request that fits one step is interactive."""
    if request.priority != "auto":
        return Lane(request.priority)
    return Lane.BULK if estimate_tokens(request.inputs, batch_tokens) > batch_tokens else Lane.INTERACTIVE


def estimate_tokens(inputs: Sequence[Input], enough: float = float("inf")) -> int:
    """About how many tokens the inputs will have, before they are tokenised; counting stops above `enough`."""
    total = 0
    for value in inputs:
        if isinstance(value, list):
            total += len(value)
        else:
            characters = len(value[0]) + len(value[1]) if isinstance(value, tuple) else len(value)
            total += 2 + characters // _CHARACTERS_PER_TOKEN
        if total > enough:
            break
    return total
