"""How requests end, with a fake runtime: by failures, cancellation, interrupts, deadlines, the end of the engine."""

import asyncio
import time
from concurrent.futures import Future
from typing import Any

import pytest

from rtp_llm.core import Params, Request, Response
from rtp_llm.engine.engine import Engine
from rtp_llm.engine.job import Job
from rtp_llm.errors import DeadlineExceeded, EngineFailure, NotReady
from tests.engine.fakes import (
    FakeRuntime,
    FakeTask,
    all_cores_work,
    ask,
    hold_encoding,
    lengths,
    make_engine,
    slow_to_encode,
)


@pytest.mark.parametrize(("bad", "message"), [([13], "RuntimeError"), ([14], "NaN")])
def test_only_the_bad_item_fails(engine: Engine, runtime: FakeRuntime, bad: list[int], message: str) -> None:
    async def together() -> list[Any]:
        runtime.gate.clear()
        requests = [ask("abc"), ask("de"), ask(bad), ask("fghi")]
        tasks = [asyncio.ensure_future(engine.run(request)) for request in requests]
        await asyncio.sleep(0.05)
        runtime.gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, second, failed, last = asyncio.run(together())
    assert [lengths(response) for response in (first, second, last)] == [[3], [2], [4]]
    assert isinstance(failed, EngineFailure) and message in failed.message


def test_a_cancelled_request_frees_its_rows(engine: Engine, runtime: FakeRuntime) -> None:
    async def leave() -> None:
        runtime.gate.clear()
        busy = [asyncio.ensure_future(engine.run(ask(letter))) for letter in "ab"]
        await all_cores_work(engine)
        gone = asyncio.ensure_future(engine.run(ask("zzz")))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        runtime.gate.set()
        await asyncio.gather(*busy)

    asyncio.run(leave())
    engine.run_sync(ask("end"))
    assert sum(runtime.batches) == 3
    assert b"rtp_llm_cancelled_requests_total 1.0" in engine.metrics.render()


@pytest.mark.parametrize("text", ["\x0d", "break" * 5])
def test_the_log_names_the_request_that_failed(engine: Engine, caplog: pytest.LogCaptureFixture, text: str) -> None:
    inputs = [text, "break"] if "break" in text else [text]
    with pytest.raises(EngineFailure):
        engine.run_sync(Request(inputs=inputs, request_id="look-me-up"))
    assert "request look-me-up: " in caplog.text


def test_an_interrupt_of_the_caller_is_not_an_inputs_failure(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(engine.runtime, "run", interrupted)
        engine.run_sync(ask("abc"))
    assert not caplog.records and engine.device.scheduler.free_cores == 2
    assert lengths(engine.run_sync(ask("ok"))) == [2]


def test_close_answers_what_is_in_and_refuses_the_rest(runtime: FakeRuntime) -> None:
    engine = make_engine(runtime)
    runtime.seconds = 0.01
    responses = engine.run_many([ask("x" * 30), ask("y" * 30), ask("z")])
    first = next(responses)
    engine.close()
    assert [lengths(response) for response in (first, *responses)] == [[30], [30], [1]]
    with pytest.raises(NotReady, match="shutting down"):
        engine.run_sync(ask("late"))


def test_close_fails_what_is_not_done_in_time(runtime: FakeRuntime) -> None:
    engine = make_engine(runtime)
    runtime.gate.clear()

    async def stuck() -> Any:
        task = asyncio.ensure_future(engine.run(ask("b")))
        await asyncio.sleep(0.02)
        await asyncio.get_running_loop().run_in_executor(None, engine.close, 0.05)
        return (await asyncio.gather(task, return_exceptions=True))[0]

    result = asyncio.run(stuck())
    runtime.gate.set()
    assert isinstance(result, NotReady)


def test_close_keeps_its_time_though_much_is_not_tokenised_yet(runtime: FakeRuntime) -> None:
    engine = make_engine(runtime)
    go = hold_encoding(engine)
    waiting = [Future[Response]() for _ in range(4)]
    for future in waiting:
        engine.submit(ask(*["x" * 30] * 2000), future)
    engine.close(0.1)
    for future in waiting:
        with pytest.raises(NotReady, match="shutting down; this request was not done in time"):
            future.result(0)
    go.set()


def test_cancelling_what_is_not_tokenised_yet_leaves_nothing(engine: Engine) -> None:
    slow_to_encode(engine, 0.02)

    async def leave() -> dict[Any, int]:
        tasks = [asyncio.ensure_future(engine.run(ask(*["x" * 30] * 1000))) for _ in range(5)]
        await asyncio.sleep(0.03)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return dict(engine._gate.announced)

    assert not any(asyncio.run(leave()).values()) and not any(engine._jobs.values())


def test_an_event_loop_that_closed_early_harms_nobody(engine: Engine, runtime: FakeRuntime) -> None:
    async def abandon() -> None:
        runtime.gate.clear()
        task = asyncio.ensure_future(engine.run(ask("abc")))
        await asyncio.sleep(0.01)
        task.add_done_callback(lambda _: None)

    asyncio.run(abandon())
    runtime.gate.set()
    assert lengths(engine.run_sync(ask("ok"))) == [2]


def test_a_task_that_cannot_finish_fails_its_request_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = FakeTask.finish

    def fragile(self: FakeTask, rows: Any, params: Params, input_ids: Any) -> Any:
        if params.dimensions == 1:
            raise KeyError("internal detail")
        return finish(self, rows, params, input_ids)

    monkeypatch.setattr(FakeTask, "finish", fragile)
    with pytest.raises(EngineFailure, match=r"finishing the answer failed: KeyError$"):
        engine.run_sync(ask("abc", dimensions=1))
    assert lengths(engine.run_sync(ask("ok"))) == [2]


def test_an_answer_without_memory_fails_its_request_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(job: Job, row: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(Job, "_room_for", no_room)
        with pytest.raises(EngineFailure, match="input 0 failed: MemoryError"):
            engine.run_sync(ask("abc"))
    assert lengths(engine.run_sync(ask("ok"))) == [2]
    assert engine.device.problem is None


def test_a_request_that_meets_the_end_of_the_tokenizers_leaves_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: Any) -> None:
        raise RuntimeError("cannot schedule new futures after shutdown")

    monkeypatch.setattr(engine._tokenizer, "submit", closed)
    with pytest.raises(NotReady, match="shutting down"):
        engine.run_sync(ask(*["x" * 30] * 1000))
    assert not any(engine._jobs.values()) and not any(engine._gate.announced.values())


@pytest.mark.parametrize("bad", [[], [5], [0, 6, 7], range(8)])
def test_a_failed_batch_is_halved_until_what_fails_is_alone(engine: Engine, runtime: FakeRuntime, bad: Any) -> None:
    inputs = [[13, n] if n in bad else [1, n] for n in range(8)]
    requests = [ask(value) for value in inputs]
    outcomes: list[Any] = []
    runtime.gate.clear()

    async def together() -> None:
        busy = [asyncio.ensure_future(engine.run(ask(letter))) for letter in "xy"]
        await asyncio.sleep(0.03)
        tasks = [asyncio.ensure_future(engine.run(request)) for request in requests]
        await asyncio.sleep(0.03)
        runtime.gate.set()
        outcomes.extend(await asyncio.gather(*tasks, return_exceptions=True))
        await asyncio.gather(*busy)

    asyncio.run(together())
    assert [place for place, outcome in enumerate(outcomes) if isinstance(outcome, EngineFailure)] == list(bad)


@pytest.mark.parametrize("given_up", [False, True])
def test_what_comes_too_late_is_counted_once_whoever_notices(
    given_up: bool, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokeniser's thread finds it too late, and before it can say so the caller may give up for the same reason."""
    job, fail = Job(Request(inputs=["x" * 30], deadline=time.monotonic()), Future[Response]()), engine._open_jobs.fail

    def failing(late: Job, error: Exception) -> None:
        if given_up:
            engine.cancel(late)
        fail(late, error)

    monkeypatch.setattr(engine._open_jobs, "fail", failing)
    assert not engine._encode_part(job)
    assert job.done and b"rtp_llm_expired_requests_total 1.0" in engine.metrics.render()


def test_what_comes_too_late_is_not_computed(engine: Engine, runtime: FakeRuntime) -> None:
    with pytest.raises(DeadlineExceeded):
        engine.run_sync(Request(inputs=["late"], deadline=time.monotonic()))

    async def wait() -> list[Any]:
        runtime.gate.clear()
        busy = [asyncio.ensure_future(engine.run(ask(letter))) for letter in "xy"]
        await all_cores_work(engine)
        deadline = time.monotonic() + 0.02
        late = [
            asyncio.ensure_future(engine.run(Request(inputs=inputs, deadline=deadline)))
            for inputs in (["abc"], ["d" * 50, "e" * 50])
        ]
        await asyncio.sleep(0.05)
        runtime.gate.set()
        return (await asyncio.gather(*busy, *late, return_exceptions=True))[2:]

    assert [type(outcome) for outcome in asyncio.run(wait())] == [DeadlineExceeded, DeadlineExceeded]
    assert sum(runtime.batches) == 2
    assert b"rtp_llm_expired_requests_total 3.0" in engine.metrics.render()
    assert lengths(engine.run_sync(ask("ok"))) == [2]


def test_what_is_given_up_half_way_is_expected_no_more(engine: Engine, runtime: FakeRuntime) -> None:
    """A large request whose first part is computed, while a tokeniser holds the second: others need not wait for it."""
    parts, large = slow_to_encode(engine, 0.0), ask(*["x" * 30 + chr(65 + i) for i in range(200)])
    job = engine.submit(large, Future())
    with engine.device.changed:
        assert engine.expire(job) and not engine.expire(job)
        assert not any(engine._gate.announced.values()) and not engine.device.scheduler.queued_items
    assert len(parts) <= 4


def test_what_cannot_be_ready_in_time_is_told_before_its_deadline(engine: Engine, runtime: FakeRuntime) -> None:
    engine.device.scheduler.foresee(engine._number, lambda num_tokens: 1000.0)  # seconds of a step

    async def wait() -> list[Any]:
        runtime.gate.clear()
        busy = [asyncio.ensure_future(engine.run(ask(letter))) for letter in "xy"]
        await all_cores_work(engine)
        late = asyncio.ensure_future(engine.run(Request(inputs=["late"], deadline=time.monotonic() + 50)))
        patient = asyncio.ensure_future(engine.run(ask("patient")))
        await asyncio.sleep(0.02)
        runtime.gate.set()
        return (await asyncio.gather(*busy, late, patient, return_exceptions=True))[2:]

    assert [type(outcome) for outcome in asyncio.run(asyncio.wait_for(wait(), 30))] == [DeadlineExceeded, Response]
    assert b"rtp_llm_expired_requests_total 1.0" in engine.metrics.render()


def test_no_request_is_counted_when_all_is_answered(engine: Engine) -> None:
    engine.run_sync(ask("abc", *["x" * 30 + chr(65 + i) for i in range(20)]))
    with pytest.raises(EngineFailure):
        engine.run_sync(ask("break", "x" * 100))
    text = engine.metrics.render().decode()
    for name in ("requests_in_flight", "queued_tokens", "queued_inputs"):
        assert f'rtp_llm_{name}{{lane="bulk"}} 0.0' in text and f'rtp_llm_{name}{{lane="interactive"}} 0.0' in text


def test_an_interrupted_caller_leaves_no_work(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(engine.device, "help_until", interrupted)
        engine.run_sync(ask("abc"))
    assert engine.device.scheduler.queued_items == 0 and not any(engine._jobs.values())


def test_two_threads_may_give_a_job_its_outcome(engine: Engine) -> None:
    """A batch thread that delivers, and one that ends the device."""

    class Raced(Future[Response]):
        def done(self) -> bool:
            is_done = super().done()
            if not is_done:
                self.set_exception(NotReady("the other thread"))
            return is_done

    future = Raced()
    engine._delivery.give_up(Job(ask("a"), future), NotReady("this thread"))
    with pytest.raises(NotReady, match="the other thread"):
        future.result()
