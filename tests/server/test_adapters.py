"""Which adapter (LoRA) a body asks for, in the words of each API."""

from typing import Any

import pytest

from rtp_llm.server.model_list import model_entry
from tests.server.fake_engine import FakeEngine
from tests.server.test_other_words import EMBEDDINGS, post

PROMPTS = ("retrieval.query", "retrieval.passage")
V3: dict[str, Any] = {
    "adapters": (*PROMPTS, "separation", "classification", "text-matching"), "prompts": PROMPTS,
}  # fmt: skip
# As of a checkpoint: these two are there in any case, and say nothing.
LOADED = {**V3, "prompts": ("query", "document", *PROMPTS), "empty_prompts": ("query", "document")}
V5: dict[str, Any] = {
    "adapters": ("classification", "clustering", "retrieval", "text-matching"), "prompts": ("query", "document"),
}  # fmt: skip


def asked(facts: dict[str, Any], body: dict[str, Any], path: str = EMBEDDINGS) -> tuple[str | None, str | None]:
    """-> the adapter and the prompt's name of the engine's request."""
    engine = FakeEngine(**facts)
    answer = post(engine, path, body)
    assert answer.status_code == 200, answer.text
    params = engine.requests[-1].params
    return params.adapter, params.prompt_name


@pytest.mark.parametrize(
    ("body", "adapter", "prompt"),
    [
        ({}, None, None),
        ({"task": "retrieval.query"}, "retrieval.query", "retrieval.query"),
        ({"task": "retrieval.passage"}, "retrieval.passage", "retrieval.passage"),
        ({"task": "text-matching"}, "text-matching", None),
        ({"task": "clustering"}, "separation", None),
        ({"task": "none"}, None, None),
        ({"task": ""}, None, None),
        ({"task": "query"}, "retrieval.query", "retrieval.query"),
        ({"task": "code.passage"}, "retrieval.passage", "retrieval.passage"),
        ({"input_type": "search_document"}, "retrieval.passage", "retrieval.passage"),
        ({"input_type": "query", "task": "retrieval.query"}, "retrieval.query", "retrieval.query"),
        ({"task": "separation", "prompt_name": "retrieval.query"}, "separation", "retrieval.query"),
        ({"lora_task": "classification"}, "classification", None),
        ({"lora_task": "separation", "task": "clustering"}, "separation", None),
        ({"prompt_name": "retrieval.query"}, None, "retrieval.query"),
    ],
)
def test_of_v3(body: dict[str, Any], adapter: str | None, prompt: str | None) -> None:
    for facts in (V3, LOADED):
        assert asked(facts, {"input": "a", **body}) == (adapter, prompt)


@pytest.mark.parametrize(
    ("word", "prompt"), [("query", "search_query"), ("corpus", "search_document"), ("code.query", "search_query")]
)
def test_a_side_takes_a_prompt_that_says_something(word: str, prompt: str) -> None:
    names = ("query", "document", "search_query", "search_document")
    assert asked({"prompts": names, "empty_prompts": names[:2]}, {"input": "a", "input_type": word}) == (None, prompt)
    assert asked({"prompts": names[:2], "empty_prompts": names[:2]}, {"input": "a", "input_type": "query"}) == (
        None,
        "query",
    )


@pytest.mark.parametrize(
    ("body", "adapter", "prompt"),
    [
        ({"task": "retrieval"}, "retrieval", None),
        ({"task": "retrieval", "prompt_name": "query"}, "retrieval", "query"),
        ({"task": "retrieval", "input_type": "query"}, "retrieval", "query"),
        ({"task": "retrieval.query"}, "retrieval", "query"),
        ({"task": "retrieval.passage"}, "retrieval", "document"),
        ({"task": "separation"}, "clustering", None),
        ({"lora_task": "retrieval", "input_type": "document"}, "retrieval", "document"),
    ],
)
def test_of_v5(body: dict[str, Any], adapter: str | None, prompt: str | None) -> None:
    assert asked(V5, {"input": "a", **body}) == (adapter, prompt)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/embed", {"texts": ["a"], "input_type": "search_query", "embedding_types": ["float"]}),
        ("/pooling", {"input": "a", "input_type": "query"}),
        ("/vectors", {"text": "a", "config": {"task_type": "query"}}),
    ],
)
def test_other_dialects(path: str, body: dict[str, Any]) -> None:
    assert asked(V3, body, path) == ("retrieval.query", "retrieval.query")


@pytest.mark.parametrize(
    ("facts", "body", "param", "message"),
    [
        (V3, {"task": "summary"}, "task", "'summary' is not one of retrieval.query, retrieval.passage, separation"),
        (V3, {"lora_task": "query"}, "lora_task", "'query' is not one of the model's adapters: retrieval.query"),
        (V3, {"lora_task": "separation", "task": "text-matching"}, "lora_task", "are different adapters: send one"),
        (V3, {"input_type": "query", "task": "text-matching"}, "task", "are different adapters: send one"),
        (V3, {"input_type": "query", "task": "retrieval.passage"}, "task", "are at odds"),
        (V5, {"task": "summary"}, "task", "'summary' is not one of"),
        ({}, {"lora_task": "separation"}, "lora_task", "this model has no adapters; leave it out"),
        (
            {"merged_adapter": "separation"},
            {"task": "text-matching"},
            "task",
            "loaded with the adapter 'separation' alone",
        ),
        (
            {"merged_adapter": "separation"},
            {"lora_task": "x"},
            "lora_task",
            "loaded with the adapter 'separation' alone",
        ),
    ],
)
def test_refusals(facts: dict[str, Any], body: dict[str, Any], param: str, message: str) -> None:
    answer = post(FakeEngine(**facts), EMBEDDINGS, {"input": "a", **body})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param) and message in error["message"]


@pytest.mark.parametrize(
    ("body", "adapter"),
    [
        ({"task": "clustering"}, "separation"),
        ({"lora_task": "separation"}, "separation"),
        ({"input_type": "query"}, None),
    ],
)
def test_what_was_chosen_at_load(body: dict[str, Any], adapter: str | None) -> None:
    """It may be named; a word for a side is of the prompt alone."""
    assert asked({"merged_adapter": "separation"}, {"input": "a", **body})[0] == adapter


@pytest.mark.parametrize(
    ("facts", "names"), [(V3, [*V3["adapters"]]), ({"merged_adapter": "separation"}, ["separation"]), ({}, [])]
)
def test_the_listing_names_them(facts: dict[str, Any], names: list[str]) -> None:
    assert model_entry(FakeEngine(**facts).info()).adapters == names
