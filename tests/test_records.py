"""Records are what frozen dataclasses are, but for being held to it at run time."""

from dataclasses import dataclass, fields, replace

import pytest

from rtp_llm.core import Params, Request
from rtp_llm.records import changed, record


@record(frozen=True, slots=True, kw_only=True)
class Ours:
    number: int = 1
    text: str = "a"


@dataclass(frozen=True, slots=True, kw_only=True)
class Theirs:
    number: int = 1
    text: str = "a"


def test_they_compare_and_hash_as_frozen_dataclasses_do() -> None:
    assert Ours() == Ours(number=1) != Ours(number=2) and len({Ours(), Ours(), Ours(text="b")}) == 2
    assert hash(Ours(number=3)) == hash(Theirs(number=3))
    assert [one.name for one in fields(Ours)] == [one.name for one in fields(Theirs)]
    assert repr(Ours()) == "Ours(number=1, text='a')" and not hasattr(Ours(), "__dict__")
    with pytest.raises(TypeError):
        Ours(1)  # type: ignore[call-arg]


def test_one_that_is_changed_is_another() -> None:
    request = Request(inputs=("a",), params=Params(dimensions=3), request_id="x")
    other = changed(request, deadline=2.0, priority="bulk")
    assert other == replace(request, deadline=2.0, priority="bulk") != request
    assert (request.deadline, request.priority) == (float("inf"), "auto")
