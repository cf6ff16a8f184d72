"""An adapter of `lora_modules` is a model to callers: listed, found by its name on every route, counted once."""

from typing import Any

import httpx
import pytest

from tests.server.conftest import running_server
from tests.server.fake_engine import FakeEngine
from tests.server.test_other_words import EMBEDDINGS, post

FACTS: dict[str, Any] = {"name": "base", "adapters": ("law", "care"), "lora_modules": ("law", "care")}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (EMBEDDINGS, {"input": "a"}),
        ("/v1/embeddings/dense", {"input": ["a"]}),
        ("/api/embed", {"input": "a"}),
        ("/v2/embed", {"texts": ["a"], "input_type": "search_query", "embedding_types": ["float"]}),
        ("/embed", {"inputs": "a"}),
        ("/v1/embeddings/similarity", {"left": ["a"], "right": ["b"]}),
    ],
)
@pytest.mark.parametrize(
    ("model", "adapter"), [("base", None), ("law", "law"), ("care", "care"), (None, None), ("care:latest", "care")]
)
def test_chosen_by_name(path: str, body: dict[str, Any], model: str | None, adapter: str | None) -> None:
    engine = FakeEngine(**FACTS)
    answer = post(engine, path, body | ({} if model is None else {"model": model}))
    assert answer.status_code == 200, answer.text
    assert {request.params.adapter for request in engine.requests} == {adapter}


@pytest.mark.parametrize(
    ("asked", "adapter"),
    [({"lora_task": "law"}, "law"), ({"task": "query"}, None), ({"task": "classification"}, None)],
)
def test_words_of_the_base(asked: dict[str, Any], adapter: str | None) -> None:
    engine = FakeEngine(**FACTS | {"adapters": ("law", "query"), "lora_modules": ("law", "query")})
    answer = post(engine, EMBEDDINGS, {"input": "a", "model": "base", **asked})
    assert answer.status_code == 200 and engine.requests[-1].params.adapter == adapter, answer.text


def test_an_unknown_model_and_another_adapter() -> None:
    engine = FakeEngine(**FACTS)
    answer = post(engine, EMBEDDINGS, {"input": "a", "model": "tax"})
    assert answer.status_code == 404 and "'base', 'law', 'care'" in answer.text
    answer = post(engine, EMBEDDINGS, {"input": "a", "model": "law", "lora_task": "care"})
    assert answer.status_code == 400 and "name 'base' or another one in `model`" in answer.text
    assert not engine.requests


def test_listed() -> None:
    engine = FakeEngine(**FACTS)
    with running_server(engine) as address, httpx.Client(base_url=address.url, trust_env=False, timeout=20) as client:
        listed = client.get("/v1/models").json()["data"]
        assert [(entry["id"], entry["parent"], entry["adapters"]) for entry in listed] == [
            ("base", None, ["law", "care"]), ("law", "base", ["law"]), ("care", "base", ["care"]),
        ]  # fmt: skip
        assert client.get("/v1/models/care").json() == listed[2]
        assert client.post(EMBEDDINGS, json={"input": "a", "model": "law"}).json()["model"] == "law"
        assert client.get("/load").json() == {"server_load": 0}
        seen = client.get("/metrics").text
    assert seen.count("rtp_llm_device_graphs{") == 1
