"""What is counted of streams, whose messages are requests to the engine and one to their caller."""

import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from rtp_llm.config import ServerConfig
from rtp_llm.engine.engine import Engine
from rtp_llm.errors import Overloaded
from tests.engine.fakes import FakeRuntime, make_engine
from tests.server.conftest import wait_until
from tests.server.grpc.conftest import Client, Loop, Stubs, connected, serving

grpc: Any = pytest.importorskip("grpc")


class Runtime(FakeRuntime):
    """A batch with a 13 fails when `fail` is set, whatever the gate says."""

    def __init__(self) -> None:
        super().__init__()
        self.fail = threading.Event()

    def run(self, items: Any, num_cores: int) -> Any:
        if any(13 in item.input_ids for item in items):
            assert self.fail.wait(60)
            raise RuntimeError("unlucky")
        return super().run(items, num_cores)


class Counted(NamedTuple):
    """An engine that computes nothing before the gate of its runtime is open, and a client of its server."""

    engine: Engine
    runtime: Runtime
    client: Client
    stubs: Stubs

    def stream(self, *texts: str, **options: Any) -> Any:
        """The first of the texts is in a batch of its own."""

        def requests() -> Iterator[Any]:
            for place, text in enumerate(texts):
                if place == 1:
                    wait_until(lambda: self.engine.device.scheduler.free_cores == 0)
                yield self.stubs.messages.EmbedRequest(inputs=text)

        return self.client.embed.EmbedStream(requests(), timeout=60, **options)

    def number(self, name: str, **labels: str) -> float:
        return self.engine.metrics.registry.get_sample_value(f"rtp_llm_{name}_requests_total", labels) or 0

    @property
    def ends(self) -> tuple[float, float]:
        return self.number("cancelled"), self.number("expired")

    @property
    def in_flight(self) -> int:
        return self.engine.metrics.waiting()[1]


@pytest.fixture
def counted(loop: Loop, config: ServerConfig, stubs: Stubs) -> Iterator[Counted]:
    runtime = Runtime()
    engine = make_engine(runtime, max_queued_tokens=2)
    runtime.gate.clear()
    with serving(loop, engine, config) as address, connected(address, stubs) as client:
        yield Counted(engine, runtime, client, stubs)
    runtime.gate.set()
    engine.close()


def test_a_client_that_leaves_a_stream_is_counted_once(counted: Counted) -> None:
    call = counted.stream("a", "b", "c")
    wait_until(lambda: counted.in_flight == 3)
    call.cancel()
    wait_until(lambda: counted.in_flight == 0)
    assert counted.ends == (1, 0)


def test_a_stream_that_is_late_is_counted_once(counted: Counted) -> None:
    call = counted.stream("a", "b", "c", metadata=[("x-request-timeout", "0.3")])
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: counted.in_flight == 0)
    assert counted.ends == (0, 1)


def test_a_stream_that_fails_has_not_lost_its_client(counted: Counted) -> None:
    call = counted.stream("\r", "b", "c")
    wait_until(lambda: counted.in_flight == 3)
    counted.runtime.fail.set()
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    wait_until(lambda: counted.in_flight == 0)
    assert counted.ends == (0, 0)


def test_who_waits_for_room_is_not_refused(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtp_llm.server.grpc.calls._LONGEST_WAIT", 0.01)
    run, turned_away = counted.engine.run, threading.Event()

    async def watched(request: Any) -> Any:
        try:
            return await run(request)
        except Overloaded:
            turned_away.set()
            raise

    monkeypatch.setattr(counted.engine, "run", watched)
    call = counted.stream(*"abcdefgh")
    assert turned_away.wait(60)
    counted.runtime.gate.set()
    assert np.shape([answer.embeddings for answer in call]) == (8, 4)
    assert counted.number("refused", lane="interactive") == 0
