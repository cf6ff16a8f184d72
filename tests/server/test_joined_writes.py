"""Heads of answers go out with their bodies, and nothing is kept back for ever (rtp_llm/server/joined_writes.py)."""

from types import SimpleNamespace
from typing import Any

import pytest

from rtp_llm.server.joined_writes import JoinedWrites


class Wire:
    """A transport that tells of each system call."""

    def __init__(self) -> None:
        self.calls: list[tuple[bytes, ...]] = []

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.calls.append((data,))

    def writelines(self, parts: tuple[bytes, ...]) -> None:
        self.calls.append(tuple(parts))

    def close(self) -> None:
        self.calls.append(())


@pytest.fixture
def wire() -> Wire:
    return Wire()


def joined(wire: Wire, method: str = "POST", *, started: bool = True) -> Any:
    cycle: Any = SimpleNamespace(response_started=started, scope={"method": method})
    transport: Any = wire
    return JoinedWrites(cycle, transport), cycle


def test_a_head_waits_for_the_first_of_its_body(wire: Wire) -> None:
    answer, _ = joined(wire)
    for part in (b"head", b"one", b"two"):
        answer.write(part)
    assert wire.calls == [(b"head", b"one"), (b"two",)]


def test_an_empty_body_sends_the_head(wire: Wire) -> None:
    answer, _ = joined(wire)
    answer.write(b"head")
    answer.write(b"")
    assert b"".join(wire.calls[0]) == b"head"


def test_what_comes_before_an_answer_is_sent_at_once(wire: Wire) -> None:
    answer, cycle = joined(wire, started=False)
    answer.write(b"100 Continue")
    cycle.response_started = True
    answer.write(b"head")
    answer.write(b"body")
    assert wire.calls == [(b"100 Continue",), (b"head", b"body")]


def test_an_answer_to_head_has_no_body_to_wait_for(wire: Wire) -> None:
    answer, _ = joined(wire, "HEAD")
    answer.write(b"head")
    assert wire.calls == [(b"head",)]


def test_an_answer_that_breaks_off_is_sent_as_far_as_it_came(wire: Wire) -> None:
    answer, _ = joined(wire)
    answer.write(b"head")
    answer.close()
    assert wire.calls == [(b"head",), ()]
