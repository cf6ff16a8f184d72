"""Whatever the bytes are, a body is served or refused as the caller's mistake; nothing else escapes."""

import asyncio
import json
from contextlib import suppress
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtp_llm.errors import InvalidRequest
from rtp_llm.server import ollama
from rtp_llm.server.body import decode
from rtp_llm.server.dialect import Dialect
from rtp_llm.server.dispatch import DIALECTS
from rtp_llm.server.openai import EmbeddingsBody
from rtp_llm.server.route import Choice, Route
from tests.server.conftest import CONFIG
from tests.server.fake_engine import FakeEngine

# The first draw of a text builds hypothesis's Unicode tables, which takes seconds.
unhurried = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])

LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["float", "left", "query"])
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)
FIELDS = st.sampled_from(EmbeddingsBody.__struct_fields__)
TEXTS = st.text(st.characters(codec="utf-8"))
INPUTS = TEXTS | st.lists(TEXTS, min_size=1) | st.lists(st.integers(0, 99), min_size=1)


def dialects(route: Route) -> list[Dialect[Any]]:
    """Every dialect that runs the model and that `route` may lead to."""
    if isinstance(route, Choice):
        return [dialect for part in (*route.by_key.values(), route.otherwise) for dialect in dialects(part)]
    return [route] if isinstance(route, Dialect) else []


def serve(body: bytes) -> list[Any]:
    """The inputs that would reach the engine; none for a body that is refused."""
    with suppress(InvalidRequest):
        dialect = dialects(DIALECTS["/v1/embeddings"])[-1]
        decoded, engine = decode(dialect.decoder, body), FakeEngine()
        if dialect.prepare is not None and decoded.messages is not None:
            decoded = asyncio.run(asyncio.wait_for(dialect.prepare(decoded, CONFIG, engine), timeout=10))
        request = dialect.to_request(decoded, engine.info(), CONFIG, "id")
        return list(request.inputs)
    return []


@unhurried
@given(st.binary())
def test_any_bytes(body: bytes) -> None:
    serve(body)


@unhurried
@given(st.dictionaries(FIELDS, VALUES, max_size=4))
def test_any_values(body: dict[str, Any]) -> None:
    serve(json.dumps(body).encode())


ALL = [(path, dialect) for path, route in sorted(DIALECTS.items()) for dialect in dialects(route)]


@unhurried
@given(st.data())
def test_any_values_on_any_path(data: st.DataObject) -> None:
    path, dialect = data.draw(st.sampled_from(ALL))
    valid = {"query": "a", "documents": ["b"], "left": ["a"], "right": ["b"], "input": ["a"], "kind": "hybrid"}
    valid |= {"inputs": ["a", "b"], "texts": ["b"], "text_1": "a", "text_2": ["b"]}
    fields = st.sampled_from(dialect.decoder.type.__struct_fields__)
    body = {**valid, **data.draw(st.dictionaries(fields, VALUES, max_size=3))}
    with suppress(InvalidRequest):
        decoded = decode(dialect.decoder, json.dumps(body).encode())
        inputs = dialect.to_request(decoded, FakeEngine().info(), CONFIG, "id").inputs
        assert inputs or path in (ollama.PATH, ollama.OLD_PATH), "Ollama's clients alone may send nothing"


@unhurried
@given(VALUES)
def test_any_input(value: Any) -> None:
    for item in serve(json.dumps({"input": value}).encode()):
        assert isinstance(item, str) or (item and all(0 <= token < 100 for token in item))


@unhurried
@given(INPUTS, st.integers(0, 40))
def test_any_cut(value: Any, cut: int) -> None:
    body = json.dumps({"input": value}, ensure_ascii=False).encode()
    assert serve(body) == ([value] if isinstance(value, str) or isinstance(value[0], int) else value)
    assert serve(body[: -1 - cut]) == []
