"""When a request is computed: by its header, by its body's number, by neither."""

import time

import pytest

from rtp_llm.core import Request, TaskType
from rtp_llm.errors import InvalidRequest
from rtp_llm.server.scheduling import PRIORITY_HEADER, scheduled

REQUEST = Request(inputs=["a"], tasks=(TaskType.DENSE,))


@pytest.mark.parametrize(("number", "priority"), [(None, "auto"), (0, "auto"), (-1, "interactive"), (999, "bulk")])
def test_a_bodys_number(number: int | None, priority: str) -> None:
    assert scheduled(REQUEST, {}, number=number).priority == priority


def test_the_header_beats_the_body() -> None:
    assert scheduled(REQUEST, {PRIORITY_HEADER: b"Interactive"}, number=5).priority == "interactive"


def test_a_priority_that_does_not_exist() -> None:
    with pytest.raises(InvalidRequest, match=r"X-Priority: 'high' is not one of auto, interactive, bulk"):
        scheduled(REQUEST, {PRIORITY_HEADER: b"high"})


def test_the_deadline() -> None:
    assert scheduled(REQUEST, {}).deadline == REQUEST.deadline
    assert 4 < scheduled(REQUEST, {}, 5.0).deadline - time.monotonic() <= 5
