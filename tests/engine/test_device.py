"""Several models on one device: batches do not mix, nobody starves, failures stay where they happen."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from rtp_llm.core import Request, Response
from rtp_llm.engine.engine import Engine
from rtp_llm.errors import DeadlineExceeded, DeviceLost, EngineFailure, NotReady, Overloaded
from tests.engine.fakes import FakeRuntime, make_engine
from tests.real_server import ROOT


class Pair:
    """Two models whose runtimes note what they are given."""

    def __init__(self, **options: Any) -> None:
        self.runtimes = FakeRuntime(), FakeRuntime()
        first = make_engine(self.runtimes[0], **options)
        self.engines: tuple[Engine, Engine] = first, make_engine(self.runtimes[1], first, **options)

    def hold(self) -> None:
        for runtime in self.runtimes:
            runtime.gate.clear()

    def let_go(self) -> None:
        for runtime in self.runtimes:
            runtime.gate.set()


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.let_go()
    pair.engines[0].close()


def ask(*inputs: Any, **options: Any) -> Request:
    return Request(inputs=list(inputs), **options)


async def together(pair: Pair, requests: list[tuple[int, Request]]) -> list[Any]:
    """The outcomes of requests that wait together, behind a batch that keeps each core busy."""
    pair.hold()
    busy = [asyncio.ensure_future(pair.engines[0].run(ask(letter))) for letter in "xy"]
    await asyncio.sleep(0.03)
    tasks = [asyncio.ensure_future(pair.engines[number].run(request)) for number, request in requests]
    await asyncio.sleep(0.03)
    pair.let_go()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(*busy)
    return outcomes


def test_batches_hold_one_models_items(pair: Pair) -> None:
    requests = [(n % 2, ask("ab" + chr(65 + n // 2))) for n in range(40)]
    outcomes = asyncio.run(together(pair, requests))
    assert all(isinstance(outcome, Response) for outcome in outcomes)
    first, second = (runtime.batches for runtime in pair.runtimes)
    assert sum(first) == 22 and sum(second) == 20 and max(second) > 3


def test_the_same_input_is_computed_by_each_model(pair: Pair) -> None:
    for engine in pair.engines:
        engine.run_sync(ask("abc"))
    assert [runtime.batches for runtime in pair.runtimes] == [[1], [1]]


def test_results_are_kept_for_one_model_alone() -> None:
    pair = Pair(result_cache_mb=1)
    for engine in (*pair.engines, *pair.engines):
        engine.run_sync(ask("abc"))
    pair.engines[0].close()
    assert [runtime.batches for runtime in pair.runtimes] == [[1], [1]]


def test_a_failure_of_one_does_not_hurt_the_other(pair: Pair) -> None:
    outcomes = asyncio.run(together(pair, [(0, ask([13])), (1, ask([12])), (0, ask("ab")), (1, ask("cd"))]))
    assert [type(outcome) for outcome in outcomes] == [EngineFailure, Response, Response, Response]
    assert b"rtp_llm_failed_inputs_total 1.0" in pair.engines[0].metrics.render()
    assert b"rtp_llm_failed_inputs_total 0.0" in pair.engines[1].metrics.render()


def test_what_comes_too_late_is_told_by_its_own_model(pair: Pair) -> None:
    late = ask("late", deadline=time.monotonic() + 0.04)
    outcomes = asyncio.run(together(pair, [(1, late), (0, ask("ab"))]))
    assert [type(outcome) for outcome in outcomes] == [DeadlineExceeded, Response]
    assert b"rtp_llm_expired_requests_total 1.0" in pair.engines[1].metrics.render()


def test_one_models_full_queue_is_its_own() -> None:
    pair = Pair(max_queued_tokens=5)
    requests = [(0, ask("ab" + chr(65 + n))) for n in range(8)]
    outcomes = asyncio.run(together(pair, [*requests, (1, ask("abc"))]))
    pair.engines[0].close()
    assert any(isinstance(outcome, Overloaded) for outcome in outcomes[:8]) and isinstance(outcomes[8], Response)


def test_a_dead_thread_is_the_end_of_all(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any) -> None:
        raise SystemExit

    told = threading.Event()
    pair.engines[0].device.on_failure = told.set
    for engine in pair.engines:
        engine.warm_up()
        engine.check_health()
    monkeypatch.setattr(pair.runtimes[1], "run", die)
    with pytest.raises((NotReady, EngineFailure)):
        asyncio.run(pair.engines[1].run(ask("abc")))
    assert told.wait(60)
    for engine in pair.engines:
        with pytest.raises(NotReady, match="a batch thread has died"):
            engine.check_health()
        with pytest.raises(NotReady):
            engine.run_sync(ask("x"))


def test_close_answers_what_is_in_for_all_models(pair: Pair) -> None:
    for runtime in pair.runtimes:
        runtime.seconds = 0.005
    waiting = [engine.run_many([ask("x" * 30), ask("y" * 30), ask("z")]) for engine in pair.engines]
    firsts = [next(responses) for responses in waiting]
    pair.engines[1].close()
    rests = [list(responses) for responses in waiting]
    assert len(firsts) == 2 and [len(rest) for rest in rests] == [2, 2]
    for engine in pair.engines:
        with pytest.raises(NotReady, match="shutting down"):
            engine.run_sync(ask("late"))


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads are Linux's")
def test_batch_threads_let_the_event_loop_go_first(pair: Pair) -> None:
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    ids = [thread.native_id or 0 for thread in pair.engines[0].device._threads]
    asyncio.run(together(pair, [(0, ask("a")), (1, ask("b"))]))  # each has run by then
    assert {os.getpriority(os.PRIO_PROCESS, number) for number in ids} == {min(own + 5, 19)}


@pytest.mark.parametrize("leaves", [False, True])
def test_close_does_not_wait_for_threads_that_wait_for_work(leaves: bool) -> None:
    """A batch on all cores, something behind it, and then nothing more: who takes it, or its client, is the last."""
    runtime = FakeRuntime(num_cores=3)
    engine = make_engine(runtime)
    runtime.gate.clear()
    jobs = []
    for text in ("a", "b"):
        jobs.append(engine.submit(ask(text), Future()))
        engine.device.wake()
        wait_until(lambda: engine.device.scheduler.free_cores == 0)
    closing = threading.Thread(target=engine.close, args=(120,))
    closing.start()
    wait_until(lambda: engine.device._drained)
    time.sleep(0.05)  # in which the idle threads see that there is no core for them
    if leaves:
        engine.cancel(jobs[1])
    runtime.gate.set()
    closing.join(60)
    assert not closing.is_alive()


def wait_until(is_so: Any) -> None:
    end = time.monotonic() + 5
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_device_that_is_lost_to_a_caller_is_lost_to_all(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: Any) -> None:
        raise DeviceLost("the device has failed: gone")

    told = threading.Event()
    pair.engines[0].device.on_failure = told.set
    monkeypatch.setattr(pair.runtimes[0], "run", lost)
    with pytest.raises((EngineFailure, NotReady)):
        pair.engines[0].run_sync(ask("abc"))
    assert told.is_set()
    with pytest.raises(NotReady, match="the device has failed: gone"):
        pair.engines[1].run_sync(ask("abc"))


_FORKS = """
import os, signal
from rtp_llm.core import Request
from rtp_llm.errors import NotReady
from tests.engine.fakes import FakeRuntime, make_engine

engine, large = make_engine(FakeRuntime()), Request(inputs=["x" * 30] * 200)
engine.run_sync(large)
if os.fork() == 0:
    signal.alarm(5)
    try:
        engine.run_sync(large)
    except NotReady as error:
        print(error.message, flush=True)
    engine.close()
    os._exit(0)
_, status = os.wait()
assert status == 0, status
engine.run_sync(large)
engine.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_is_told_that_it_has_no_threads() -> None:
    command = [sys.executable, "-W", "ignore", "-c", _FORKS]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "forked" in ended.stdout and "spawn" in ended.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads are Linux's")
def test_a_system_that_changes_no_priorities_is_computed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: int) -> None:
        raise PermissionError("not here")

    monkeypatch.setattr(os, "setpriority", forbidden)
    engine = make_engine(FakeRuntime())
    engine.warm_up()
    asyncio.run(engine.run(ask("abc")))
    engine.check_health()
    engine.close()


def test_what_is_closed_twice_is_released_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by `model.close()` within `with Model(...) as model`: the processes of a model in parts end once."""
    released = list[FakeRuntime]()
    monkeypatch.setattr(FakeRuntime, "close", lambda self: released.append(self))
    pair = Pair()
    for _ in range(2):
        pair.engines[0].close()
    assert len(released) == 2
