"""/vertex: what is counted of a request that has several in it, and for whom."""

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import httpx
import pytest

from rtp_llm.core import Request, Whole
from rtp_llm.engine.engine import Engine
from rtp_llm.errors import DeadlineExceeded, EngineFailure, Overloaded
from tests.engine.fakes import FakeRuntime, ask, make_engine
from tests.server.conftest import running_server, wait_until
from tests.server.fake_engine import FakeEngine

TEN = {"instances": [{"inputs": text} for text in "abcdefghij"]}


class Counted:
    """A server whose engine computes nothing before the gate of its runtime is open."""

    def __init__(self, engine: Engine, runtime: FakeRuntime, port: int) -> None:
        self.engine, self.runtime, self.port = engine, runtime, port

    def post(self, body: dict[str, Any], **headers: str) -> httpx.Response:
        url = f"http://127.0.0.1:{self.port}/vertex"
        return httpx.post(url, json=body, headers=headers, trust_env=False, timeout=60)

    @property
    def ends(self) -> tuple[float, float]:
        """Requests that were given up by their clients, and by their deadlines."""
        values = self.engine.metrics.registry.get_sample_value
        cancelled, expired = (values(f"rtp_llm_{name}_requests_total") or 0 for name in ("cancelled", "expired"))
        return cancelled, expired

    @property
    def in_flight(self) -> int:
        return self.engine.metrics.waiting()[1]


@pytest.fixture
def counted() -> Iterator[Counted]:
    runtime = FakeRuntime()
    engine = make_engine(runtime)
    runtime.gate.clear()
    with running_server(engine) as address:
        yield Counted(engine, runtime, address.port)
    runtime.gate.set()
    engine.close()


def test_a_deadline_is_counted_once_and_as_one(counted: Counted) -> None:
    answer = counted.post(TEN, **{"x-request-timeout": "0.3"})
    assert answer.status_code == 504 and "after 0.3 seconds" in answer.json()["error"]
    wait_until(lambda: counted.in_flight == 0)
    assert counted.ends == (0, 1)


def test_a_client_that_leaves_is_counted_once(counted: Counted) -> None:
    content = json.dumps(TEN).encode()
    head = f"POST /vertex HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", counted.port)) as connection:
        connection.sendall(head + content)
        wait_until(lambda: counted.in_flight == 8)
    wait_until(lambda: counted.in_flight == 0)
    assert counted.ends == (1, 0)


def test_one_that_fails_takes_no_client_from_the_others(counted: Counted) -> None:
    answer = counted.post({"instances": [{"inputs": "a"}, {"inputs": "b"}, {"inputs": []}]})
    assert answer.status_code == 400 and "instances[2]" in answer.json()["error"]
    wait_until(lambda: counted.in_flight == 0)
    assert counted.ends == (0, 0)


def test_a_failure_is_counted_for_the_model_that_was_asked() -> None:
    engines = [FakeEngine(name="first"), FakeEngine(name="second")]
    engines[1].error = EngineFailure("no vector with NaN is sent")
    with running_server(engines) as address:
        body = {"instances": [{"inputs": "a", "model": "second"}]}
        answer = httpx.post(f"{address.url}/vertex", json=body, trust_env=False)
        labels = {"route": "/vertex", "reason": "engine_failure"}
        wait_until(lambda: engines[1].metrics.registry.get_sample_value("rtp_llm_failed_requests_total", labels) == 1)
    assert answer.status_code == 424


@pytest.mark.parametrize(
    ("options", "expected"), [({}, 3), ({"whole": Whole()}, 1), ({"patient": True, "whole": Whole()}, 0)]
)
def test_refusals_of_parts_are_counted_once(options: dict[str, Any], expected: float) -> None:
    """And those of who asks again not at all."""
    runtime = FakeRuntime()
    engine = make_engine(runtime, max_queued_tokens=1)
    runtime.gate.clear()
    engine.submit(ask("a"), Future())
    engine.device.wake()
    wait_until(lambda: engine.device.scheduler.free_cores == 0)
    engine.submit(ask("b"), Future())
    for _ in range(3):
        with pytest.raises(Overloaded):
            engine.submit(Request(inputs=["c"], **options), Future())
    refused = engine.metrics.registry.get_sample_value("rtp_llm_refused_requests_total", {"lane": "interactive"})
    runtime.gate.set()
    engine.close()
    assert (refused or 0) == expected


def test_what_waits_of_a_whole_is_no_reason_to_refuse_its_other_parts() -> None:
    """They are late when they are late: a client told to try again would meet the same."""
    runtime = FakeRuntime()
    engine = make_engine(runtime)
    done: Future[Any] = Future()
    late: Future[Any] = Future()
    engine.submit(ask("measured"), done)
    engine.device.wake()
    done.result(30)
    runtime.gate.clear()
    whole, deadline = Whole(), time.monotonic() + 600
    engine.submit(Request(inputs=["a"], whole=whole, deadline=deadline), Future())
    engine.device.wake()
    wait_until(lambda: engine.device.scheduler.free_cores == 0)
    engine.submit(Request(inputs=["b"], whole=whole, deadline=deadline), Future())
    with pytest.raises(DeadlineExceeded):
        engine.submit(Request(inputs=["c"], whole=whole, deadline=time.monotonic() + 1e-5), late)
        runtime.gate.set()
        engine.device.wake()
        late.result(30)
    runtime.gate.set()
    engine.close()
