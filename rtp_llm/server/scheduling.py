"""What a caller's headers say of when its request is computed, in any dialect."""

import math
import time
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from msgspec import Meta

from rtp_llm.core import Request
from rtp_llm.errors import InvalidRequest
from rtp_llm.records import changed

PRIORITY_HEADER = b"x-priority"
_PRIORITIES = ("auto", "interactive", "bulk")
BodyPriority: TypeAlias = Annotated[
    int | None,
    Meta(
        description="as in vLLM and Cohere: below 0 is interactive, above 0 bulk; 0, null: by size; X-Priority beats it"
    ),
]


def scheduled(
    request: Request,
    headers: Mapping[bytes, bytes],
    seconds: float = math.inf,
    number: int | None = None,
    *,
    by_client: bool = True,
) -> Request:
    """The request with its priority, if it is for clients to choose, and the deadline that is `seconds` from now.

    X-Priority chooses; then `number`, a body's own priority as in vLLM and Cohere: lower is earlier, and 0 as ever.
    InvalidRequest for a priority that does not exist.
    """
    changes: dict[str, Any] = {}
    if number:
        changes["priority"] = "interactive" if number < 0 else "bulk"
    given = headers.get(PRIORITY_HEADER)
    if given is not None:
        priority = given.decode("latin-1").lower()
        if priority not in _PRIORITIES:
            raise InvalidRequest(f"X-Priority: {priority!r:.60} is not one of {', '.join(_PRIORITIES)}")
        changes["priority"] = priority
    if not by_client:
        changes.clear()
    if math.isfinite(seconds):
        changes["deadline"] = time.monotonic() + seconds
    return changed(request, **changes) if changes else request
