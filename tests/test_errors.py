"""Errors keep what they know on their way between processes."""

import copy
import pickle
from collections.abc import Callable, Iterator

import pytest

from rtp_llm.errors import InputTooLarge, InputTooLong, InvalidInput, Overloaded, RtpError
from rtp_llm.server.errors import MethodNotAllowed
from rtp_llm.server.tei.frame import EmptyInput

MADE: list[RtpError] = [
    InvalidInput(3, " has 9 tokens; set " + InvalidInput.CUT),
    InputTooLarge(1, " has too many characters"),
    InputTooLong(2, " has too many tokens"),
    Overloaded("full", retry_after=7.5),
    MethodNotAllowed("POST only", allow="POST"),
    EmptyInput("nothing"),
]
OTHERWISE_MADE = {type(error) for error in MADE}


def below(kind: type[RtpError]) -> Iterator[type[RtpError]]:
    yield kind
    for sub in kind.__subclasses__():
        yield from below(sub)


def errors() -> list[RtpError]:
    plain = {kind for kind in below(RtpError) if kind.__module__.startswith("rtp_llm.")} - OTHERWISE_MADE
    return [*MADE, *(kind("a message", param="input") for kind in sorted(plain, key=lambda kind: kind.__name__))]


@pytest.mark.parametrize("way", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
@pytest.mark.parametrize("error", errors(), ids=lambda error: type(error).__name__)
def test_an_error_survives(error: RtpError, way: Callable[[RtpError], RtpError]) -> None:
    again = way(error)
    assert type(again) is type(error) and again is not error
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))
