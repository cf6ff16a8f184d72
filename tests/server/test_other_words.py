"""What clients of other servers send that is theirs alone: words, kinds of values, nulls."""

import binascii
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from rtp_llm.core import TaskType
from rtp_llm.server.tei.routes import tei_info
from tests.server.conftest import CONFIG, running_server
from tests.server.fake_engine import FakeEngine, vector_of
from tests.server.test_auth import KEYS, ask

EMBEDDINGS = "/v1/embeddings"


def post(engine: FakeEngine, path: str, body: dict[str, Any]) -> httpx.Response:
    with running_server(engine) as address:
        return httpx.post(f"{address.url}{path}", json=body, trust_env=False, timeout=20)


@pytest.mark.parametrize(
    ("word", "truncates", "side"), [("NONE", False, None), ("START", True, "left"), ("END", True, "right")]
)
def test_nvidias_truncate(word: str, truncates: bool, side: str | None, engine: FakeEngine) -> None:
    assert post(engine, EMBEDDINGS, {"input": "a", "truncate": word}).status_code == 200
    params = engine.requests[-1].params
    assert (params.truncate, params.truncation_side) == (truncates, side)
    wrong = ask(CONFIG, "POST", EMBEDDINGS, json={"input": "a", "truncate": "MIDDLE"})
    assert wrong.status_code == 400 and "allowed: 'NONE', 'START', 'END'" in wrong.json()["error"]["message"]


def test_scalars_as_pydantic_takes_them(engine: FakeEngine) -> None:
    body: dict[str, Any] = {"input": ["1", "true", "null"], "dimensions": "4", "truncate": "false", "prompt": "null"}
    assert post(engine, EMBEDDINGS, body).status_code == 200
    request = engine.requests[-1]
    assert list(request.inputs) == ["1", "true", "null"] and request.params.prompt == "null"
    assert (request.params.dimensions, request.params.truncate) == (4, False)
    ranks = {"query": "1", "documents": ["null", "2"], "top_n": "1", "return_documents": "true"}
    answer = post(FakeEngine(tasks=(TaskType.RERANK,)), "/rerank", ranks).json()
    assert [result["document"]["text"] for result in answer["results"]] == ["2"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (EMBEDDINGS, {"input": [True]}),
        (EMBEDDINGS, {"input": 5}),
        (EMBEDDINGS, {"input": "a", "dimensions": True}),
        (EMBEDDINGS, {"input": "a", "dimensions": 1.5}),
        ("/rerank", {"query": 1, "documents": ["a"]}),
        ("/rerank", {"query": "a", "documents": [1]}),
    ],
)
def test_other_scalars_stay_wrong(path: str, body: dict[str, Any]) -> None:
    assert ask(CONFIG, "POST", path, json=body).status_code == 400
    assert ask(CONFIG, "POST", "/embed", json={"inputs": "a", "dimensions": "4"}).status_code == 422


def test_a_wrong_word_deep_in_a_body_is_the_callers_fault() -> None:
    sides = {"source_sentence": "a", "sentences": ["b"]}
    body = {"inputs": sides, "parameters": {"truncation_direction": "up"}}
    answer = ask(CONFIG, "POST", "/similarity", json=body)
    assert answer.status_code == 422 and "parameters.truncation_direction: invalid enum value 'up'" in answer.text
    assert "allowed: 'left', 'right'" in answer.text


def test_infinitys_modality() -> None:
    body = {"input": "http://example.org/cat.png", "modality": "image"}
    answer = ask(CONFIG, "POST", "/embeddings", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "modality"
    assert ask(CONFIG, "POST", "/embeddings", json=body | {"modality": "text"}).status_code == 200


def test_an_adapter_of_a_model_that_has_none() -> None:
    """Like any other word that cannot be heeded; null is no word."""
    answer = ask(CONFIG, "POST", EMBEDDINGS, json={"input": "a", "lora_task": "text-matching"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "lora_task")
    assert "'text-matching' cannot be chosen: this model has no adapters; leave it out" in error["message"]
    assert ask(CONFIG, "POST", EMBEDDINGS, json={"input": "a", "lora_task": None}).status_code == 200


def test_nvidias_modalities() -> None:
    """NIM takes one word, or one for each input."""
    body: dict[str, Any] = {"input": ["a", "b"], "modality": ["text", "text"]}
    assert ask(CONFIG, "POST", EMBEDDINGS, json=body).status_code == 200
    answer = ask(CONFIG, "POST", EMBEDDINGS, json=body | {"modality": ["text", "image"]})
    assert answer.status_code == 400 and "modality: 'image' is not served" in answer.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": "a", "messages": None}),
        ("/tokenize", {"prompt": "a", "inputs": None}),
        ("/rerank", {"query": "a", "documents": ["b"], "texts": None}),
        (EMBEDDINGS, {"messages": [{"role": "user", "content": "a"}], "input": None}),
        ("/", {"inputs": "a", "input": None}),
    ],
)
def test_a_null_chooses_no_dialect(path: str, body: dict[str, Any]) -> None:
    answer = post(FakeEngine(), path, body)
    assert answer.status_code == 200, answer.text


def test_base64_among_the_types() -> None:
    body = {"input": "a", "embedding_types": ["base64"]}
    (item,) = ask(CONFIG, "POST", EMBEDDINGS, json=body).json()["data"]
    np.testing.assert_array_equal(np.frombuffer(binascii.a2b_base64(item["embedding"]), "<f4"), vector_of("a"))


def test_llama_indexs_word_for_jinas_embedding_type() -> None:
    """LlamaIndex' JinaEmbedding sends `encoding_type`, and unpacks the bits of what comes back."""
    for word, numbers in (("ubinary", np.packbits(vector_of("a") > 0)), ("float", vector_of("a"))):
        (item,) = ask(CONFIG, "POST", EMBEDDINGS, json={"input": "a", "encoding_type": word}).json()["data"]
        np.testing.assert_array_equal(np.array(item["embedding"], numbers.dtype), numbers)
    (item,) = ask(CONFIG, "POST", EMBEDDINGS, json={"input": "a", "encoding_type": "base64"}).json()["data"]
    np.testing.assert_array_equal(np.frombuffer(binascii.a2b_base64(item["embedding"]), "<f4"), vector_of("a"))
    answer = ask(CONFIG, "POST", EMBEDDINGS, json={"input": "a", "encoding_type": "int4"})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "encoding_type"


@pytest.mark.parametrize("name", ["x-api-key", "api-key"])
def test_a_made_up_bearer_does_not_hide_the_right_key(name: str) -> None:
    config = replace(CONFIG, api_key=KEYS)
    headers = {"authorization": "Bearer EMPTY", name: KEYS[1]}
    assert ask(config, "POST", EMBEDDINGS, json={"input": "a"}, headers=headers).status_code == 200
    headers[name] = "wrong"
    assert ask(config, "POST", EMBEDDINGS, json={"input": "a"}, headers=headers).status_code == 401


def test_words_for_what_an_input_is_for(engine: FakeEngine) -> None:
    for word, name in (("code.query", "query"), ("code.passage", "passage")):
        assert post(engine, EMBEDDINGS, {"input": "a", "task": word}).status_code == 200
        assert engine.requests[-1].params.prompt_name == name
    # Azure's EmbeddingInputType has a word for no side.
    assert post(engine, EMBEDDINGS, {"input": "a", "input_type": "text"}).status_code == 200
    assert engine.requests[-1].params.prompt_name is None
    answer = ask(CONFIG, "POST", "/v2/embed", json={"texts": ["a"], "input_type": "image"})
    assert answer.status_code == 400 and "a text model is served" in answer.json()["message"]


@pytest.mark.parametrize(
    ("input_type", "task", "name"),
    [("query", "retrieval.query", "query"), ("code.passage", "passage", "passage"), ("", "query", "query")],
)
def test_two_words_for_one_thing(input_type: str, task: str, name: str, engine: FakeEngine) -> None:
    assert post(engine, EMBEDDINGS, {"input": "a", "input_type": input_type, "task": task}).status_code == 200
    assert engine.requests[-1].params.prompt_name == name


@pytest.mark.parametrize(
    ("input_type", "task"), [("query", "retrieval.passage"), ("document", "code.query"), ("query", "text-matching")]
)
@pytest.mark.parametrize("prompts", [(), ("query", "passage")])
def test_words_at_odds(input_type: str, task: str, prompts: tuple[str, ...]) -> None:
    body = {"input": "a", "input_type": input_type, "task": task}
    error = post(FakeEngine(prompts=prompts), EMBEDDINGS, body).json()["error"]
    assert error["param"] == "task" and f"{input_type!r} and task {task!r} are at odds" in error["message"]


@pytest.mark.parametrize(("dtype", "word"), [("fp32", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")])
def test_the_dtype_that_is_computed_in(dtype: str, word: str) -> None:
    assert tei_info(FakeEngine(dtype=dtype).info(), CONFIG).model_dtype == word


def test_azures_paths(engine: FakeEngine) -> None:
    engines = [FakeEngine(name="one"), FakeEngine(name="two"), FakeEngine(name="BAAI/bge-m3")]
    with running_server(engines) as address:
        path = f"{address.url}/openai/deployments/two/embeddings?api-version=2024-10-21"
        answer = httpx.post(path, json={"input": "a"}, trust_env=False)
        assert answer.json()["model"] == "two"
        # Azure's clients send a model beside the deployment, which is the one that answers.
        body, headers = {"input": "a", "model": "one"}, {"x-model": "one"}
        assert httpx.post(path, json=body, headers=headers, trust_env=False).json()["model"] == "two"
        unknown = path.replace("two", "three")
        assert httpx.post(unknown, json={"input": "a"}, trust_env=False).status_code == 404
        for name in ("BAAI/bge-m3", "BAAI%2Fbge-m3"):
            answer = httpx.post(path.replace("two", name), json={"input": "a"}, trust_env=False)
            assert answer.json()["model"] == "BAAI/bge-m3"
    assert post(engine, "/openai/v1/embeddings", {"input": "a"}).status_code == 200


def test_vllms_load() -> None:
    assert ask(CONFIG, "GET", "/load").json() == {"server_load": 0}


def test_vllms_query_in_parts_and_the_end_that_is_cut() -> None:
    engine = FakeEngine(tasks=(TaskType.RERANK, TaskType.CLASSIFY))
    body: dict[str, Any] = {"query": {"content": [{"type": "text", "text": "q"}]}, "documents": ["a"]}
    assert post(engine, "/rerank", body).status_code == 200
    assert list(engine.requests[-1].inputs) == [("q", "a")]
    body["query"] = {"content": [{"type": "image_url"}]}
    assert post(engine, "/rerank", body).json()["error"]["param"] == "query"
    for path in ("/pooling", "/classify"):
        engine = FakeEngine(tasks=(TaskType.DENSE, TaskType.CLASSIFY), labels=("a", "b"))
        assert post(engine, path, {"input": "a", "truncation_side": "left"}).status_code == 200
        assert engine.requests[-1].params.truncation_side == "left"


@pytest.mark.parametrize(
    ("path", "body"),
    [("/rerank", {"query": "q", "documents": ["a"]}), ("/score", {"text_1": "q", "text_2": ["a"]})],
)
def test_vllms_words_for_how_pairs_are_read(path: str, body: dict[str, Any]) -> None:
    """Its ScoringRequestMixin folds `instruction` into `chat_template_kwargs`, whose own key goes before."""
    engine = FakeEngine(tasks=(TaskType.RERANK, TaskType.CLASSIFY))
    said: dict[str, Any] = {"chat_template_kwargs": {"instruction": "x", "other": 1}, "truncation_side": "left"}
    for more, instruction in ((said, "x"), (said | {"instruction": "y"}, "x"), ({"instruction": "y"}, "y")):
        assert post(engine, path, body | more).status_code == 200
        params = engine.requests[-1].params
        assert (params.instruction, params.truncation_side) == (instruction, more.get("truncation_side"))
    wrong = post(engine, path, body | {"chat_template_kwargs": {"instruction": 1}}).json()["error"]
    assert wrong["param"] == "chat_template_kwargs.instruction"
    wrong = post(engine, path, body | {"chat_template_kwargs": {"chat_template": "x"}}).json()["error"]
    assert wrong["param"] == "chat_template_kwargs.chat_template" and "is no variable" in wrong["message"]


@pytest.mark.parametrize(
    ("path", "body", "own"),
    [
        ("/embed", {"inputs": "a"}, {"truncate": True}),
        (EMBEDDINGS, {"input": "a"}, {"truncation": True}),
        (EMBEDDINGS, {"input": "a"}, {"truncate_prompt_tokens": 4}),
        ("/rerank", {"query": "a", "documents": ["b"]}, {"truncation": True}),
        ("/v2/embed", {"texts": ["a"]}, {"truncate": "START"}),
        (
            "/similarity",
            {"inputs": {"source_sentence": "a", "sentences": ["b"]}},
            {"parameters": {"truncate": True}},
        ),
    ],
)
def test_the_servers_default_of_truncation(path: str, body: dict[str, Any], own: dict[str, Any]) -> None:
    engine = FakeEngine()
    with running_server(engine, replace(CONFIG, auto_truncate=False)) as address:
        for sent in (body, body | own):
            assert httpx.post(f"{address.url}{path}", json=sent, trust_env=False).status_code == 200
        assert httpx.get(f"{address.url}/info", trust_env=False).json()["auto_truncate"] is False
    assert [request.params.truncate for request in engine.requests] == [False, True]
