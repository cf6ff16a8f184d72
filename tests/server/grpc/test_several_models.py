"""Several models over gRPC: by metadata x-model, or the first that does what the RPC asks."""

from collections.abc import Iterator
from typing import Any

import pytest

from rtp_llm.core import TaskType
from tests.server.conftest import CONFIG
from tests.server.fake_engine import FakeEngine
from tests.server.grpc.conftest import Client, Loop, Stubs, connected, serving

grpc: Any = pytest.importorskip("grpc")


@pytest.fixture
def engines() -> list[FakeEngine]:
    kinds = {"first": TaskType.DENSE, "ranker": TaskType.RERANK, "labels": TaskType.CLASSIFY, "second": TaskType.DENSE}
    return [FakeEngine(name=name, tasks=(task,), labels=("no", "yes")) for name, task in kinds.items()]


@pytest.fixture
def client(loop: Loop, stubs: Stubs, engines: list[FakeEngine]) -> Iterator[Client]:
    with serving(loop, engines[0], CONFIG, *engines[1:]) as address, connected(address, stubs) as client:
        yield client


def asked(engines: list[FakeEngine]) -> list[str]:
    return [engine.info().name for engine in engines if engine.requests]


def test_the_first_that_can(client: Client, stubs: Stubs, engines: list[FakeEngine]) -> None:
    client.embed.Embed(stubs.messages.EmbedRequest(inputs="a"), timeout=20)
    assert asked(engines) == ["first"]
    client.rerank.Rerank(stubs.messages.RerankRequest(query="q", texts=["a", "b"]), timeout=20)
    assert asked(engines) == ["first", "ranker"]
    client.predict.Predict(stubs.messages.PredictRequest(inputs="a"), timeout=20)
    assert asked(engines) == ["first", "ranker", "labels"]
    pairs = iter([stubs.messages.RerankStreamRequest(query="q", text="a")])
    assert len(client.rerank.RerankStream(pairs, timeout=20).ranks) == 1 and len(engines[1].requests) == 2


def test_by_name(client: Client, stubs: Stubs, engines: list[FakeEngine]) -> None:
    named = {"metadata": [("x-model", "second")], "timeout": 20}
    client.embed.Embed(stubs.messages.EmbedRequest(inputs="a"), **named)
    list(client.embed.EmbedStream(iter([stubs.messages.EmbedRequest(inputs="b")]), **named))
    assert asked(engines) == ["second"] and len(engines[3].requests) == 2
    assert client.info.Info(stubs.messages.InfoRequest(), **named).model_id == "second"
    assert client.info.Info(stubs.messages.InfoRequest(), timeout=20).model_id == "first"


def test_an_unknown_name(client: Client, stubs: Stubs) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client.embed.Embed(stubs.messages.EmbedRequest(inputs="a"), metadata=[("x-model", "nobody")], timeout=20)
    error: Any = caught.value
    assert error.code() == grpc.StatusCode.NOT_FOUND and "serves 'first', 'ranker'" in error.details()


def test_what_no_model_does(client: Client, stubs: Stubs) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client.embed.EmbedSparse(stubs.messages.EmbedSparseRequest(inputs="a"), timeout=20)
    error: Any = caught.value
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION and "ranker: rerank" in error.details()
