"""What was cut at the limit is told at the end of a call, in its trailing metadata: messages have no field for it."""

from typing import Any

import pytest

from rtp_llm.config import ServerConfig
from rtp_llm.core import TaskType
from tests.server.fake_engine import MAX_SEQ_LEN, FakeEngine
from tests.server.grpc.conftest import Client, Loop, Stubs, connected, serving

grpc: Any = pytest.importorskip("grpc")

SHORT, LONG = "a", "b " * MAX_SEQ_LEN


def told(call: Any) -> str | None:
    return dict(call.trailing_metadata()).get("x-truncated")


@pytest.mark.parametrize(("text", "expected"), [(SHORT, None), (LONG, "0")])
def test_of_a_call(fake: Client, stubs: Stubs, text: str, expected: str | None) -> None:
    _, call = fake.embed.Embed.with_call(stubs.messages.EmbedRequest(inputs=text, truncate=True), timeout=20)
    assert told(call) == expected


def test_of_a_rerank(loop: Loop, config: ServerConfig, stubs: Stubs) -> None:
    messages = stubs.messages
    pairs = [messages.RerankStreamRequest(query=SHORT, text=text, truncate=True) for text in (SHORT, LONG)]
    with serving(loop, FakeEngine(tasks=(TaskType.COLBERT,)), config) as address, connected(address, stubs) as client:
        request = messages.RerankRequest(query=LONG, texts=[SHORT, LONG], truncate=True)
        _, call = client.rerank.Rerank.with_call(request, timeout=20)
        assert told(call) == "query,texts[1]"
        _, call = client.rerank.RerankStream.with_call(iter(pairs), timeout=20)
        assert told(call) == "1"


def test_of_a_stream_by_the_numbers_of_its_messages(fake: Client, stubs: Stubs) -> None:
    texts = [LONG, SHORT, LONG]
    requests = (stubs.messages.EmbedRequest(inputs=text, truncate=True) for text in texts)
    call = fake.embed.EmbedStream(requests, timeout=20)
    assert len(list(call)) == 3 and told(call) == "0,2"


def test_of_a_stream_that_fails(fake: Client, stubs: Stubs) -> None:
    """The answers before the failure have been sent."""
    call = fake.embed.EmbedStream(
        (stubs.messages.EmbedRequest(inputs=text, truncate=True) for text in (LONG, "", LONG)), timeout=20
    )
    with pytest.raises(grpc.RpcError, match="inputs is empty"):
        list(call)
    assert told(call) == "0"


def test_of_a_long_stream_as_many_as_fit(fake: Client, stubs: Stubs) -> None:
    request = stubs.messages.EmbedRequest(inputs=LONG, truncate=True)
    call = fake.embed.EmbedStream((request for _ in range(700)), timeout=60)
    assert len(list(call)) == 700
    places = (told(call) or "").split(",")
    assert places[:2] == ["0", "1"] and places[-1] == "..." and 400 < len(places) < 700
