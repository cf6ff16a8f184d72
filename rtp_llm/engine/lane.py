"""Lanes: work that somebody waits for overtakes work that nobody does."""

from enum import Enum

from rtp_llm.core import Request
from rtp_llm.engine.estimate import Estimate


class Lane(str, Enum):
    """Where a request waits."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


def lane_of(request: Request, estimate: Estimate, batch_tokens: int) -> Lane:
    """What the request says; where it says nothing, a request that fits one step is interactive."""
    if request.priority != "auto":
        return Lane(request.priority)
    return Lane.BULK if estimate.tokens(request.inputs, batch_tokens) > batch_tokens else Lane.INTERACTIVE
