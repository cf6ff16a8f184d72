"""An RPC's metadata: what a caller sends, as HTTP has its headers, and what an answer tells of its cost."""

from collections.abc import Iterable, Sequence

import numpy as np

from rtp_llm.core import Request
from rtp_llm.server.grpc.proto import Message
from rtp_llm.server.tei.frame import COMPUTE_TYPE
from rtp_llm.timings import Timings


def as_headers(metadata: Iterable[tuple[str, str | bytes]]) -> dict[bytes, bytes]:
    """An RPC's metadata, as HTTP has its headers."""
    return {_bytes(name): _bytes(value) for name, value in metadata}


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("latin-1", "replace")


def headers_of(reply: Message, request_id: str) -> list[tuple[str, str]]:
    """The original's headers, whole milliseconds, beside the request's id."""
    headers = [("x-request-id", request_id)]
    if not hasattr(reply, "metadata"):
        return headers
    metadata = reply.metadata
    milliseconds = {
        "x-compute-time": metadata.total_time_ns,
        "x-total-time": metadata.total_time_ns,
        "x-tokenization-time": metadata.tokenization_time_ns,
        "x-queue-time": metadata.queue_time_ns,
        "x-inference-time": metadata.inference_time_ns,
    }
    return [
        *headers,
        ("x-compute-type", COMPUTE_TYPE),
        ("x-compute-characters", str(metadata.compute_chars)),
        ("x-compute-tokens", str(metadata.compute_tokens)),
        *((name, str(nanoseconds // 1_000_000)) for name, nanoseconds in milliseconds.items()),
    ]


def characters_of(request: Request) -> int:
    """Characters of all texts."""
    return sum(len(text) for value in request.inputs for text in (value if isinstance(value, tuple) else (value,)))


def fill(metadata: Message, characters: int, tokens: int, timings: Timings) -> None:
    """Write into tei.v1's Metadata what an answer has cost; times in nanoseconds."""
    metadata.compute_chars, metadata.compute_tokens = characters, tokens
    metadata.total_time_ns = _nanoseconds(timings.total)
    metadata.tokenization_time_ns = _nanoseconds(timings.tokenize)
    metadata.queue_time_ns = _nanoseconds(timings.queue)
    metadata.inference_time_ns = _nanoseconds(timings.compute)


def _nanoseconds(seconds: float) -> int:
    return max(round(seconds * 1e9), 0)


def mean_of(timings: Sequence[Timings]) -> Timings:
    """Stage by stage, of the parts of one answer."""
    rows = [(timing.tokenize, timing.queue, timing.compute, timing.total) for timing in timings]
    tokenize, queue, compute, total = np.mean(rows, axis=0).tolist()
    return Timings(tokenize=tokenize, queue=queue, compute=compute, total=total)
