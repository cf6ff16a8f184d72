"""What is wrong with an input is told by the name of the field in which the client sent it, on every route."""

from collections.abc import Iterator
from typing import Any

import pytest

from rtp_llm.server.dispatch import DIALECTS
from tests.server.rtp_clients import Served, serving
from tests.tasks.checkpoints import save, save_m3

pytest.importorskip("torch")

LIMIT = 1000  # characters
HEAD = "BertForSequenceClassification"
FAR = 10**6  # a token id that no vocabulary of the tests has
BIG = "a" * (LIMIT + 1)
GOOD = "he drove"


@pytest.fixture(scope="module")
def m3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from serving(save_m3, tmp_path_factory, "m3", max_input_characters=LIMIT)


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    def make(folder: Any) -> None:
        save(folder, HEAD, num_labels=1)

    yield from serving(make, tmp_path_factory, "reranker", max_input_characters=LIMIT)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A reranker that takes few tokens a request."""

    def make(folder: Any) -> None:
        save(folder, HEAD, num_labels=1)

    yield from serving(make, tmp_path_factory, "small", max_request_tokens=100)


def parts(text: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text}]}


PAIR = {"query": GOOD, "documents": [GOOD, BIG]}
# path, body, the model that is served, what names the place
ROWS: list[tuple[str, dict[str, Any], str, str]] = [
    ("/v1/embeddings", {"input": [GOOD, BIG]}, "m3", "input[1]"),
    ("/v1/embeddings", {"input": [[5], [FAR]]}, "m3", "input[1]"),
    ("/embeddings", {"input": [GOOD, {"text": BIG}]}, "m3", "input[1]"),
    ("/v1/embeddings/dense", {"input": [GOOD, BIG]}, "m3", "input[1]"),
    ("/v1/embeddings/sparse", {"input": [GOOD, BIG]}, "m3", "input[1]"),
    ("/v1/embeddings/colbert", {"input": [GOOD, BIG]}, "m3", "input[1]"),
    ("/v1/multi-vector", {"input": [GOOD, BIG]}, "m3", "input[1]"),
    ("/v1/embeddings/similarity", {"left": [GOOD], "right": [GOOD, BIG]}, "m3", "right[1]"),
    ("/v1/embeddings/similarity", {"left": [BIG], "right": [GOOD]}, "m3", "left[0]"),
    ("/v2/embed", {"texts": [GOOD, BIG]}, "m3", "texts[1]"),
    ("/v2/embed", {"inputs": [parts(GOOD), parts(BIG)]}, "m3", "inputs[1]"),
    ("/v1/embed", {"texts": [GOOD, BIG]}, "m3", "texts[1]"),
    ("/rerank", PAIR, "reranker", "documents[1]"),
    ("/rerank", PAIR, "m3", "documents[1]"),
    ("/rerank", {"query": BIG, "documents": [GOOD]}, "m3", "query"),
    ("/rerank", {"query": GOOD, "texts": [GOOD, BIG]}, "reranker", "texts[1]"),
    ("/v1/rerank", PAIR, "reranker", "documents[1]"),
    ("/v2/rerank", PAIR, "reranker", "documents[1]"),
    ("/v1/reranker", PAIR, "reranker", "documents[1]"),
    ("/rerank", {"query": GOOD, "documents": BIG}, "reranker", "documents"),
    ("/v1/ranking", {"query": {"text": GOOD}, "passages": [{"text": BIG}]}, "reranker", "passages[0].text"),
    ("/v1/ranking", {"query": {"text": BIG}, "passages": [{"text": GOOD}]}, "m3", "query.text"),
    ("/score", {"text_1": GOOD, "text_2": [GOOD, BIG]}, "reranker", "text_2[1]"),
    ("/score", {"queries": GOOD, "documents": [GOOD, BIG]}, "m3", "documents[1]"),
    ("/v1/score", {"data_1": BIG, "data_2": [GOOD]}, "m3", "data_1"),
    ("/score", {"text_1": [BIG, GOOD], "text_2": [GOOD, GOOD]}, "m3", "text_1[0]"),
    ("/score", {"queries": GOOD, "items": ["a"] * 51}, "m3", "items"),
    ("/classify", {"input": [GOOD, BIG]}, "reranker", "input[1]"),
    ("/v1/classifier", {"input": [GOOD, [GOOD, BIG]]}, "reranker", "input[1]"),
    ("/pooling", {"input": [GOOD, BIG]}, "m3", "input[1]"),
    ("/embed", {"inputs": [GOOD, BIG]}, "m3", "inputs[1]"),
    ("/embed", {"inputs": [[5], [FAR]]}, "m3", "inputs[1]"),
    ("/embed_all", {"inputs": [GOOD, BIG]}, "m3", "inputs[1]"),
    ("/embed_sparse", {"inputs": [GOOD, BIG]}, "m3", "inputs[1]"),
    ("/similarity", {"inputs": {"source_sentence": GOOD, "sentences": [GOOD, BIG]}}, "m3", "inputs.sentences[1]"),
    ("/similarity", {"inputs": {"source_sentence": BIG, "sentences": [GOOD]}}, "m3", "inputs.source_sentence"),
    ("/predict", {"inputs": [[GOOD], [BIG]]}, "reranker", "inputs[1]"),
    ("/invocations", {"inputs": [GOOD, BIG]}, "m3", "inputs[1]"),
    ("/vertex", {"instances": [{"inputs": GOOD}, {"inputs": [GOOD, BIG]}]}, "m3", "instances[1]: inputs[1]"),
    ("/", {"inputs": [GOOD, BIG]}, "m3", "inputs[1]"),
    ("/", {"input": [GOOD, BIG]}, "m3", "input[1]"),
    ("/api/embed", {"input": [GOOD, BIG]}, "m3", "input[1]"),
    ("/api/embed", {"input": BIG}, "m3", "input"),
    ("/api/embeddings", {"prompt": BIG}, "m3", "prompt"),
    ("/vectors", {"text": BIG}, "m3", "text"),
    ("/vectors", {"texts": [GOOD, BIG]}, "m3", "texts[1]"),
    ("/rerank", {**PAIR, "property": ""}, "reranker", "documents[1]"),
    ("/rerank", {"query": BIG, "property": GOOD}, "m3", "query"),
    ("/rerank", {"query": GOOD, "property": BIG}, "m3", "property"),
    ("/tokenize", {"prompt": BIG}, "m3", "prompt"),
    ("/tokenize", {"inputs": [GOOD, BIG]}, "m3", "inputs[1]"),
    ("/tokenizer/encode", {"prompt": BIG}, "m3", "prompt"),
    ("/detokenize", {"tokens": [5, FAR]}, "m3", "tokens"),
    ("/decode", {"ids": [5, FAR]}, "m3", "ids"),
    ("/decode", {"ids": [[5], [FAR]]}, "m3", "ids[1]"),
]


@pytest.mark.parametrize(("path", "body", "name", "place"), ROWS)
def test_the_clients_own_field(
    path: str, body: dict[str, Any], name: str, place: str, request: pytest.FixtureRequest
) -> None:
    served: Served = request.getfixturevalue(name)
    answer = served.client.post(path, json=body)
    assert 400 <= answer.status_code < 500, answer.text
    told = answer.json()
    error = told.get("error")
    if isinstance(error, dict):
        assert error["param"] == place
    else:  # Cohere's and TEI's forms have the message alone
        assert place in told.get("message", error)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/rerank", {"query": GOOD, "documents": [GOOD] * 40}, "documents"),
        ("/v1/reranker", {"query": GOOD, "documents": [GOOD] * 40}, "documents"),
        ("/v1/ranking", {"query": {"text": GOOD}, "passages": [{"text": GOOD}] * 40}, "passages"),
        ("/score", {"text_1": GOOD, "text_2": [GOOD] * 40}, "text_2"),
        ("/classify", {"input": [GOOD] * 40}, "input"),
    ],
)
def test_the_clients_own_field_of_what_is_too_much_together(
    path: str, body: dict[str, Any], field: str, small: Served
) -> None:
    error = small.refuse(path, **body)
    assert "over 100 tokens (max_request_tokens)" in error["message"] and error["param"] == field


def test_every_route_is_here() -> None:
    assert {path for path, *_ in ROWS} == set(DIALECTS) - {"/v1/custom", "/api/show"}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/embeddings", {"input": "a", "dimensions": 0}, 200),  # Infinity's client always sends it, and means all
        ("/embeddings", {"input": "a", "dimensions": 0}, 200),
        ("/v1/embeddings", {"input": "a", "output_dimension": 0}, 400),
        ("/pooling", {"input": "a", "dimensions": 0}, 400),
        ("/v2/embed", {"texts": ["a"], "output_dimension": 0}, 400),
        ("/embed", {"inputs": "a", "dimensions": 0}, 422),
        ("/api/embed", {"input": "a", "dimensions": 0}, 200),  # Go's clients send it where it is not set
        ("/vectors", {"text": "a", "config": {"dimensions": 0}}, 400),
    ],
)
def test_no_dimensions(path: str, body: dict[str, Any], status: int, m3: Served) -> None:
    answer = m3.client.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert status == 200 or "not between 1 and 32" in answer.text
