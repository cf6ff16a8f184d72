"""Admission by lane, and how honest its Retry-After is: pure logic, no clock."""

import math
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from rtp_llm.config import EngineConfig
from rtp_llm.core import Request
from rtp_llm.engine.drain_rate import DrainRate
from rtp_llm.engine.estimate import Estimate
from rtp_llm.engine.gate import Gate
from rtp_llm.engine.job import Job
from rtp_llm.engine.lane import Lane, lane_of
from rtp_llm.errors import Overloaded
from rtp_llm.server.errors import error_headers


def make_gate(cores: int = 1, **options: Any) -> Gate:
    return Gate(EngineConfig(checkpoint_path="x", **options), cores, 1024)


def queued(interactive: int = 0, bulk: int = 0) -> dict[Lane, int]:
    return {Lane.INTERACTIVE: interactive, Lane.BULK: bulk}


@pytest.mark.parametrize(
    ("request_", "lane"),
    [
        (Request(inputs=["a query"]), Lane.INTERACTIVE),
        (Request(inputs=["x" * 390]), Lane.INTERACTIVE),
        (Request(inputs=["x" * 410]), Lane.BULK),
        (Request(inputs=["a"] * 60), Lane.BULK),
        (Request(inputs=[[1] * 101]), Lane.BULK),
        (Request(inputs=[("x" * 200, "y" * 200)]), Lane.BULK),
        (Request(inputs=["a query"], priority="bulk"), Lane.BULK),
        (Request(inputs=["a"] * 60, priority="interactive"), Lane.INTERACTIVE),
    ],
)
def test_lane(request_: Request, lane: Lane) -> None:
    assert lane_of(request_, Estimate(0, 512), batch_tokens=100) is lane


def test_each_lane_is_full_for_itself() -> None:
    gate = make_gate(max_queued_tokens=100, max_bulk_requests=3)
    gate.check(Lane.INTERACTIVE, queued(bulk=1000), 5000)
    gate.check(Lane.BULK, queued(interactive=1000), 2)
    with pytest.raises(Overloaded, match=r"100 tokens are waiting in the interactive lane, max_queued_tokens is 100"):
        gate.check(Lane.INTERACTIVE, queued(interactive=100), 1)
    with pytest.raises(Overloaded, match=r"3 bulk requests are in flight.*max_bulk_requests"):
        gate.check(Lane.BULK, queued(), 3)


def test_what_is_not_tokenised_yet_counts() -> None:
    gate, job = make_gate(max_queued_tokens=100), Job(Request(inputs=["x"]), Future(), lane=Lane.BULK)
    gate.announce(job, 120)
    with pytest.raises(Overloaded):
        gate.check(Lane.BULK, queued(), 1)
    gate.announce(job, -90)
    gate.check(Lane.BULK, queued(bulk=69), 1)
    gate.announce(job, -90)
    assert gate.announced == queued() and job.announced == 0


def check_time(
    gate: Gate, waiting: dict[Lane, int], left: float, own: int = 0, running: float = 0.0, others: float = 0.0
) -> None:
    works = [{Lane.INTERACTIVE: others, Lane.BULK: 0.0}]
    gate.check_time(Lane.INTERACTIVE, waiting, left, lambda: own, lambda: running, lambda: works)


def test_what_would_be_too_late_is_refused_at_once() -> None:
    gate = make_gate()
    check_time(gate, queued(interactive=50_000), 0.001)  # nothing is known yet
    gate.observe(1000, 0.25, 1)
    check_time(gate, queued(interactive=40_000), 12.6)
    message = r"40000 tokens are .* the request may take 12.5 s, its deadline is in 10 s; allow more, or .* in 2 s"
    with pytest.raises(Overloaded, match=message) as caught:
        check_time(gate, queued(interactive=40_000), 10.0)
    assert caught.value.retry_after == pytest.approx(2.0)


@pytest.mark.parametrize("more", [{"own": 20_000}, {"running": 5.0}, {"others": 5.0}, {"others": 1000.0}])
def test_what_runs_and_waits_elsewhere_and_the_request_itself_count(more: dict[str, Any]) -> None:
    """Of another model's work no more than this one has: their shares are equal."""
    gate = make_gate()
    gate.observe(1000, 0.25, 1)
    check_time(gate, queued(interactive=20_000), 6.3)
    check_time(gate, queued(interactive=20_000), 12.6, **more)
    with pytest.raises(Overloaded):
        check_time(gate, queued(interactive=20_000), 12.4, **more)


def test_where_nothing_waits_nothing_is_refused() -> None:
    """Nobody else could have the cores."""
    gate = make_gate()
    gate.observe(1000, 0.25, 1)
    check_time(gate, queued(bulk=40_000), 0.001, own=10_000, running=10.0)


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("small", [0, 50])
def test_the_drain_rate_is_the_devices(cores: int, small: int) -> None:
    """Batches of 1000 tokens in 0.25 core seconds; small ones, which are slower by token, say nothing of a queue."""
    gate = make_gate(cores)
    assert gate.tokens_per_second == 0
    for _ in range(20):
        gate.observe(1000, 0.25, 1)
    for _ in range(small):
        gate.observe(10, 0.05 / cores, cores)
    assert gate.tokens_per_second == pytest.approx(4000 * cores)
    assert gate.seconds_until_empty(Lane.BULK, queued(bulk=8000)) == pytest.approx(2 / cores)
    if small:
        assert gate.seconds_until_empty(Lane.BULK, queued(bulk=8 * cores)) == pytest.approx(8 / 200)


def test_a_rate_is_that_of_the_batches_nearest_in_size() -> None:
    rate = DrainRate()
    assert rate.of(100) == 0
    rate.observe(120, 0.1)
    assert rate.of(1) == rate.of(1e6) == pytest.approx(1200)
    rate.observe(1000, 0.1)
    assert [rate.of(size) for size in (8, 70, 750, 5000)] == pytest.approx([1200, 1200, 10_000, 10_000])
    for _ in range(50):
        rate.observe(1000, 0.2)
    assert rate.of(1000) == pytest.approx(5000, rel=0.01)


def test_full_steps_are_of_one_size() -> None:
    """Few have the whole budget: what nearly has it tells as much."""
    rate = DrainRate()
    rate.observe(1024, 1.0)
    for _ in range(200):
        rate.observe(900, 0.09)
    assert rate.of(1024) == pytest.approx(10_000, rel=0.01)


def test_a_size_is_not_thought_slow_for_ever() -> None:
    """Of that size no batch would be made that could tell better."""
    rate = DrainRate()
    rate.observe(4000, 100.0)  # the machine was held up
    rate.observe(1000, 1.0)
    assert rate.of(1000) == 1000 and rate.of(4000) == pytest.approx(1000 * 0.7**2)
    assert rate.core_seconds(4000) == pytest.approx(4 / 0.49)
    for _ in range(20):
        rate.observe(1000, 0.25)
    assert rate.of(4000) > 1800
    rate.observe(4000, 100.0)  # and is again, as smaller batches would show too
    assert rate.of(4000) < 50


def test_lanes_share_while_both_wait() -> None:
    gate = make_gate(bulk_share=20)
    gate.observe(1000, 1.0, 1)
    assert gate.seconds_until_empty(Lane.INTERACTIVE, queued(800, 10_000)) == pytest.approx(1.0)
    assert gate.seconds_until_empty(Lane.BULK, queued(800, 200)) == pytest.approx(1.0)
    assert gate.seconds_until_empty(Lane.BULK, queued(100, 2000)) == pytest.approx(2.1)


def test_retry_after_before_anything_is_known() -> None:
    with pytest.raises(Overloaded) as refusal:
        make_gate(max_queued_tokens=1).check(Lane.BULK, queued(bulk=9), 1)
    assert refusal.value.retry_after == 1.0 and math.isfinite(refusal.value.retry_after)


def test_the_wait_counts_what_other_models_do_meanwhile() -> None:
    """In turns: none has more than this one before it is done."""
    little, much = ({Lane.INTERACTIVE: seconds, Lane.BULK: 0.0} for seconds in (0.25, 3.0))
    gate = make_gate(max_queued_tokens=100)
    gate.observe(1000, 1.0, 1)
    assert gate.seconds_of_work(queued(500, 2000)) == {Lane.INTERACTIVE: 0.5, Lane.BULK: 2.0}
    with pytest.raises(Overloaded) as alone:
        gate.check(Lane.INTERACTIVE, queued(1000), 1)
    with pytest.raises(Overloaded) as beside:
        gate.check(Lane.INTERACTIVE, queued(1000), 1, lambda: [little, much, much])
    assert [error.value.retry_after for error in (alone, beside)] == pytest.approx([1.0, 3.25])


def test_the_message_and_the_header_say_the_same() -> None:
    gate = make_gate(max_bulk_requests=4)
    gate.observe(10, 1.0, 1)
    with pytest.raises(Overloaded) as refused:
        gate.check(Lane.BULK, queued(bulk=126), 4)
    ((_, seconds),) = error_headers(refused.value)
    assert seconds == b"4" and "try again in 4 s" in str(refused.value)


@pytest.fixture
def busy() -> Iterator[None]:
    """Threads interrupt each other as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("busy")
def test_a_rate_may_be_asked_for_while_another_thread_observes() -> None:
    """As the event loop does, and whoever reads the metrics, when a batch has a size that none had before."""
    for _ in range(20):
        rate = DrainRate()
        observing = threading.Thread(target=lambda rate=rate: [rate.observe(1 << size, 1.0) for size in range(60)])
        observing.start()
        while observing.is_alive():
            assert rate.of(100) >= 0
        observing.join()
