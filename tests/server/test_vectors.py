"""Types of numbers, raw bytes and prompts of /v1/embeddings; Cohere's /v2/embed and /v1/embed."""

import base64
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import FloatArray
from rtp_llm.server.vectors import converted
from tests.server.rtp_clients import Served, serving
from tests.tasks.checkpoints import save

sentence_transformers = pytest.importorskip("sentence_transformers")

TEXTS = ["so sunny outside", "the weather is lovely today .", "he drove to stadium " * 40]
INT8_IN_BASE64 = {"encoding_format": "base64", "output_dtype": "int8"}
DTYPES = {
    "float": "<f4", "float32": "<f4", "float16": "<f2", "int8": "i1", "uint8": "u1", "binary": "i1", "ubinary": "u1"
}  # fmt: skip


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from serving(save, tmp_path_factory, "dense")


def rows_of(served: Served, kind: str, **params: Any) -> Any:
    normalize = True if kind in ("int8", "uint8") else None
    return converted(served.model.embed(TEXTS, normalize=normalize, **params), kind)


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_output_dtype(kind: str, encoding_format: str, dense: Served) -> None:
    answer = dense.post("/v1/embeddings", input=TEXTS, output_dtype=kind, encoding_format=encoding_format)
    for item, row in zip(answer["data"], rows_of(dense, kind), strict=True):
        given = item["embedding"]
        if encoding_format == "base64":
            given = np.frombuffer(base64.b64decode(given), DTYPES[kind])
        np.testing.assert_array_equal(np.array(given, DTYPES[kind]), row)
    assert [item.get("truncated", False) for item in answer["data"]] == [False, False, True]


@pytest.mark.parametrize("kind", DTYPES)
def test_raw_bytes(kind: str, dense: Served) -> None:
    body = {"input": TEXTS, "output_dtype": kind, "dimensions": 16}
    raw = dense.client.post("/v1/embeddings", json=body, headers={"accept": "application/octet-stream"})
    npy = dense.client.post("/v1/embeddings", json=body, headers={"accept": "application/x-npy"})
    expected = rows_of(dense, kind, dimensions=16)
    np.testing.assert_array_equal(np.frombuffer(raw.content, DTYPES[kind]).reshape(3, -1), expected)
    np.testing.assert_array_equal(np.load(BytesIO(npy.content)), expected)
    assert raw.headers["content-type"] == "application/octet-stream"
    assert (raw.headers["x-embedding-shape"], raw.headers["x-truncated"]) == ("3,16", "2")


@pytest.mark.parametrize("precision", ["binary", "ubinary"])
def test_binary_types_are_those_of_sentence_transformers(precision: Any) -> None:
    rows = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    rows[0, :8] = 0
    theirs = sentence_transformers.quantize_embeddings(rows, precision)
    np.testing.assert_array_equal(converted(rows, precision), theirs)


@pytest.mark.parametrize("dimension", [32, 384, 1024, 4096])
def test_int8_keeps_cosines(dimension: int) -> None:
    rows: FloatArray = np.random.default_rng(1).standard_normal((20, dimension)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    whole = rows @ rows.T
    for kind, zero in (("int8", 0), ("uint8", 128)):
        levels = converted(rows, kind).astype(np.float32) - zero
        assert np.abs(levels).max() <= 127
        products = levels @ levels.T
        np.testing.assert_allclose(products / products[0, 0], whole / whole[0, 0], atol=0.03)


@pytest.mark.parametrize(
    ("names", "same"),
    [
        ({"output_dimension": 8}, {"dimensions": 8}),
        ({"dimensions": 0, "modality": "text"}, {}),
        ({"normalized": True}, {"normalize": True}),
        ({"embedding_type": "base64"}, {"encoding_format": "base64"}),
        ({"embedding_type": "binary"}, {"output_dtype": "binary"}),
        ({"embedding_type": ["ubinary"]}, {"output_dtype": "ubinary"}),
        ({"embedding_types": ["int8"]}, {"output_dtype": "int8"}),
        ({"encoding_type": "int8", "embedding_type": ["int8"], "output_dtype": "int8"}, {"output_dtype": "int8"}),
        ({"encoding_type": "base64", "encoding_format": "base64"}, {"encoding_format": "base64"}),
        ({"encoding_type": "base64", "output_dtype": "int8"}, INT8_IN_BASE64),
        ({"encoding_type": "base64", "encoding_format": "base64", "output_dtype": "int8"}, INT8_IN_BASE64),
        ({"encoding_type": "int8", "encoding_format": "base64"}, INT8_IN_BASE64),
        ({"input_type": "query"}, {"prompt_name": "query"}),
        ({"input_type": "search_query"}, {"prompt_name": "query"}),
        ({"task": "retrieval.passage"}, {"prompt_name": "document"}),
        ({"task": "text-matching", "truncation": True}, {}),
        ({"input_type": None, "late_chunking": False, "embedding_types": []}, {}),
    ],
)
def test_other_clients_names(names: dict[str, Any], same: dict[str, Any], dense: Served) -> None:
    assert dense.post("/v1/embeddings", input=TEXTS, **names) == dense.post("/v1/embeddings", input=TEXTS, **same)


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({"output_dtype": "int4"}, "'ubinary'", "output_dtype"),
        ({"embedding_type": "int4"}, "'int4' is not one of float", "embedding_type"),
        ({"embedding_types": ["float", "int8"]}, "/v2/embed gives several", "embedding_types"),
        ({"embedding_type": "binary", "encoding_type": "ubinary"}, "'ubinary' are at odds", "encoding_type"),
        ({"embedding_types": ["int8"], "encoding_type": "float"}, "and encoding_type 'float' are at", "encoding_type"),
        ({"encoding_type": "int8", "output_dtype": "float16"}, "encoding_type 'int8' and output_dtype", "output_dtype"),
        ({"encoding_type": "base64", "encoding_format": "float"}, "'float' are at odds", "encoding_format"),
        ({"embedding_type": "base64", "encoding_format": "bytes"}, "'bytes' are at odds", "encoding_format"),
        ({"output_dtype": "int8", "normalize": False}, "int8 is made of unit vectors", "output_dtype"),
        ({"input_type": "poem"}, "'poem' is not one of query, document", "input_type"),
        ({"late_chunking": True}, "this model reads 64 at once", "input"),
        ({"late_chunking": True, "chunking": "mean"}, "send one of them", "late_chunking"),
        ({"truncate_prompt_tokens": 0}, "0 is not -1, nor at least 1", "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 2}, "no room beside 2 special tokens", None),
        ({"truncation": False}, "input[2] has at least 162 tokens and the limit is 64", "input[2]"),
        ({"output_dimension": 33}, "33 is not between 1 and 32", "dimensions"),
    ],
)
def test_refusals(body: dict[str, Any], message: str, param: str, dense: Served) -> None:
    error = dense.refuse("/v1/embeddings", input=TEXTS, **body)
    assert message in error["message"] and error["param"] == param


@pytest.mark.parametrize("path", ["/v2/embed", "/v1/embed"])
def test_cohere_by_type(path: str, dense: Served) -> None:
    kinds = ["float", "int8", "uint8", "binary", "ubinary"]
    answer = dense.post(path, texts=TEXTS, embedding_types=[*kinds, "base64"], input_type="search_document", model="m")
    assert (answer["response_type"], answer["texts"]) == ("embeddings_by_type", TEXTS)
    assert answer["meta"]["billed_units"]["input_tokens"] == 5 + 8 + 64
    unit = dense.model.embed(TEXTS, normalize=True)
    for kind in kinds:
        np.testing.assert_array_equal(np.array(answer["embeddings"][kind], DTYPES[kind]), converted(unit, kind))
    for text, row in zip(answer["embeddings"]["base64"], unit, strict=True):
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(text), "<f4"), row)


def test_cohere_plain(dense: Served) -> None:
    expected = dense.model.embed(TEXTS)
    old = dense.post("/v1/embed", texts=TEXTS)
    new = dense.post("/v2/embed", inputs=[{"content": [{"type": "text", "text": text}]} for text in TEXTS])
    assert old["response_type"] == "embeddings_floats"
    for rows in (old["embeddings"], new["embeddings"]["float"]):
        np.testing.assert_array_equal(np.array(rows, np.float32), expected)
    assert len(dense.post("/v2/embed", texts=["a"], output_dimension=4)["embeddings"]["float"][0]) == 4
    start = dense.post("/v2/embed", texts=TEXTS[2:], truncate="START")["embeddings"]["float"][0]
    assert start == dense.post("/v1/embeddings", input=TEXTS[2], truncation_side="left")["data"][0]["embedding"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "give either texts or inputs"),
        ({"texts": []}, "at least one text"),
        ({"texts": ["a"], "images": ["data:"]}, "images: a text model"),
        ({"inputs": [{"content": [{"type": "image_url"}]}]}, "inputs[0].content: parts of type text"),
        ({"texts": ["a"], "embedding_types": ["int4"]}, "'int4' is not one of"),
        ({"texts": ["a " * 99], "truncate": "NONE"}, "the limit is 64"),
        ({"texts": ["a"], "input_type": "poem"}, "'poem' is not one of"),
    ],
)
def test_cohere_refusals(body: dict[str, Any], message: str, dense: Served) -> None:
    answer = dense.client.post("/v2/embed", json=body)
    assert answer.status_code == 400 and list(answer.json()) == ["message"] and message in answer.json()["message"]
