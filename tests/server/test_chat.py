"""Chat messages as input, and long texts, over tiny random checkpoints and HTTP."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.rtp_clients import Served, serving
from tests.tasks.checkpoints import LIMIT, save
from tests.token_ids import token_ids

pytest.importorskip("torch")
pytest.importorskip("jinja2")

# Words that the tiny tokenizer knows, so that its vectors differ.
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}{% if add_generation_prompt %}a :{% endif %}"
)
CHAT = [{"role": "query", "content": "so sunny"}, {"role": "passage", "content": "the weather is lovely"}]
TEXT = "query : so sunny passage : the weather is lovely "
LONG = "he drove to stadium " * 40
LONG_CHAT = [{"role": "query", "content": LONG}]
LABELS = {0: "joy", 1: "anger"}


def with_template(folder: Path, head: str = "BertModel", **shape: Any) -> None:
    save(folder, head, **shape)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from serving(with_template, tmp_path_factory, "chat")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    head = "BertForSequenceClassification"
    yield from serving(lambda folder: with_template(folder, head, id2label=LABELS), tmp_path_factory, "labels")


def vectors(answer: Any) -> Any:
    return np.array([item["embedding"] for item in answer["data"]], np.float32)


def rows(served: Served, *texts: str, special: bool = False, **params: Any) -> Any:
    ids = [token_ids(served.model, text, add_special_tokens=special) for text in texts]
    return served.model.embed(list(ids), **params)


def test_messages(dense: Served) -> None:
    one = dense.post("/v1/embeddings", messages=CHAT)
    np.testing.assert_array_equal(vectors(one), rows(dense, TEXT))
    several = dense.post("/v1/embeddings", messages=[CHAT, CHAT[:1]], add_generation_prompt=True)
    np.testing.assert_array_equal(vectors(several), rows(dense, TEXT + "a :", "query : so sunny a :"))
    special = dense.post("/v1/embeddings", messages=CHAT, add_special_tokens=True)
    np.testing.assert_array_equal(vectors(special), rows(dense, TEXT, special=True))
    left_open = dense.post("/v1/embeddings", messages=CHAT, continue_final_message=True)
    np.testing.assert_array_equal(vectors(left_open), rows(dense, TEXT.strip()))


def test_messages_of_parts(dense: Served) -> None:
    parts = [{"role": "query", "content": [{"type": "text", "text": "so"}, {"type": "text", "text": "sunny"}]}]
    assert vectors(dense.post("/v1/embeddings", messages=parts)).shape == (1, 32)
    long = [{"role": "query", "content": "so sunny " * 500}]  # rendered beside the event loop
    assert dense.post("/v1/embeddings", messages=long)["data"][0]["truncated"]


@pytest.mark.parametrize("content", [{}, {"content": None}])
def test_a_message_that_calls_a_tool_needs_no_content(content: dict[str, None], dense: Served) -> None:
    calls = [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]
    given = dense.post("/v1/embeddings", messages=[{"role": "assistant", "tool_calls": calls, **content}])
    empty = dense.post("/v1/embeddings", messages=[{"role": "assistant", "content": ""}])
    np.testing.assert_array_equal(vectors(given), vectors(empty))


def test_messages_elsewhere(dense: Served, classifier: Served) -> None:
    (pooled,) = dense.post("/pooling", messages=CHAT)["data"]
    np.testing.assert_array_equal(np.array([pooled["data"]], np.float32), rows(dense, TEXT))
    answer = classifier.post("/classify", messages=[CHAT])
    probs = np.array([answer["data"][0]["probs"]], np.float32)
    np.testing.assert_array_equal(probs, classifier.model.classify([token_ids(classifier.model, TEXT)]))


def test_text_objects(dense: Served) -> None:
    given = dense.post("/v1/embeddings", input=[{"text": "so sunny"}, "he drove"])
    np.testing.assert_array_equal(vectors(given), dense.model.embed(["so sunny", "he drove"]))


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({"messages": CHAT, "input": "a"}, "input and messages: send one", "messages"),
        ({"messages": []}, "messages is an empty list", "messages"),
        ({"messages": [CHAT, []]}, "messages[1] is an empty list", "messages[1]"),
        ({"messages": [CHAT, CHAT[0]]}, "one conversation, or a list", "messages"),
        ({"messages": [{"content": "a"}]}, "messages[0]: a message has a role", "messages[0].role"),
        ({"messages": [{"role": "a"}]}, "messages[0].content is missing: give a text", "messages[0].content"),
        ({"messages": [CHAT, [{"role": "a", "content": None}]]}, "need be none", "messages[1][0].content"),
        ({"messages": [{"role": "a", "tool_calls": []}]}, "messages[0].content is missing", "messages[0].content"),
        ({"messages": [{"role": "a", "content": 5}]}, "a text, or a list of parts", "messages[0].content"),
        ({"messages": [{"role": "a", "content": [{"type": "image_url"}]}]}, "of type text", "messages[0].content"),
        ({"messages": CHAT, "chat_template": "x"}, "not taken from a request", "chat_template"),
        *(
            ({"messages": CHAT, "chat_template_kwargs": {name: True}}, "is no variable", f"chat_template_kwargs.{name}")
            for name in ("messages", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize")
        ),
        (
            {"messages": CHAT, "add_generation_prompt": True, "continue_final_message": True},
            "not both possible",
            "continue_final_message",
        ),
        ({"messages": "a"}, "messages: expected array", "messages"),
        ({"messages": LONG_CHAT, "truncate": False}, "messages has at least", "messages"),
        ({"messages": [CHAT, LONG_CHAT], "truncate": False}, "messages[1] has at least", "messages[1]"),
        ({"messages": [CHAT, LONG_CHAT], "chunking": "late"}, "this model reads 64 at once", "messages"),
        ({"input": LONG, "truncate": False}, "input has at least", "input"),
        ({"input": [5] * 65, "truncate": False}, "input has at least", "input"),
        ({"input": [[5] * 65], "truncate": False}, "input[0] has at least", "input[0]"),
    ],
)
def test_refused_messages(body: dict[str, Any], message: str, param: str, dense: Served) -> None:
    error = dense.refuse("/v1/embeddings", **body)
    assert message in error["message"] and error["param"] == param


def test_a_model_without_a_template(tmp_path_factory: pytest.TempPathFactory) -> None:
    for served in serving(save, tmp_path_factory, "plain"):
        assert "no chat template" in served.refuse("/pooling", messages=CHAT)["message"]


@pytest.mark.parametrize("options", [{}, {"dimensions": 8, "output_dtype": "float16", "encoding_format": "base64"}])
def test_chunking(options: dict[str, Any], dense: Served) -> None:
    mean = dense.post("/v1/embeddings", input=["so sunny", LONG], chunking="mean")
    np.testing.assert_array_equal(vectors(mean), dense.model.embed(["so sunny", LONG], chunking="mean"))
    assert not any("truncated" in item for item in mean["data"])
    assert mean["usage"]["prompt_tokens"] == 4 + 160 + 3 * 2
    cut = dense.post("/v1/embeddings", input=LONG)["data"][0]
    assert cut["truncated"] and cut["embedding"] != mean["data"][1]["embedding"]
    assert dense.post("/v1/embeddings", input=LONG, chunking="mean", **options)["data"]


def test_late_chunking(dense: Served) -> None:
    """Jina's: a vector for each of the consecutive chunks of one text."""
    chunks = ["the weather is lovely today .", "so so sunny", "he drove to stadium"]
    answer = dense.post("/v1/embeddings", input=chunks, late_chunking=True, task="retrieval.passage", normalized=True)
    np.testing.assert_array_equal(vectors(answer), dense.model.embed(chunks, chunking="late", normalize=True))
    assert answer["usage"]["total_tokens"] == 13 + 2
    raw = dense.client.post(
        "/v1/embeddings", json={"input": chunks, "chunking": "late"}, headers={"accept": "application/octet-stream"}
    )
    assert raw.headers["x-embedding-shape"] == "3,32" and raw.headers["x-truncated"] == ""


def test_a_limit_of_the_requests_own(dense: Served) -> None:
    """vLLM's truncate_prompt_tokens and Cohere's max_tokens, special tokens included."""
    whole = dense.model.embed(["so sunny outside", "he drove"])
    cut = dense.post("/v1/embeddings", input=["so sunny outside today", "he drove"], truncate_prompt_tokens=5)
    np.testing.assert_array_equal(vectors(cut), whole)
    assert [item.get("truncated", False) for item in cut["data"]] == [True, False]
    answer = dense.post("/v2/embed", texts=["so sunny outside today", "he drove"], max_tokens=5)
    np.testing.assert_array_equal(np.float32(answer["embeddings"]["float"]), whole)
    for value in (-1, LIMIT, 9999, None):
        same = dense.post("/v1/embeddings", input=["so sunny outside", "he drove"], truncate_prompt_tokens=value)
        np.testing.assert_array_equal(vectors(same), whole)
    refused = dense.client.post("/v2/embed", json={"texts": ["so sunny outside"], "max_tokens": 4, "truncate": "NONE"})
    assert refused.status_code == 400 and "the limit is 4" in refused.json()["message"]


def test_tokens_of_messages(dense: Served) -> None:
    """vLLM's defaults: the next answer is opened, and the template's tokens are all there are."""
    served = {"messages": CHAT, "model": "any"}
    opened = dense.post("/tokenize", **served)
    assert opened["tokens"] == dense.post("/tokenize", prompt=TEXT + "a :", add_special_tokens=False)["tokens"]
    assert (opened["count"], opened["token_strs"]) == (len(opened["tokens"]), None)
    closed = dense.post("/tokenize", **served, add_generation_prompt=False, add_special_tokens=True)
    assert closed["tokens"] == dense.post("/tokenize", prompt=TEXT)["tokens"]
    named = dense.post("/tokenize", **served, continue_final_message=True, return_token_strs=True)
    assert named["token_strs"][-1] == "lovely" and len(named["token_strs"]) == named["count"]
    assert dense.refuse("/tokenize", messages=[CHAT, CHAT])["param"] == "messages"
    assert dense.refuse("/tokenize", messages=[])["param"] == "messages"
    assert (
        dense.refuse("/tokenize", messages=CHAT, chat_template_kwargs={"range": 2})["param"] == "chat_template_kwargs"
    )
