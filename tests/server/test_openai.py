"""OpenAI's routes when all is well: every form of input, every option, the answer's exact form."""

import base64
import re
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from rtp_llm.core import Params
from rtp_llm.errors import InvalidRequest
from rtp_llm.server.checks import as_asked, check_dimensions
from rtp_llm.server.openai import EmbeddingsBody
from tests.server.fake_engine import DIMENSION, FakeEngine, vector_of


def post(client: httpx.Client, route: str = "/v1/embeddings", **body: Any) -> dict[str, Any]:
    answer = client.post(route, json=body)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


@pytest.mark.parametrize("route", ["/v1/embeddings", "/embeddings", "/v1/embeddings/dense", "/v1/embeddings/"])
def test_answer(client: httpx.Client, route: str) -> None:
    answer = post(client, route, input="two words", model="anything")
    vector = answer["data"][0].pop("embedding")
    np.testing.assert_array_equal(np.float32(vector), vector_of("two words"))
    assert answer == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0}],
        "model": "fake/model",
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    }


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("text", ["text"]),
        ("", [""]),
        (["a", "b", "a"], ["a", "b", "a"]),
        ([""], [""]),
        ([1, 2, 99], [[1, 2, 99]]),
        ([0], [[0]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        ("日本語 \U0001f600 \x00", ["日本語 \U0001f600 \x00"]),
    ],
)
def test_inputs(client: httpx.Client, engine: FakeEngine, given: Any, inputs: list[Any]) -> None:
    answer = post(client, input=given)
    assert list(engine.requests[0].inputs) == inputs
    assert [item["index"] for item in answer["data"]] == list(range(len(inputs)))
    for item, value in zip(answer["data"], inputs, strict=True):
        np.testing.assert_array_equal(np.float32(item["embedding"]), vector_of(value))


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 128, 129, 200])
def test_base64_equals_float(client: httpx.Client, count: int) -> None:
    texts = [f"text {i}" for i in range(count)]
    as_float = post(client, input=texts, encoding_format="float")["data"]
    as_base64 = post(client, input=texts, encoding_format="base64")["data"]
    assert [item["index"] for item in as_base64] == list(range(count))
    for left, right in zip(as_float, as_base64, strict=True):
        decoded = np.frombuffer(base64.b64decode(right["embedding"]), "<f4")
        np.testing.assert_array_equal(np.float32(left["embedding"]), decoded)


@pytest.mark.parametrize(
    ("field", "params"),
    [
        ({}, Params()),
        ({"dimensions": DIMENSION}, Params()),
        ({"dimensions": 3}, Params(dimensions=3)),
        ({"normalize": False}, Params(normalize=False)),
        ({"normalize": True}, Params(normalize=True)),
        ({"truncate": False}, Params(truncate=False)),
        ({"truncation_side": "left"}, Params(truncation_side="left")),
        ({"prompt": ""}, Params(prompt="")),
        ({"prompt": "query: "}, Params(prompt="query: ")),
        ({"prompt_name": "query"}, Params(prompt_name="query")),
        ({"extra_configs": {"tokenizer_config": {"add_special_tokens": False}}}, Params(add_special_tokens=False)),
        ({"extra_configs": {"tokenizer_config": {"add_special_tokens": None}}}, Params()),
        ({"extra_configs": {"tokenizer_config": {}, "gen_timeline": True}}, Params()),
        ({"user": 7, "source": "x", "private_request": True, "generate_config": {"a": [1]}}, Params()),
    ],
)
def test_params(client: httpx.Client, engine: FakeEngine, field: dict[str, Any], params: Params) -> None:
    post(client, input="a", **field)
    assert engine.requests[0].params == params


def test_null_means_absent(client: httpx.Client, engine: FakeEngine) -> None:
    optional = set(EmbeddingsBody.__struct_fields__) - {"input"}
    answer = client.post("/v1/embeddings", json={"input": "a", **dict.fromkeys(optional)}).json()
    assert engine.requests[0].params == Params()
    assert isinstance(answer["data"][0]["embedding"], list)


def test_dimensions_of_a_model_that_gives_fewer_by_itself() -> None:
    info = replace(FakeEngine().info(), full_dimension=2 * DIMENSION)
    for asked in (3, DIMENSION, DIMENSION + 1, 2 * DIMENSION):
        check_dimensions(asked, info)
        assert as_asked(asked, info) == asked
    with pytest.raises(InvalidRequest, match=f"is not between 1 and {2 * DIMENSION}"):
        check_dimensions(2 * DIMENSION + 1, info)


def test_dimensions_of_the_answer(client: httpx.Client) -> None:
    assert len(post(client, input="a", dimensions=3)["data"][0]["embedding"]) == 3


def test_truncated_items_say_so(client: httpx.Client) -> None:
    data = post(client, input=["short", "word " * 50])["data"]
    assert [item.get("truncated") for item in data] == [None, True]


def test_content_type_does_not_matter(client: httpx.Client) -> None:
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1"):
        answer = client.post("/v1/embeddings", content=b'{"input":"a"}', headers={"content-type": content_type})
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")


def test_headers_tell_usage_and_stages(client: httpx.Client) -> None:
    answer = client.post("/v1/embeddings", json={"input": ["a", "b c"]})
    assert answer.headers["usage"] == '{"prompt_tokens":7,"total_tokens":7}'
    stages = "tokenize;dur=1.000, queue;dur=2.000, compute;dur=3.000, "
    assert re.fullmatch(stages + r"encode;dur=0\.\d+, total;dur=6\.\d+", answer.headers["server-timing"])


def test_chunked_body(client: httpx.Client) -> None:
    answer = client.post("/v1/embeddings", content=iter([b'{"inp', b'ut":', b'"a"}']))
    assert answer.status_code == 200


@pytest.mark.parametrize("route", ["/v1/models", "/v1/models/"])
def test_models(client: httpx.Client, route: str) -> None:
    assert client.get(route).json() == {
        "object": "list",
        "data": [
            {
                "id": "fake/model",
                "object": "model",
                "created": 1700000000,
                "owned_by": "rtp-llm",
                "dimension": DIMENSION,
                "max_model_len": 16,
                "tasks": ["dense"],
                "adapters": [],
                "parent": None,
                "aliases": [],
                "weight_bytes": 0,
                "memory_bytes": 0,
            }
        ],
    }


@pytest.mark.parametrize("route", ["/v1/models/fake/model", "/v1/models/fake%2Fmodel", "/models/fake/model"])
def test_one_model(client: httpx.Client, route: str) -> None:
    assert client.get(route).json()["id"] == "fake/model"
