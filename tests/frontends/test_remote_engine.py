"""An engine behind a pair of sockets answers, refuses, counts and forgets as it does without them."""

import asyncio
import gc
import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import Params, Request, TaskType, Whole
from rtp_llm.engine.engine import Engine
from rtp_llm.errors import DeadlineExceeded, EngineFailure, InvalidRequest, NotReady, Overloaded, RtpError
from tests.engine.fakes import FakeRuntime, ask, lengths, make_engine
from tests.frontends.conftest import linked, on_loop, until


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def engine(runtime: FakeRuntime) -> Iterator[Engine]:
    engine = make_engine(runtime)
    engine.warm_up()
    yield engine
    runtime.gate.set()
    engine.close()


def test_answers_are_the_engines_own(engine: Engine) -> None:
    """What is small, or one thread's turn, is tokenised before it is sent; what is large, there."""
    small, middling = ask("a", "abc", [1, 2, 3, 4]), ask(*["abc"] * 20)
    large = ask(*["ab" * n for n in range(1, 30)])

    async def run() -> None:
        async with linked(engine) as both:
            for request in (small, middling):
                assert await both.remote._tokenized(request) is not None
            assert await both.remote._tokenized(large) is None
            for request in (small, middling, large):
                own, far = await engine.run(request), await both.remote.run(request)
                assert np.array_equal(own.outputs[TaskType.DENSE], far.outputs[TaskType.DENSE])
                assert (own.num_tokens, own.truncated) == (far.num_tokens, far.truncated)
                assert all(map(np.array_equal, own.input_ids, far.input_ids))

    on_loop(run())


def test_many_at_once_are_packed_together(engine: Engine, runtime: FakeRuntime) -> None:
    async def run() -> None:
        async with linked(engine) as both:
            runtime.batches.clear()
            answers = await asyncio.gather(*(both.remote.run(ask("x" * (1 + n % 9))) for n in range(200)))
            assert [lengths(answer) for answer in answers] == [[1 + n % 9] for n in range(200)]

    on_loop(run())
    assert len(runtime.batches) < 100


def test_times_count_from_the_front_end_on(engine: Engine) -> None:
    async def run() -> None:
        async with linked(engine) as both:
            before = time.perf_counter()
            timings = (await both.remote.run(ask("abc"))).timings
            assert before <= timings.started_at <= time.perf_counter()
            assert 0 < timings.tokenize < timings.total
            assert math.isclose(timings.tokenize + timings.queue + timings.compute, timings.total)

    on_loop(run())


@pytest.mark.parametrize(
    "request_",
    [
        ask("refuse"),
        ask("break"),
        ask(*["refuse"] * 40),
        ask("a", dimensions=99),
        ask(),
        ask("a", [13]),
        ask("a", [14]),
        Request(inputs=["a"], tasks=(TaskType.SPARSE,)),
        Request(inputs=["a"], deadline=0.0),
    ],
    ids=["refused", "broken", "large", "dimensions", "empty", "unlucky", "nan", "task", "late"],
)
def test_errors_are_the_engines_own(engine: Engine, request_: Request) -> None:
    async def error_of(one: Any) -> BaseException:
        with pytest.raises(Exception) as raised:
            await one.run(request_)
        return raised.value

    async def run() -> None:
        async with linked(engine) as both:
            own, far = await error_of(engine), await error_of(both.remote)
        if isinstance(own, RtpError):
            assert (type(own), own.__dict__) == (type(far), far.__dict__)
        else:  # the unforeseen is logged where it happens
            assert isinstance(far, EngineFailure)

    on_loop(run())


def test_a_refusal_says_when_to_come_back(runtime: FakeRuntime) -> None:
    engine = make_engine(runtime, max_queued_tokens=1024, max_bulk_requests=1)
    engine.warm_up()
    bulk = Request(inputs=["abc"] * 20, priority="bulk")

    async def run() -> None:
        runtime.gate.clear()
        async with linked(engine) as both:
            first = asyncio.ensure_future(both.remote.run(bulk))
            await until(lambda: engine.metrics.waiting().requests == 1)
            with pytest.raises(Overloaded, match="max_bulk_requests"):
                await both.remote.run(bulk)
            assert await both.remote.waiting() == engine.metrics.waiting()
            runtime.gate.set()
            assert lengths(await first) == [3] * 20
            await both.link.exposition()
            assert both.value("refused_requests_total", lane="bulk") == 1

    on_loop(run())
    engine.close()


def test_who_leaves_takes_its_work_along(engine: Engine, runtime: FakeRuntime) -> None:
    async def run() -> None:
        async with linked(engine) as both:
            runtime.gate.clear()
            tasks = [asyncio.ensure_future(both.remote.run(ask("abc"))) for _ in range(50)]
            await until(lambda: engine.metrics.waiting().requests == 50)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await until(lambda: engine.metrics.waiting().requests == 0)
            assert both.value("cancelled_requests_total") == 50
            runtime.gate.set()
            assert lengths(await both.remote.run(ask("abcd"))) == [4]

    on_loop(run())


def test_who_leaves_while_it_is_tokenised_is_counted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()

    def read(*arguments: Any) -> Any:
        assert go.wait(60)
        return []

    async def run() -> None:
        async with linked(engine) as both:
            monkeypatch.setattr(both.remote._tokenizer, "read", read)
            for deadline in (math.inf, 0.0):
                request = Request(inputs=["abc"] * 20, deadline=deadline)
                task = asyncio.ensure_future(both.remote.run(request))
                await asyncio.sleep(0.01)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            go.set()
            await both.link.exposition()
            assert both.value("cancelled_requests_total") == both.value("expired_requests_total") == 1

    on_loop(run())


def test_who_leaves_is_not_worked_for_any_more(engine: Engine, runtime: FakeRuntime) -> None:
    """Whoever makes entities of rows that are computed already looks at the future."""

    async def run() -> None:
        async with linked(engine) as both:
            runtime.gate.clear()
            tasks = [asyncio.ensure_future(both.remote.run(ask(text))) for text in ("abc", "abcd")]
            await until(lambda: engine.metrics.waiting().requests == 2)
            left, lost = [job for _, job in both.desk._jobs.values()]
            tasks[0].cancel()
            await until(lambda: left.future.cancelled())
            assert not lost.future.cancelled()
            assert both.link._channel is not None and both.link._channel._transport is not None
            both.link._channel._transport.abort()
            await until(lambda: lost.future.cancelled())
            await asyncio.gather(*tasks, return_exceptions=True)
            runtime.gate.set()

    on_loop(run())


def test_who_leaves_as_the_answer_comes_is_no_error(engine: Engine) -> None:
    """Between the moment when the answer is there and that in which the one who waits for it goes on."""

    async def run() -> None:
        async with linked(engine) as both:
            channel, tasks = both.link._channel, list[asyncio.Future[Any]]()
            assert channel is not None
            receive = channel._on_message

            def receive_and_leave(message: Any) -> None:
                receive(message)
                tasks.pop().cancel()

            channel._on_message = receive_and_leave
            tasks.append(task := asyncio.ensure_future(both.remote.run(ask("abc"))))
            with pytest.raises(asyncio.CancelledError):
                await task
            channel._on_message = receive
            assert lengths(await both.remote.run(ask("abcd"))) == [4]
            assert both.value("cancelled_requests_total") == 0

    on_loop(run())


def test_a_front_end_that_dies_takes_its_work_along(engine: Engine, runtime: FakeRuntime) -> None:
    async def run() -> None:
        async with linked(engine) as both:
            runtime.gate.clear()
            task = asyncio.ensure_future(both.remote.run(ask("abc")))
            await until(lambda: engine.metrics.waiting().requests == 1)
            assert both.link._channel is not None and both.link._channel._transport is not None
            both.link._channel._transport.abort()
            await until(lambda: engine.metrics.waiting().requests == 0)
            with pytest.raises(NotReady, match="has ended"):
                await task
            runtime.gate.set()

    on_loop(run())


def test_an_engine_that_dies_leaves_nobody_waiting(engine: Engine, runtime: FakeRuntime) -> None:
    async def run() -> None:
        async with linked(engine) as both:
            runtime.gate.clear()
            asked = [asyncio.ensure_future(both.remote.run(ask("abc"))) for _ in range(3)]
            await until(lambda: engine.metrics.waiting().requests == 3)
            both.desk.close()
            for task in asked:
                with pytest.raises(NotReady, match="the engine's process has ended"):
                    await task
            assert both.ends == ["end"]
            for call in (both.remote.run(ask("a")), both.link.exposition(), both.remote.waiting()):
                with pytest.raises(NotReady):
                    await call
            with pytest.raises(NotReady):
                both.remote.check_health()
            runtime.gate.set()

    on_loop(run())


def test_a_deadline_holds_in_the_other_process(engine: Engine, runtime: FakeRuntime) -> None:
    async def run() -> None:
        async with linked(engine) as both:
            runtime.gate.clear()
            blocking = [asyncio.ensure_future(both.remote.run(ask([n] * 60))) for n in range(4)]
            await until(lambda: not engine.device.scheduler.free_cores)
            request = Request(inputs=["abc"], deadline=time.monotonic() + 0.05)
            late = asyncio.ensure_future(both.remote.run(request))
            await asyncio.sleep(0.1)
            runtime.gate.set()
            with pytest.raises(DeadlineExceeded):
                await late
            await asyncio.gather(*blocking)
            assert both.value("expired_requests_total") == 1

    on_loop(run())


def test_health_is_the_engines(engine: Engine) -> None:
    async def run() -> None:
        async with linked(engine) as both:
            await both.link.exposition()
            both.remote.check_health()
            engine.device.failure = "a batch thread has died"
            both.desk.tell_problems()
            both.desk.tell_problems()  # nothing new is not told
            await both.link.exposition()
            with pytest.raises(NotReady, match="a batch thread has died"):
                both.remote.check_health()
            engine.device.failure = None

    on_loop(run())


def test_what_front_ends_count_is_counted_by_the_engine(engine: Engine) -> None:
    async def run() -> None:
        async with linked(engine) as both:
            for _ in range(70):  # some at once, some before the question
                both.remote.metrics.observe_http("/v1/embeddings", 200, 0.01)
            both.remote.metrics.observe_encode(0.001)
            both.link.tell_lines_lost(3)
            text = (await both.link.exposition()).decode()
            assert 'rtp_llm_requests_total{model="fake",route="/v1/embeddings",status="200"} 70.0' in text
            assert both.value("stage_seconds_count", stage="encode") == 1
            both.remote.metrics.observe_http("/v1/embeddings", 200, 0.01)
            await until(lambda: both.value("request_seconds_count", route="/v1/embeddings") == 71)
            await until(lambda: both.lines_lost == [3])

    on_loop(run())


def test_what_has_been_counted_can_be_asked_for(engine: Engine) -> None:
    """Else /metrics, asked of another front-end, would lack what is still to be told."""

    async def run() -> None:
        async with linked(engine) as both:
            both.remote.metrics.observe_http("/v1/embeddings", 200, 0.01)
            await both.desk.catch_up()
            assert both.value("request_seconds_count", route="/v1/embeddings") == 1
            asked = asyncio.ensure_future(both.desk.catch_up())
            await both.link.close()
            await asyncio.wait_for(asked, 10)

    on_loop(run())


def test_metrics_that_cannot_be_read_are_an_error(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> bytes:
        raise OSError("no such device")

    async def run() -> None:
        async with linked(engine) as both:
            both.desk._exposition = fail
            with pytest.raises(EngineFailure, match="the metrics cannot be read"):
                await asyncio.wait_for(both.link.exposition(), 10)

    on_loop(run())
    assert "no such device" in caplog.text


def test_a_front_end_waits_until_it_may_accept(engine: Engine) -> None:
    async def run() -> None:
        for order, may in (("tell_accept", True), ("tell_end", False), ("close", False)):
            async with linked(engine) as both:
                asked = asyncio.ensure_future(both.link.may_accept())
                await until(lambda: both.readies == ["ready"])
                assert not asked.done()
                getattr(both.desk, order)()
                assert await asyncio.wait_for(asked, 10) is may
                both.desk.tell_end()

    on_loop(run())


def test_parts_of_a_whole_are_counted_once(engine: Engine, runtime: FakeRuntime) -> None:
    async def run() -> None:
        async with linked(engine) as both:
            runtime.gate.clear()
            whole = Whole()
            tasks = [asyncio.ensure_future(both.remote.run(Request(inputs=["abc"], whole=whole))) for _ in range(3)]
            await until(lambda: engine.metrics.waiting().requests == 3)
            (known,) = both.desk._wholes.values()
            assert known.has_begun
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await until(lambda: engine.metrics.waiting().requests == 0)
            assert both.value("cancelled_requests_total") == 1
            # One that is given up by the server itself, and not by its client, is counted by nobody.
            other = Whole()
            task = asyncio.ensure_future(both.remote.run(Request(inputs=["abc"], whole=other)))
            await until(lambda: engine.metrics.waiting().requests == 1)
            assert other.end()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await until(lambda: engine.metrics.waiting().requests == 0)
            assert both.value("cancelled_requests_total") == 1
            del whole, other, known, task, tasks
            gc.collect()
            await until(lambda: not both.desk._wholes)
            runtime.gate.set()

    on_loop(run())


def test_an_answer_that_cannot_be_sent_is_a_failure_of_its_own(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def finish(rows: Any, params: Params, ids: Any) -> Any:
        return (lambda: rows) if params.dimensions == 1 else rows

    monkeypatch.setattr(engine.runtime.tasks[TaskType.DENSE], "finish", finish)

    async def run() -> None:
        async with linked(engine) as both:
            good, bad = both.remote.run(ask("ab")), both.remote.run(ask("a", dimensions=1))
            answers = await asyncio.gather(good, bad, return_exceptions=True)
            assert lengths(answers[0]) == [2]  # type: ignore[arg-type]
            assert isinstance(answers[1], EngineFailure) and "cannot be sent" in answers[1].message

    on_loop(run())


class _Refusal(InvalidRequest):
    """As a user's own code may have it, in a module that no other process knows."""

    def __reduce__(self) -> Any:
        raise AssertionError("it is not sent")


def test_an_error_of_a_users_own_class_arrives_as_ours(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def finish(rows: Any, params: Params, ids: Any) -> Any:
        raise _Refusal("tenant: unknown", param="extra.tenant")

    monkeypatch.setattr(engine.runtime.tasks[TaskType.DENSE], "finish", finish)

    async def run() -> None:
        async with linked(engine) as both:
            with pytest.raises(InvalidRequest, match="tenant: unknown") as raised:
                await both.remote.run(ask("ab"))
            assert (type(raised.value), raised.value.param) == (InvalidRequest, "extra.tenant")

    on_loop(run())


def test_several_models(runtime: FakeRuntime) -> None:
    first = make_engine(runtime)
    second = make_engine(FakeRuntime(), beside=first)
    for engine in (first, second):
        engine.warm_up()

    async def run() -> None:
        async with linked(first, second) as both:
            for remote in both.remotes:
                assert lengths(await remote.run(ask("abc"))) == [3]
            with pytest.raises(InvalidRequest):
                await both.remotes[1].run(ask("refuse"))
            text = (await both.link.exposition()).decode()
            assert text.count("# TYPE rtp_llm_tokens_total") == 1

    on_loop(run())
    first.close()
