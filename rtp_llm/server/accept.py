"""Accept: which of an answer's forms a client would rather have. RFC 9110, 12.5.1."""

from collections.abc import Container, Sequence

from rtp_llm.server.exchange import JSON

_ANY = (b"*/*", b"application/*")


def preferred(accept: bytes, offered: Container[bytes]) -> bytes:
    """The media type that a client names with the greatest weight, of those that are `offered` and JSON.

    Of equal ones the first, and any before `*/*`, which is JSON. JSON too where it names none of them: an answer that
    was not asked for tells more than a refusal.
    """
    if accept in (JSON, b"*/*"):  # as almost every client sends it
        return JSON
    best, found = (0.0, True), JSON
    for entry in accept.split(b","):
        kind, *parameters = (part.strip().lower() for part in entry.split(b";"))
        is_any = kind in _ANY
        if not is_any and kind != JSON and kind not in offered:
            continue
        rank = _weight(parameters), not is_any
        if rank > best:
            best, found = rank, JSON if is_any else kind
    return found


def _weight(parameters: Sequence[bytes]) -> float:
    """`q`, from 0 for what is not wanted; 1 where it is left out, or is no number."""
    for name, _, value in (parameter.partition(b"=") for parameter in parameters):
        if name.strip() == b"q":
            try:
                return float(value)
            except ValueError:
                return 1.0
    return 1.0
