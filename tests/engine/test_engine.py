"""The engine with a fake runtime: order, batching, failures, cancellation, shutdown."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import Params, Request, Response, TaskType
from rtp_llm.engine.engine import Engine
from rtp_llm.engine.job import Job
from rtp_llm.engine.lane import Lane
from rtp_llm.errors import (
    DeadlineExceeded,
    EngineFailure,
    InvalidRequest,
    NotReady,
    Overloaded,
    RequestTooLarge,
    UnsupportedTask,
)
from tests.engine.fakes import FakeRuntime, FakeTask, make_engine


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def engine(runtime: FakeRuntime) -> Iterator[Engine]:
    engine = make_engine(runtime)
    yield engine
    runtime.gate.set()
    engine.close()


def ask(*inputs: Any, **params: Any) -> Request:
    return Request(inputs=list(inputs), params=Params(**params))


def lengths(response: Response) -> list[int]:
    return [int(row[1]) for row in response.outputs[TaskType.DENSE]]


def test_rows_come_in_the_request_order(engine: Engine) -> None:
    response = engine.run_sync(ask("aaa", "b", "cc"))
    assert lengths(response) == [3, 1, 2] == response.num_tokens
    assert response.total_tokens == 6 and response.truncated == [False] * 3


def test_a_large_request_is_split_and_joined(engine: Engine, runtime: FakeRuntime) -> None:
    texts = [chr(33 + i // 50) * (1 + i % 50) for i in range(500)]
    assert lengths(engine.run_sync(ask(*texts))) == [len(text) for text in texts]
    assert len(runtime.batches) > 100


def test_small_requests_share_a_batch(engine: Engine, runtime: FakeRuntime) -> None:
    async def many() -> list[Response]:
        runtime.gate.clear()
        tasks = [asyncio.ensure_future(engine.run(ask("ab" + chr(65 + i)))) for i in range(12)]
        await asyncio.sleep(0.05)
        runtime.gate.set()
        return await asyncio.gather(*tasks)

    assert all(lengths(response) == [3] for response in asyncio.run(many()))
    assert max(runtime.batches) > 3


def test_params_reach_the_task(engine: Engine) -> None:
    assert engine.run_sync(ask("abc", dimensions=2)).outputs[TaskType.DENSE].shape == (1, 2)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (ask("abc", dimensions=9), InvalidRequest),
        (ask(), InvalidRequest),
        (ask("refuse"), InvalidRequest),
        (ask("refuse", "x" * 100), InvalidRequest),
        (ask("break", "x" * 100), EngineFailure),
        (Request(inputs=["a"], tasks=(TaskType.RERANK,)), UnsupportedTask),
    ],
)
def test_refusals(engine: Engine, request_: Request, error: type[Exception]) -> None:
    with pytest.raises(error):
        engine.run_sync(request_)
    assert lengths(engine.run_sync(ask("ok"))) == [2]


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


async def all_cores_work(engine: Engine) -> None:
    while engine.device.scheduler.free_cores:
        await asyncio.sleep(0.002)


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


def test_a_full_queue_is_429_with_a_time(runtime: FakeRuntime) -> None:
    engine = make_engine(runtime, max_queued_tokens=5)

    async def flood() -> list[Any]:
        runtime.gate.clear()
        tasks = [asyncio.ensure_future(engine.run(ask("ab" + chr(65 + i)))) for i in range(8)]
        await asyncio.sleep(0.05)
        runtime.gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(flood())
    engine.close()
    refused = [result for result in results if isinstance(result, Overloaded)]
    assert refused and refused[0].retry_after > 0 and "max_queued_tokens is 5" in refused[0].message
    assert all(isinstance(result, Response) for result in results if result not in refused)


@pytest.mark.parametrize("text", ["abcde", "a" * 15])
def test_tokens_of_a_request_are_limited(runtime: FakeRuntime, text: str) -> None:
    engine = make_engine(runtime, max_request_tokens=2 * len(text))
    assert engine.run_sync(ask(text, text)).total_tokens == 2 * len(text)
    with pytest.raises(RequestTooLarge, match=f"over {2 * len(text)} tokens .max_request_tokens"):
        engine.run_sync(ask(text, text, "b"))
    assert engine.run_sync(ask("a")).total_tokens == 1
    engine.close()


def test_no_more_is_expected_of_a_request_than_will_be_read_of_it(engine: Engine) -> None:
    """Texts of any length close no lane, for the model reads 64 tokens of each."""
    announced = []
    tokenise = engine._tokenizer.encode

    def watched(*args: Any, **options: Any) -> Any:
        announced.append(engine._gate.announced[Lane.BULK])
        return tokenise(*args, **options)

    engine._tokenizer.encode = watched  # type: ignore[method-assign]
    engine.run_sync(ask(*["x" * 10_000] * 3))
    assert announced[0] == 3 * 64


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


def test_health(engine: Engine) -> None:
    with pytest.raises(NotReady, match="canary"):
        engine.check_health()
    engine.warm_up()
    engine.check_health()


def test_many_requests_are_never_refused_and_their_errors_come_in_order(runtime: FakeRuntime) -> None:
    engine = make_engine(runtime, max_queued_tokens=20, max_bulk_requests=1)
    requests = [ask("x" * 30 + str(number), "y" * 50 + str(number)) for number in range(40)]
    assert [lengths(response)[0] for response in engine.run_many(requests)] == [31] * 10 + [32] * 30
    assert not any(engine._jobs.values())
    responses = engine.run_many([*requests[:3], ask("refuse"), *requests])
    assert [lengths(next(responses))[0] for _ in range(3)] == [31] * 3
    with pytest.raises(InvalidRequest, match="refused"):
        next(responses)
    assert not any(engine._jobs.values()) and engine.device.scheduler.queued_items == 0
    engine.close()


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


def slow_to_encode(engine: Engine, seconds: float) -> list[int]:
    """-> how many inputs were encoded at a time, as it goes on."""
    encode, parts = engine._tokenizer.encode, list[int]()

    def slowly(inputs: Any, *args: Any, **options: Any) -> Any:
        parts.append(len(inputs))
        time.sleep(seconds)
        return encode(inputs, *args, **options)

    engine._tokenizer.encode = slowly  # type: ignore[method-assign]
    return parts


def test_close_keeps_its_time_though_much_is_not_tokenised_yet(runtime: FakeRuntime) -> None:
    engine = make_engine(runtime)
    slow_to_encode(engine, 0.05)
    waiting = [Future[Response]() for _ in range(4)]
    for future in waiting:
        engine.submit(ask(*["x" * 30] * 2000), future)
    started = time.monotonic()
    engine.close(0.1)
    assert time.monotonic() - started < 0.5
    for future in waiting:
        with pytest.raises(NotReady, match="shut down"):
            future.result(0)


def test_nobody_waits_for_all_that_others_have_tokenised(engine: Engine) -> None:
    """Interactive requests go first, and a bulk request takes its turn after a part of those before it."""
    parts = slow_to_encode(engine, 0.01)
    order: list[str] = []

    def note(name: str, request: Request) -> Future[Response]:
        future = Future[Response]()
        future.add_done_callback(lambda _: order.append(name))
        engine.submit(request, future)
        return future

    large = [note(f"large {letter}", ask(*[letter * 30] * 1000)) for letter in "abc"]
    waiting = [*large, note("bulk", ask("x" * 30, "y" * 50)), note("interactive", ask("z" * 40))]
    for future in waiting:
        future.result(10)
    assert set(order[:2]) == {"interactive", "bulk"}
    assert max(parts) == 64


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


def test_timings_add_up(engine: Engine) -> None:
    timings = engine.run_sync(ask("abc")).timings
    assert timings.total == pytest.approx(timings.tokenize + timings.queue + timings.compute, abs=1e-3)
    assert all(value >= 0 for value in (timings.tokenize, timings.queue, timings.compute))


def test_metrics(engine: Engine) -> None:
    engine.run_sync(ask("abc", "x" * 61))
    text = engine.metrics.render().decode()
    assert "rtp_llm_tokens_total 64.0" in text and "rtp_llm_truncated_inputs_total 1.0" in text
    assert 'rtp_llm_model_info{backend="fake"' in text


def test_results_do_not_depend_on_neighbours(engine: Engine) -> None:
    alone = engine.run_sync(ask("abc")).outputs[TaskType.DENSE][0]
    among = engine.run_sync(ask("zz", "abc", "y")).outputs[TaskType.DENSE][1]
    assert np.array_equal(alone, among)


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


def test_the_answer_has_the_ids_that_were_read(engine: Engine) -> None:
    response = engine.run_sync(ask("ab", [7, 8, 9]))
    assert [ids.tolist() for ids in response.input_ids] == [[97, 98], [7, 8, 9]]


def test_identical_inputs_are_computed_once(engine: Engine, runtime: FakeRuntime) -> None:
    async def together() -> list[Response]:
        runtime.gate.clear()
        busy = [asyncio.ensure_future(engine.run(ask(letter))) for letter in "xy"]
        await asyncio.sleep(0.05)
        asked = [asyncio.ensure_future(engine.run(ask("abc", dimensions=n))) for n in (1, 2, 3)]
        await asyncio.sleep(0.05)
        runtime.gate.set()
        return (await asyncio.gather(*busy, *asked))[2:]

    first, *others = (response.outputs[TaskType.DENSE] for response in asyncio.run(together()))
    engine.close()  # the step is counted after its answers have gone
    assert sum(runtime.batches) == 3 and "duplicate_inputs_total 2.0" in engine.metrics.render().decode()
    assert [len(rows[0]) for rows in others] == [2, 3] and all(rows[0, 0] == first[0, 0] for rows in others)
    assert not np.shares_memory(*others)


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


@pytest.mark.parametrize("result_cache_mb", [0, 1])
def test_what_would_be_too_late_is_refused_unless_it_may_be_there_already(result_cache_mb: int) -> None:
    runtime = FakeRuntime(seconds=0.05)
    engine = make_engine(runtime, result_cache_mb=result_cache_mb)

    async def wait() -> Any:
        await engine.run(ask("a" * 9))  # a rate is known
        runtime.gate.clear()
        waiting = [asyncio.ensure_future(engine.run(ask(letter * 50))) for letter in "bcdefghijk"]
        await asyncio.sleep(0.05)
        asyncio.get_running_loop().call_later(0.2, runtime.gate.set)
        late = engine.run(Request(inputs=["late"], deadline=time.monotonic() + 0.1))
        return (await asyncio.gather(late, *waiting, return_exceptions=True))[0]

    try:
        assert type(asyncio.run(wait())) is (DeadlineExceeded if result_cache_mb else Overloaded)
        is_told = 'refused_requests_total{lane="interactive"' in engine.metrics.render().decode()
        assert is_told is not bool(result_cache_mb)
    finally:
        engine.close()


def test_the_lane_says_who_goes_first(engine: Engine, runtime: FakeRuntime) -> None:
    order: list[str] = []

    async def ask_in(priority: Any, text: str) -> None:
        await engine.run(Request(inputs=[text], priority=priority))
        order.append(priority)

    async def together() -> None:
        runtime.gate.clear()
        busy = [asyncio.ensure_future(engine.run(ask(letter))) for letter in "xy"]
        await asyncio.sleep(0.03)
        tasks = [asyncio.ensure_future(ask_in("bulk", letter * 50)) for letter in "abcdef"]
        await asyncio.sleep(0.03)
        tasks.append(asyncio.ensure_future(ask_in("interactive", "g")))
        await asyncio.sleep(0.03)
        runtime.seconds = 0.01
        runtime.gate.set()
        await asyncio.gather(*busy, *tasks)

    asyncio.run(together())
    assert order.index("interactive") <= 1


def test_no_request_is_counted_when_all_is_answered(engine: Engine) -> None:
    engine.run_sync(ask("abc", *["x" * 30 + chr(65 + i) for i in range(20)]))
    with pytest.raises(EngineFailure):
        engine.run_sync(ask("break", "x" * 100))
    text = engine.metrics.render().decode()
    for name in ("requests_in_flight", "queued_tokens", "queued_inputs"):
        assert f'rtp_llm_{name}{{lane="bulk"}} 0.0' in text and f'rtp_llm_{name}{{lane="interactive"}} 0.0' in text


def test_a_caller_that_asks_again_at_once_is_not_one_too_many(runtime: FakeRuntime) -> None:
    """Whoever has an answer may ask the next: the request that is answered is in flight no more."""
    engine = make_engine(runtime, max_bulk_requests=1)

    async def one_after_another() -> None:
        for number in range(500):
            await engine.run(Request(inputs=[[number + 20]], priority="bulk"))

    try:
        asyncio.run(one_after_another())
    finally:
        engine.close()


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
