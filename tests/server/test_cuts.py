"""Which inputs were cut at the limit: every route says so, in its answer or by a header, and refuses on request."""

from dataclasses import replace
from typing import Any

import httpx
import pytest

from rtp_llm.core import Response, TaskType
from rtp_llm.server.cuts import truncated_header
from tests.server.conftest import CONFIG, running_server
from tests.server.fake_engine import MAX_SEQ_LEN, FakeEngine

LABELS, VECTORS = (TaskType.CLASSIFY,), (TaskType.DENSE,)
SHORT, LONG = "a", "b " * MAX_SEQ_LEN
SIDES = {"source_sentence": SHORT, "sentences": [SHORT, LONG]}


def post(
    tasks: tuple[TaskType, ...], path: str, config: Any = CONFIG, **body: Any
) -> tuple[httpx.Response, FakeEngine]:
    engine = FakeEngine(tasks=tasks, labels=("no", "yes"))
    with running_server(engine, config) as address:
        return httpx.post(f"{address.url}{path}", json=body, trust_env=False, timeout=20), engine


@pytest.mark.parametrize(
    ("tasks", "path", "body", "told"),
    [
        (LABELS, "/classify", {"input": [SHORT, LONG]}, "1"),
        (LABELS, "/classify", {"input": [SHORT, LONG], "raw_scores": False}, "1"),
        (LABELS, "/classify", {"input": LONG}, "0"),
        (LABELS, "/predict", {"inputs": [[SHORT], [LONG]]}, "1"),
        (VECTORS, "/embed", {"inputs": [LONG, SHORT, LONG]}, "0,2"),
        (VECTORS, "/v2/embed", {"texts": [SHORT, LONG]}, "1"),
        (VECTORS, "/similarity", {"inputs": SIDES}, "inputs.sentences[1]"),
        (VECTORS, "/v1/embeddings/similarity", {"left": [SHORT, LONG], "right": [LONG]}, "left[1],right[0]"),
        (VECTORS, "/rerank", {"query": LONG, "documents": [SHORT, LONG]}, "query,documents[1]"),
        (VECTORS, "/score", {"text_1": SHORT, "text_2": [SHORT, LONG]}, "text_2[1]"),
        (VECTORS, "/api/embed", {"input": [SHORT, LONG]}, "1"),
        (VECTORS, "/api/embeddings", {"prompt": LONG}, "0"),
        (VECTORS, "/vectors", {"text": LONG}, "0"),
        (VECTORS, "/rerank", {"query": LONG, "documents": [SHORT, LONG], "property": ""}, "query,documents[1]"),
    ],
)
def test_a_header_says_what_was_cut(tasks: tuple[TaskType, ...], path: str, body: dict[str, Any], told: str) -> None:
    answer, _ = post(tasks, path, **body)
    assert (answer.status_code, answer.headers.get("x-truncated")) == (200, told)


@pytest.mark.parametrize(
    ("tasks", "instances", "told"),
    [
        (VECTORS, [{"inputs": SHORT}, {"inputs": LONG}, {"inputs": [LONG, SHORT, LONG]}], "instances[1][0],"
         "instances[2][0],instances[2][2]"),
        (VECTORS, [{"inputs": SHORT}, {"inputs": SIDES}], "instances[1].inputs.sentences[1]"),
        (LABELS, [{"inputs": [[SHORT], [LONG]]}], "instances[0][1]"),
        (VECTORS, [{"inputs": SHORT}], None),
        (LABELS, [{"inputs": SHORT}], None),
        (VECTORS, [{"input": LONG}], None),
    ],
)  # fmt: skip
def test_vertex_says_what_was_cut_of_its_instances(
    tasks: tuple[TaskType, ...], instances: list[dict[str, Any]], told: str | None
) -> None:
    """But of those whose answers say it themselves, as those of embeddings in OpenAI's form."""
    answer, _ = post(tasks, "/vertex", instances=instances)
    assert (answer.status_code, answer.headers.get("x-truncated")) == (200, told)
    assert ("truncated" in answer.text) == ("input" in instances[0])


@pytest.mark.parametrize(
    ("tasks", "path", "body"),
    [
        (LABELS, "/classify", {"input": [SHORT, SHORT]}),
        (LABELS, "/v1/classifier", {"input": [SHORT, LONG]}),
        (VECTORS, "/v1/embeddings", {"input": [SHORT, LONG]}),
        (VECTORS, "/pooling", {"input": [SHORT, LONG]}),
        (VECTORS, "/embed", {"inputs": SHORT}),
    ],
)
def test_no_header_where_nothing_was_cut_or_the_answer_says_so(
    tasks: tuple[TaskType, ...], path: str, body: dict[str, Any]
) -> None:
    answer, _ = post(tasks, path, **body)
    assert answer.status_code == 200 and "x-truncated" not in answer.headers


@pytest.mark.parametrize(("tasks", "path"), [(LABELS, "/classify"), (LABELS, "/pooling"), (VECTORS, "/pooling")])
def test_an_entry_says_that_its_input_was_cut(tasks: tuple[TaskType, ...], path: str) -> None:
    first, second = post(tasks, path, input=[SHORT, LONG])[0].json()["data"]
    assert "truncated" not in first and second["truncated"] is True


def test_the_classifier_says_what_was_cut() -> None:
    assert post(LABELS, "/v1/classifier", input=[SHORT, LONG])[0].json()["truncated"] == [False, True]
    assert "truncated" not in post(LABELS, "/v1/classifier", input=[SHORT])[0].json()


@pytest.mark.parametrize(
    ("tasks", "path", "body"),
    [
        (LABELS, "/classify", {"input": SHORT}),
        ((TaskType.RERANK,), "/score", {"text_1": SHORT, "text_2": SHORT}),
        (VECTORS, "/api/embed", {"input": SHORT}),
    ],
)
def test_a_request_may_refuse_to_be_cut(tasks: tuple[TaskType, ...], path: str, body: dict[str, Any]) -> None:
    config = replace(CONFIG, auto_truncate=False)
    for own, given, expected in ((CONFIG, {}, True), (CONFIG, {"truncate": False}, False), (config, {}, False)):
        answer, engine = post(tasks, path, own, **body, **given)
        assert answer.status_code == 200 and engine.requests[0].params.truncate is expected
    _, engine = post(tasks, path, config, **body, truncate=True)
    assert engine.requests[0].params.truncate is True


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/embeddings", {"prompt": SHORT}),
        ("/vectors", {"text": SHORT}),
        ("/rerank", {"query": SHORT, "documents": [SHORT], "property": ""}),
    ],
)
def test_what_has_no_word_for_it_goes_by_the_option(path: str, body: dict[str, Any]) -> None:
    for config, expected in ((CONFIG, True), (replace(CONFIG, auto_truncate=False), False)):
        answer, engine = post(VECTORS, path, config, **body)
        assert answer.status_code == 200 and engine.requests[0].params.truncate is expected


def test_a_header_has_an_end() -> None:
    response = Response(outputs={}, num_tokens=[1] * 3000, truncated=[True] * 3000)
    name, value = truncated_header(response)
    places = value.split(b",")
    assert name == b"x-truncated" and len(value) < 8000 and places[:2] == [b"0", b"1"] and places[-1] == b"..."
    assert len(places) == 1001
    named = truncated_header(response, lambda place: f"documents[{place}]" if place else "query")[1]
    assert named.startswith(b"query,documents[1],") and named.endswith(b"],...") and 5900 < len(named) < 6100
