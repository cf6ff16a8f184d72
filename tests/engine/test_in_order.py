from concurrent.futures import Future

import pytest

from rtp_llm.core import Request, Response
from rtp_llm.engine import in_order
from rtp_llm.engine.in_order import run_in_order
from rtp_llm.engine.job import Job


class Recorder:
    """An engine that answers when it is waited for, and has work enough from `enough` requests on."""

    def __init__(self, enough: int) -> None:
        self.enough = enough
        self.in_flight = 0
        self.most = 0

    @property
    def has_work_ahead(self) -> bool:
        return self.in_flight >= self.enough

    def submit(self, request: Request, future: "Future[Response]", *, may_refuse: bool) -> Job:
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        return Job(request, future)

    def cancel(self, job: Job) -> None: ...

    def help_until(self, future: "Future[Response]") -> Response:
        self.in_flight -= 1
        return Response(outputs={}, num_tokens=[], truncated=[], input_ids=[])


@pytest.mark.parametrize(("enough", "most"), [(1, 8), (20, 20), (10_000, in_order._MOST_IN_FLIGHT)])
def test_so_many_are_in_flight_that_every_core_has_work(enough: int, most: int) -> None:
    engine = Recorder(enough)
    assert len(list(run_in_order(engine, [Request(inputs=["a"])] * 300))) == 300
    assert engine.most == most
