"""The engine with a fake runtime: order, batching, limits, lanes, what an answer holds."""

import asyncio
import time
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import Request, Response, TaskType
from rtp_llm.engine.engine import Engine
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
from tests.engine.fakes import FakeRuntime, ask, lengths, make_engine, slow_to_encode


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
