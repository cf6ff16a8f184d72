"""Work beside the event loop: requests take turns, and what nobody waits for any more ends."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from rtp_llm.core import Request, Response, SparseVector, TaskType
from rtp_llm.server.turns import Turns
from rtp_llm.timings import Timings
from tests.server.conftest import CONFIG, running_server
from tests.server.fake_engine import FakeEngine, FakePart


def pieces(name: bytes, seen: list[bytes], count: int = 8) -> Iterator[bytes]:
    for _ in range(count):
        time.sleep(0.012)
        seen.append(name)
        yield name


def test_turns_go_round() -> None:
    async def two() -> list[bytes]:
        turns = Turns()
        return list(await asyncio.gather(turns.join(pieces(b"a", seen)), turns.join(pieces(b"b", seen))))

    seen: list[bytes] = []
    assert asyncio.run(two()) == [b"a" * 8, b"b" * 8]
    assert b"b" in seen[:4] and b"a" in seen[-4:]


def test_what_is_cancelled_ends() -> None:
    async def cancelled() -> None:
        with pytest.raises(asyncio.TimeoutError):  # in Python 3.10 another class than TimeoutError
            await asyncio.wait_for(Turns().join(pieces(b"a", seen, 10_000)), 0.05)

    seen: list[bytes] = []
    asyncio.run(cancelled())
    assert len(seen) < 20


class Endless(FakeEngine):
    """A tokenizer that has never done, and a sparse model."""

    parts = 0

    def token_parts(self, text: str, *, add_special_tokens: bool = True) -> Iterator[FakePart]:
        while True:
            self.parts += 1
            time.sleep(0.01)
            yield FakePart(0, 0, [])

    async def run(self, request: Request) -> Response:
        rows = [SparseVector(np.arange(3000, dtype=np.int32), np.ones(3000, np.float32))] * len(request.inputs)
        count = len(request.inputs)
        return Response(
            outputs={TaskType.SPARSE: rows}, num_tokens=[3] * count, truncated=[False] * count, timings=Timings()
        )


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": "a" * 3000}),
        ("/tokenize", {"inputs": "a" * 3000}),
        ("/tokenizer/encode", {"prompt": "a" * 3000}),
        ("/v1/embeddings/similarity", {"left": ["a"] * 500, "right": ["b"] * 500}),
    ],
)
def test_a_deadline_ends_what_is_beside_the_loop(path: str, body: dict[str, Any]) -> None:
    engine = Endless(tasks=(TaskType.SPARSE,))
    with running_server(engine, replace(CONFIG, max_client_batch_size=1000)) as address:
        answer = httpx.post(f"{address.url}{path}", json=body, headers={"x-request-timeout": "0.2"}, trust_env=False)
        assert answer.status_code == 504
        assert any(stands_still(engine) for _ in range(50))


def stands_still(engine: Endless) -> bool:
    """Whether nothing is made of it for a while; a turn may still be under way."""
    before = engine.parts
    time.sleep(0.1)
    return engine.parts == before


def test_the_texts_of_a_lookup_are_bounded_together() -> None:
    with running_server(FakeEngine(), replace(CONFIG, max_input_characters=10)) as address:
        answer = httpx.post(f"{address.url}/tokenize", json={"inputs": ["a" * 6] * 2}, trust_env=False)
    assert answer.status_code == 422 and "inputs has 12 characters in all" in answer.text


def test_a_large_body_is_read_beside_the_loop() -> None:
    engine = FakeEngine()
    with running_server(engine, replace(CONFIG, max_body_bytes=1 << 22, max_request_tokens=1 << 20)) as address:
        url = f"{address.url}/v1/embeddings"
        assert httpx.post(url, json={"input": [7] * 200_000}, trust_env=False).status_code == 200
        wrong = httpx.post(url, json={"input": [*[7] * 200_000, 100]}, trust_env=False)
    assert wrong.status_code == 400 and "token id 100 is outside" in wrong.text


@pytest.mark.parametrize(
    ("path", "turns"),
    [
        ("/v1/embeddings", ["decode", "choose"]),  # of Catalog: which model, with the checks of the inputs
        ("/", ["choose", "decode", "choose"]),  # the first looks for the dialect
    ],
)
def test_a_large_body_waits_for_no_more_turns_than_it_needs(
    path: str, turns: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    call = Turns.call

    async def counted(self: Turns, work: Any, *arguments: Any, **named: Any) -> Any:
        taken.append(work.__name__)
        return await call(self, work, *arguments, **named)

    monkeypatch.setattr(Turns, "call", counted)
    with running_server(FakeEngine(), replace(CONFIG, max_body_bytes=1 << 22, max_request_tokens=1 << 20)) as address:
        body = {"input": [7] * 200_000}
        assert httpx.post(f"{address.url}{path}", json=body, trust_env=False).status_code == 200
    assert taken == turns
