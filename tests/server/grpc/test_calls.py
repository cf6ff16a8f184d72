"""What every RPC has: its status, id, metadata and limits; streams in order; cancelling frees the engine."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest

from rtp_llm.config import ServerConfig
from rtp_llm.core import Response, TaskType
from rtp_llm.errors import (
    DeadlineExceeded,
    EngineFailure,
    InvalidRequest,
    NotReady,
    Overloaded,
    RequestTooLarge,
    UnsupportedTask,
)
from rtp_llm.server.grpc.calls import WINDOW
from rtp_llm.server.grpc.tei import INFERENCES
from rtp_llm.server.tei.frame import COMPUTE_TYPE
from rtp_llm.server.tei.scores import PREDICT, PredictBody
from tests.server.conftest import MAX_BODY_BYTES, wait_until
from tests.server.fake_engine import FakeEngine, FakePart, vector_of
from tests.server.grpc.conftest import Client, Loop, Stubs, connected, serving

grpc: Any = pytest.importorskip("grpc")
Code = grpc.StatusCode


def status_of(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The error that a call ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        answer = call(*arguments, timeout=20, **options)
        list(answer) if hasattr(answer, "__next__") else None
    return caught.value


def test_vector_and_metadata(fake: Client, stubs: Stubs, engine: FakeEngine) -> None:
    request = stubs.messages.EmbedRequest(inputs="three words here")
    answer, call = fake.embed.Embed.with_call(request, metadata=[("x-request-id", "abc-1")], timeout=20)
    np.testing.assert_array_equal(np.float32(answer.embeddings), vector_of("three words here"))
    metadata = answer.metadata
    assert (metadata.compute_chars, metadata.compute_tokens, metadata.queue_time_ns) == (16, 5, 2_000_000)
    headers = dict(call.initial_metadata())
    assert (headers["x-request-id"], headers["x-compute-tokens"], headers["x-inference-time"]) == ("abc-1", "5", "3")
    assert engine.requests[0].request_id == "abc-1"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequest("no"), Code.INVALID_ARGUMENT),
        (RequestTooLarge("no"), Code.INVALID_ARGUMENT),
        (UnsupportedTask("no"), Code.FAILED_PRECONDITION),
        (EngineFailure("no"), Code.FAILED_PRECONDITION),
        (Overloaded("no"), Code.RESOURCE_EXHAUSTED),
        (NotReady("no"), Code.UNAVAILABLE),
        (DeadlineExceeded("no"), Code.DEADLINE_EXCEEDED),
    ],
)
def test_engine_errors(fake: Client, stubs: Stubs, engine: FakeEngine, error: Exception, code: Any) -> None:
    engine.error = error
    caught = status_of(fake.embed.Embed, stubs.messages.EmbedRequest(inputs="a"))
    assert (caught.code(), caught.details()) == (code, "no")


def test_retry_pushback(fake: Client, stubs: Stubs, engine: FakeEngine) -> None:
    engine.error = Overloaded("full", retry_after=1.5)
    caught = status_of(fake.embed.Embed, stubs.messages.EmbedRequest(inputs="a"))
    assert dict(caught.trailing_metadata())["grpc-retry-pushback-ms"] == "1500"


@pytest.mark.parametrize("method", ["Embed", "EmbedStream"])
def test_unforeseen_error_tells_nothing(
    fake: Client, stubs: Stubs, engine: FakeEngine, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    engine.error = OSError("/secret/path")
    request: Any = stubs.messages.EmbedRequest(inputs="a")
    caught = status_of(
        getattr(fake.embed, method), iter([request]) if "Stream" in method else request,
        metadata=[("x-request-id", "look-me-up")],
    )  # fmt: skip
    assert caught.code() is Code.INTERNAL
    assert "look-me-up" in caught.details() and "secret" not in caught.details()
    assert any("look-me-up" in record.getMessage() and record.exc_info for record in caplog.records)


@pytest.mark.parametrize("body", [b"\x0a\x02\xff\xfe", b"\x0a\x7f", b"\xff" * 9, b'{"inputs": "a"}'])
def test_bytes_that_are_no_message(fake: Client, body: bytes) -> None:
    caught = status_of(fake.channel.unary_unary("/tei.v1.Embed/Embed"), body)
    assert (caught.code(), "EmbedRequest" in caught.details()) == (Code.INVALID_ARGUMENT, True)


@pytest.mark.parametrize(
    ("service", "method", "message", "fields", "words"),
    [
        ("embed", "Embed", "EmbedRequest", {}, "inputs is empty"),
        ("embed", "Embed", "EmbedRequest", {"inputs": "a", "prompt_name": "x"}, "not one of query, passage"),
        ("predict", "PredictPair", "PredictPairRequest", {"inputs": ["a"]}, "a pair is two texts, there are 1"),
        ("rerank", "Rerank", "RerankRequest", {"query": "a"}, "texts is empty"),
        ("rerank", "Rerank", "RerankRequest", {"query": "a", "texts": ["b"] * 201}, "limit of 200"),
        ("tokenize", "Decode", "DecodeRequest", {}, "ids is empty"),
    ],
)
def test_bad_messages(
    fake: Client, stubs: Stubs, service: str, method: str, message: str, fields: dict[str, Any], words: str
) -> None:
    caught = status_of(getattr(getattr(fake, service), method), getattr(stubs.messages, message)(**fields))
    assert (caught.code(), words in caught.details()) == (Code.INVALID_ARGUMENT, True), caught.details()


def test_long_details_are_cut(fake: Client, stubs: Stubs, engine: FakeEngine) -> None:
    engine.error = InvalidRequest("🦜" * 5000)
    assert len(status_of(fake.embed.Embed, stubs.messages.EmbedRequest(inputs="a")).details()) == 400


def test_message_over_the_limit(fake: Client, stubs: Stubs) -> None:
    caught = status_of(fake.embed.Embed, stubs.messages.EmbedRequest(inputs="a" * MAX_BODY_BYTES))
    assert caught.code() is Code.RESOURCE_EXHAUSTED


def test_text_over_the_limit(loop: Loop, config: ServerConfig, stubs: Stubs) -> None:
    with (
        serving(loop, FakeEngine(), replace(config, max_input_characters=10)) as address,
        connected(address, stubs) as client,
    ):
        messages = stubs.messages
        assert len(client.embed.Embed(messages.EmbedRequest(inputs="a" * 10)).embeddings)
        caught = status_of(client.embed.Embed, messages.EmbedRequest(inputs="a" * 11))
        assert (caught.code(), "max_input_characters" in caught.details()) == (Code.INVALID_ARGUMENT, True)


def test_unknown_method(fake: Client) -> None:
    assert status_of(fake.channel.unary_unary("/tei.v1.Embed/No"), b"").code() is Code.UNIMPLEMENTED


def test_stream_keeps_order(fake: Client, stubs: Stubs, engine: FakeEngine) -> None:
    engine.delay = 0.001
    texts = [f"text {number}" for number in range(3 * WINDOW)]
    answers = fake.embed.EmbedStream((stubs.messages.EmbedRequest(inputs=text) for text in texts), timeout=20)
    for text, answer in zip(texts, answers, strict=True):
        np.testing.assert_array_equal(np.float32(answer.embeddings), vector_of(text))


def test_stream_waits_where_a_single_call_is_refused(fake: Client, stubs: Stubs, engine: FakeEngine) -> None:
    engine.delay = 0.3
    request = stubs.messages.EmbedRequest(inputs="a")
    with ThreadPoolExecutor(1) as pool:
        streamed = pool.submit(lambda: list(fake.embed.EmbedStream(itertools.repeat(request, 8), timeout=20)))
        wait_until(lambda: engine.running == 4)
        long = stubs.messages.EncodeRequest(inputs="a" * 3000)
        for refused in (status_of(fake.embed.Embed, request), status_of(fake.tokenize.Tokenize, long)):
            assert refused.code() is Code.RESOURCE_EXHAUSTED
            assert refused.details().startswith("4 requests are in flight, the most allowed (concurrency_limit)")
            assert dict(refused.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"
        assert len(fake.tokenize.Tokenize(stubs.messages.EncodeRequest(inputs="a"), timeout=20).tokens) == 1
        engine.delay = 0
        assert len(list(fake.tokenize.TokenizeStream(iter([long] * 2), timeout=20))) == 2
        assert len(streamed.result()) == 8


def test_stream_comes_back_to_a_full_queue(fake: Client, stubs: Stubs, engine: FakeEngine) -> None:
    engine.error = Overloaded("full", retry_after=0.01)
    with ThreadPoolExecutor(1) as pool:
        request = stubs.messages.EmbedRequest(inputs="a")
        streamed = pool.submit(lambda: list(fake.embed.EmbedStream(iter([request]), timeout=20)))
        wait_until(lambda: len(engine.requests) > 2)
        engine.error = None
        assert len(streamed.result()) == 1


def test_stream_bounds_what_is_in_flight(loop: Loop, config: ServerConfig, stubs: Stubs) -> None:
    engine, sent = FakeEngine(), itertools.count()
    engine.delay = 60
    with (
        serving(loop, engine, replace(config, concurrency_limit=1000)) as address,
        connected(address, stubs) as client,
    ):
        text = "a" * 10_000  # so large that the channel's own buffers do not hold many
        requests = (stubs.messages.EmbedRequest(inputs=f"{next(sent)} {text}") for _ in range(10_000))
        call = client.embed.EmbedStream(requests, timeout=20)
        wait_until(lambda: engine.running == WINDOW)
        threading.Event().wait(0.1)
        assert engine.running == WINDOW and next(sent) < 1000
        call.cancel()
        wait_until(lambda: engine.running == 0)


def test_an_error_ends_its_stream_after_the_answers_before_it(fake: Client, stubs: Stubs) -> None:
    requests = [stubs.messages.EmbedRequest(inputs=text) for text in ("a", "b", "", "c")]
    answers = fake.embed.EmbedStream(iter(requests), timeout=20)
    assert [len(next(answers).embeddings), len(next(answers).embeddings)] == [8, 8]
    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    assert caught.value.code() is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("method", ["Embed", "EmbedStream"])
def test_cancelling_frees_the_engine(fake: Client, stubs: Stubs, engine: FakeEngine, method: str) -> None:
    engine.delay = 60
    request = stubs.messages.EmbedRequest(inputs="a")
    call = fake.embed.Embed.future(request) if method == "Embed" else fake.embed.EmbedStream(iter([request] * 3))
    wait_until(lambda: engine.running == (1 if method == "Embed" else 3))
    call.cancel()
    wait_until(lambda: engine.running == 0 and engine.cancelled in (1, 3))


def test_a_callers_deadline_frees_the_engine(fake: Client, stubs: Stubs, engine: FakeEngine) -> None:
    engine.delay = 60
    with pytest.raises(grpc.RpcError) as caught:
        fake.embed.Embed(stubs.messages.EmbedRequest(inputs="a"), timeout=0.1)
    assert caught.value.code() is Code.DEADLINE_EXCEEDED
    wait_until(lambda: engine.running == 0 and engine.cancelled == 1)


def test_request_timeout(loop: Loop, config: ServerConfig, stubs: Stubs) -> None:
    engine = FakeEngine()
    engine.delay = 60
    with serving(loop, engine, replace(config, request_timeout=1)) as address, connected(address, stubs) as client:
        caught = status_of(client.embed.Embed, stubs.messages.EmbedRequest(inputs="a"))
    assert (caught.code(), "request_timeout" in caught.details()) == (Code.DEADLINE_EXCEEDED, True)
    assert engine.cancelled == 1


def test_metrics(fake: Client, stubs: Stubs, engine: FakeEngine) -> None:
    def count(status: int) -> float:
        labels = {"route": "/tei.v1.Embed/Embed", "status": str(status), "model": ""}
        return engine.metrics.registry.get_sample_value("rtp_llm_requests_total", labels) or 0

    before = count(200), count(400)
    fake.embed.Embed(stubs.messages.EmbedRequest(inputs="a"))
    status_of(fake.embed.Embed, stubs.messages.EmbedRequest())
    wait_until(lambda: (count(200), count(400)) == (before[0] + 1, before[1] + 1))


def test_tokens_in_bytes_and_back(fake: Client, stubs: Stubs) -> None:
    request = stubs.messages.EncodeRequest(inputs="aé🦜", add_special_tokens=True, prompt_name="query")
    tokens = fake.tokenize.Tokenize(request).tokens
    assert [tokens[0].text, tokens[0].special, tokens[0].HasField("start")] == ["[CLS]", True, False]
    assert [(token.text, token.start, token.stop) for token in tokens[8:-1]] == [
        ("a", 7, 8),
        ("é", 8, 10),
        ("🦜", 10, 14),
    ]
    assert not any(token.special for token in fake.tokenize.Tokenize(stubs.messages.EncodeRequest(inputs="ab")).tokens)
    ids = [token.id for token in tokens]
    assert fake.tokenize.Decode(stubs.messages.DecodeRequest(ids=ids, skip_special_tokens=True)).text == "query: aé🦜"
    streamed = fake.tokenize.DecodeStream(
        iter([stubs.messages.DecodeRequest(ids=[97]), stubs.messages.DecodeRequest(ids=[98])])
    )
    assert [answer.text for answer in streamed] == ["a", "b"]


def test_a_long_text_in_parts(fake: Client, stubs: Stubs, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offsets go on in bytes; a deadline ends the work between two parts, and others are answered meanwhile."""
    text, whole, made = "aé🦜" * 1200, engine.token_parts, list[int]()

    def in_parts(text: str, *, add_special_tokens: bool = True) -> Iterator[FakePart]:
        (one,) = whole(text, add_special_tokens=False)
        for start in range(0, len(text), 300):
            made.append(start)
            time.sleep(engine.delay)
            yield FakePart(start, start + 300, one.tokens[start : start + 300])

    monkeypatch.setattr(engine, "token_parts", in_parts)
    request = stubs.messages.EncodeRequest(inputs=text)
    tokens, encoded = fake.tokenize.Tokenize(request).tokens, text.encode()
    assert len(tokens) == len(text) and len(made) == 12
    assert all(encoded[token.start : token.stop].decode() == token.text for token in tokens)
    engine.delay = 0.2
    made.clear()
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(status_of, fake.tokenize.Tokenize, request, metadata=[("x-request-timeout", "0.5")])
        wait_until(lambda: len(made) == 1)
        assert len(fake.tokenize.Decode(stubs.messages.DecodeRequest(ids=[97])).text) == 1 and not late.done()
        assert late.result().code() is Code.DEADLINE_EXCEEDED
    assert len(made) < 12


def test_info(fake: Client, stubs: Stubs, config: ServerConfig) -> None:
    info = fake.info.Info(stubs.messages.InfoRequest())
    assert (info.model_id, info.model_dtype, info.max_input_length) == ("fake/model", "float32", 16)
    assert (info.max_concurrent_requests, info.max_client_batch_size) == (4, 200)
    assert not info.HasField("sha") and info.model_type == stubs.messages.MODEL_TYPE_EMBEDDING


def watched(client: Client) -> Iterator[int]:
    health_pb2: Any = pytest.importorskip("grpc_health.v1.health_pb2")
    health_grpc: Any = pytest.importorskip("grpc_health.v1.health_pb2_grpc")
    for answer in health_grpc.HealthStub(client.channel).Watch(health_pb2.HealthCheckRequest(), timeout=20):
        yield answer.status


def test_health(fake: Client, engine: FakeEngine) -> None:
    health_pb2: Any = pytest.importorskip("grpc_health.v1.health_pb2")
    health_grpc: Any = pytest.importorskip("grpc_health.v1.health_pb2_grpc")
    check, serving = health_grpc.HealthStub(fake.channel).Check, health_pb2.HealthCheckResponse.SERVING
    names = ("", "tei.v1.Embed", "tei.v1.Info", "tei.v1.Rerank", "grpc.health.v1.Health")
    answers = {name: check(health_pb2.HealthCheckRequest(service=name)).status == serving for name in names}
    assert answers == {**dict.fromkeys(names, True), "tei.v1.Rerank": False}
    assert status_of(check, health_pb2.HealthCheckRequest(service="x")).code() is Code.NOT_FOUND
    statuses = watched(fake)
    assert next(statuses) == serving
    engine.not_ready = "dead"
    assert next(statuses) == health_pb2.HealthCheckResponse.NOT_SERVING
    assert check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    statuses.close()  # type: ignore[attr-defined]


def test_deadline_and_priority_reach_the_engine(fake: Client, stubs: Stubs, engine: FakeEngine) -> None:
    """A client's own deadline, or x-request-timeout where that is sooner, as over HTTP."""
    request = stubs.messages.EmbedRequest(inputs="a")
    fake.embed.Embed(request, timeout=20, metadata=[("x-priority", "bulk")])
    fake.embed.Embed(request, timeout=20, metadata=[("x-request-timeout", "3")])
    fake.embed.Embed(request)
    list(fake.embed.EmbedStream(iter([request] * 2), timeout=20, metadata=[("x-priority", "interactive")]))
    left = [sent.deadline - time.monotonic() for sent in engine.requests]
    assert 0 < left[0] <= 21 and 0 < left[1] <= 3 and left[2] > 20 and left[3] == pytest.approx(left[4], abs=1e-3)
    priorities = [sent.priority for sent in engine.requests]
    assert priorities == ["bulk", "auto", "auto", "interactive", "interactive"]


def test_unknown_priority_and_timeout(fake: Client, stubs: Stubs) -> None:
    request = stubs.messages.EmbedRequest(inputs="a")
    cases = (
        (("x-priority", "high"), "not one of auto"),
        (("x-request-timeout", "x"), "not a number"),
        (("x-request-timeout", "0"), "'0' is not above 0; give seconds, at most 600 (request_timeout)"),
    )
    for metadata, words in cases:
        caught = status_of(fake.embed.Embed, request, metadata=[metadata])
        assert (caught.code(), words in caught.details()) == (Code.INVALID_ARGUMENT, True)


def test_an_expired_request_timeout(fake: Client, stubs: Stubs, engine: FakeEngine) -> None:
    engine.delay = 5
    caught = status_of(
        fake.embed.Embed, stubs.messages.EmbedRequest(inputs="a"), metadata=[("x-request-timeout", ".1")]
    )
    assert (caught.code(), "not ready after 0.1 seconds" in caught.details()) == (Code.DEADLINE_EXCEEDED, True)
    assert engine.cancelled == 1


def test_equal_scores_and_headers_are_those_of_http(fake: Client, stubs: Stubs, engine: FakeEngine) -> None:
    info = replace(engine.info(), labels=("a", "b", "c"))
    rows = np.array([[0.25, 0.5, 0.25]], np.float32)
    response = Response(outputs={TaskType.CLASSIFY: rows}, num_tokens=[1], truncated=[False])
    answer = INFERENCES["Predict/Predict"].render(None, response, info)
    http = orjson.loads(next(iter(PREDICT.render(PredictBody(inputs="x"), response, info))))
    assert [value.label for value in answer.predictions] == [value["label"] for value in http] == ["b", "c", "a"]
    _, call = fake.embed.Embed.with_call(stubs.messages.EmbedRequest(inputs="a"), timeout=20)
    assert dict(call.initial_metadata())["x-compute-type"] == COMPUTE_TYPE


@pytest.mark.parametrize(("dimensions", "code"), [(0, Code.INVALID_ARGUMENT), (9, Code.INVALID_ARGUMENT), (8, None)])
def test_dimensions_as_over_http(fake: Client, stubs: Stubs, dimensions: int, code: Any) -> None:
    """0 that was sent is an error, as on TEI's /embed; left out, it is the model's own."""
    request = stubs.messages.EmbedRequest(inputs="a", dimensions=dimensions)
    if code is None:
        assert len(fake.embed.Embed(request, timeout=20).embeddings) == dimensions
        return
    caught = status_of(fake.embed.Embed, request)
    assert caught.code() is code and "is not between 1 and 8, the model's own" in caught.details()
