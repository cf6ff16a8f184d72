"""An exception at each stage of a request: who sees it, what the server says, and that the next request works."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rtp_llm.engine.delivery import Delivery
from rtp_llm.engine.lane import Lane
from rtp_llm.errors import NotReady
from tests.engine.fakes import FakeTask, FakeTokenizer
from tests.faults.conftest import Faulty
from tests.server.conftest import wait_until

pytestmark = pytest.mark.faults


class Panic(BaseException):
    """As pyo3's PanicException is: no Exception."""


def fails(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("texts", [["short"], ["x" * 30, "y" * 30]], ids=["inline", "on a thread"])
@pytest.mark.parametrize("error", [RuntimeError("secret"), MemoryError(), Panic("secret")])
def test_tokenising(server: Faulty, monkeypatch: pytest.MonkeyPatch, error: BaseException, texts: list[str]) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(FakeTokenizer, "encode", fails(error))
        answer = server.ask(*texts)
    assert answer.status_code == 500 and "secret" not in answer.text
    assert server.works()


@pytest.mark.parametrize("error", [RuntimeError("secret"), MemoryError("secret")])
def test_computing(server: Faulty, error: Exception) -> None:
    server.runtime.broken = fails(error)
    answer = server.ask("a", "b", "c")
    server.runtime.broken = None
    assert answer.status_code == 500 and "secret" not in answer.text and "computing input" in answer.text
    assert server.works()


def test_numbers_that_are_none(server: Faulty) -> None:
    answer = server.client.post("/v1/embeddings", json={"input": [[1, 2], [3, 14]]})
    assert answer.status_code == 500 and "computing input 1 failed: the model returned NaN" in answer.text
    assert server.works()


def test_finishing(server: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(FakeTask, "finish", fails(KeyError("secret")))
        answer = server.ask("a")
    assert answer.status_code == 500 and "secret" not in answer.text
    assert server.works()


def test_writing_the_answer(server: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(FakeTask, "finish", lambda *_: "no array")
        answer = server.ask("a")
    assert answer.status_code == 500 and "no array" not in answer.text
    assert server.works()


@pytest.mark.parametrize("where", ["computing", "delivering"])
def test_a_thread_that_dies(server: Faulty, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Whoever waits has an answer, health is 503, and whoever watches the process is told, once."""
    told: list[float] = []
    server.engine.device.on_failure = lambda: told.append(time.monotonic())
    hold = threading.Event()
    steps = iter([hold.wait, hold.wait, fails(SystemExit())])
    server.runtime.broken = lambda: next(steps, hold.wait)()
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(server.ask, f"{n}" * 40) for n in range(4)]
        wait_until(lambda: in_flight(server) == 4)
        if where == "delivering":
            monkeypatch.setattr(Delivery, "deliver", fails(Panic()))
        hold.set()
        statuses = [future.result().status_code for future in waiting]
        wait_until(lambda: bool(told))
    assert set(statuses) <= {200, 500, 503} and set(statuses) != {200}
    assert server.client.get("/health").status_code == 503 and server.ask("x").status_code == 503
    with pytest.raises(NotReady, match="a batch thread has died"):
        server.engine.check_health()
    assert len(told) == 1 and in_flight(server) == 0


def in_flight(server: Faulty) -> float:
    values = server.engine.metrics.registry.get_sample_value
    return sum(values("rtp_llm_requests_in_flight", {"lane": lane.value}) or 0 for lane in Lane)
