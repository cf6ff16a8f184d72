"""What observers and metrics are told of a request that fails: whose fault it was, and which model it was for."""

import asyncio
from typing import Any

import httpx
import pytest

from rtp_llm.errors import EngineFailure, Overloaded, UnsupportedTask
from rtp_llm.observability import Seen
from rtp_llm.server.dispatch import Dispatcher
from tests.server.conftest import CONFIG
from tests.server.fake_engine import FakeEngine


class Kept(list[Seen]):
    def observe(self, seen: Seen) -> None:
        self.append(seen)


def named(name: str, error: Exception | None = None) -> FakeEngine:
    engine = FakeEngine(name=name)
    engine.metrics.describe_model(engine.info())
    engine.error = error
    return engine


def post(engines: list[FakeEngine], path: str, **request: Any) -> Seen:
    """What was seen of one request."""
    kept = Kept()
    transport = httpx.ASGITransport(Dispatcher(engines, CONFIG, [kept]))

    async def send() -> None:
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            await client.post(path, **request)

    asyncio.run(send())
    return kept[0]


@pytest.mark.parametrize(
    ("path", "body", "error", "status", "failure"),
    [
        ("/embed", {"inputs": "a"}, EngineFailure("a fault of ours"), 424, "engine_failure"),
        ("/embed", {"inputs": "a"}, RuntimeError("unforeseen"), 424, "engine_failure"),
        ("/v1/embeddings", {"input": "a"}, EngineFailure("a fault of ours"), 500, "engine_failure"),
        ("/embed", {"inputs": "a"}, UnsupportedTask("not here"), 424, ""),
        ("/embed", {"inputs": "a"}, Overloaded("full"), 429, ""),
        ("/embed", {"inputs": "a"}, None, 200, ""),
    ],
)
def test_whose_fault_it_was(path: str, body: Any, error: Exception | None, status: int, failure: str) -> None:
    engine = named("mini", error)
    seen = post([engine], path, json=body)
    assert (seen.status, seen.failure, seen.model) == (status, failure, "mini")
    labels = {"route": path, "reason": "engine_failure"}
    count = engine.metrics.registry.get_sample_value("rtp_llm_failed_requests_total", labels)
    assert count == (1 if failure else None)


def test_the_model_of_what_failed_is_named_where_it_is_known() -> None:
    one, other = named("one", EngineFailure("a fault")), named("other", EngineFailure("a fault"))
    assert post([one], "/v1/embeddings", content=b"{").model == "one"
    assert post([one, other], "/v1/embeddings", content=b"{").model == ""
    assert post([one, other], "/v1/embeddings", json={"input": "a", "model": "other"}).model == "other"
    assert post([one, other], "/v1/embeddings", json={"input": "a"}).model == "one"
