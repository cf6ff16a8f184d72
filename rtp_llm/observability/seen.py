"""One request as the server saw it, for whoever keeps a record of it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from rtp_llm.core import Request, Response

_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}").match


STAGES = ("tokenize", "queue", "compute", "encode", "total")


class Answered(NamedTuple):
    """What the engine was asked and answered; `encode` is the seconds that writing the answer took."""

    request: Request
    response: Response
    model: str
    encode: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A request that has ended.

    route       the path's template, or the RPC's name
    status      as HTTP counts
    failure     why a request that was in order failed, whatever status tells it; empty where it did not
    model       the one that answered, or was asked to; empty where none is known
    started_at  as time.perf_counter() counts, when the request's head had been read
    seconds     from then to the end of the answer
    answered    nothing where the engine gave no answer; several where one call holds several requests
    headers     of the request; names in lower case
    """

    request_id: str
    method: str
    route: str
    status: int
    started_at: float
    seconds: float
    failure: str = ""
    model: str = ""
    answered: Sequence[Answered] = ()
    headers: Mapping[bytes, bytes] = field(default_factory=dict)

    @property
    def num_inputs(self) -> int:
        return sum(len(one.response.num_tokens) for one in self.answered)

    @property
    def num_tokens(self) -> int:
        return sum(one.response.total_tokens for one in self.answered)

    @property
    def num_truncated(self) -> int:
        return sum(sum(one.response.truncated) for one in self.answered)

    @property
    def trace_id(self) -> str:
        """Of the caller's trace, by its traceparent; empty where it sent none."""
        match = _TRACEPARENT(self.headers.get(b"traceparent", b""))
        return match[1].decode() if match else ""


class Observer(Protocol):
    """Keeps a record of requests."""

    def observe(self, seen: Seen) -> None:
        """A request has ended."""


def stages(answered: Sequence[Answered]) -> tuple[float, float, float, float, float]:
    """Seconds of the STAGES, of all answers together; the last is their sum and what lies between."""
    tokenize = queue = compute = encode = total = 0.0
    for one in answered:
        timings = one.response.timings
        tokenize += timings.tokenize
        queue += timings.queue
        compute += timings.compute
        encode += one.encode
        total += timings.total + one.encode
    return tokenize, queue, compute, encode, total


def server_timing(answered: Sequence[Answered]) -> bytes:
    """The value of the header Server-Timing, in milliseconds."""
    tokenize, queue, compute, encode, total = stages(answered)
    return b"tokenize;dur=%.3f, queue;dur=%.3f, compute;dur=%.3f, encode;dur=%.3f, total;dur=%.3f" % (
        tokenize * 1e3,
        queue * 1e3,
        compute * 1e3,
        encode * 1e3,
        total * 1e3,
    )
