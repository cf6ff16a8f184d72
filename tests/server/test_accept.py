"""Accept: which form of an answer it asks for, by weights and order, and which routes have others than JSON."""

import io

import httpx
import numpy as np
import pytest

from rtp_llm.core import TaskType
from rtp_llm.server.accept import preferred
from tests.server.conftest import running_server
from tests.server.fake_engine import MAX_SEQ_LEN, FakeEngine, vector_of

JSON, RAW, NPY = "application/json", "application/octet-stream", "application/x-npy"
TEXTS = ["a", "b " * MAX_SEQ_LEN]


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (RAW, RAW),
        (f"{RAW}, {JSON}", RAW),
        (f"{JSON}, {RAW}", JSON),
        (f"{JSON};q=0.5, {RAW}", RAW),
        (f"{JSON}, {RAW};q=0.5", JSON),
        (f"{RAW}, {NPY}", RAW),
        (f"{RAW};q=0.1,{NPY} ; Q=0.2", NPY),
        (f"*/*, {NPY}", NPY),
        (f"*/*, {NPY};q=0.9", JSON),
        (f"{RAW};q=0, */*;q=0.1", JSON),
        (f"{RAW};q=x", RAW),
        (f"{RAW};q=nan", JSON),
        ("Application/Octet-Stream; charset=binary", RAW),
        (f"text/html, application/*, {NPY};q=0.1", JSON),
        ("text/html", JSON),
        ("*/*", JSON),
        ("", JSON),
        (",;,", JSON),
    ],
)
def test_which_is_preferred(accept: str, expected: str) -> None:
    assert preferred(accept.encode(), {RAW.encode(), NPY.encode()}).decode() == expected


@pytest.mark.parametrize(("path", "field"), [("/v1/embeddings", "input"), ("/embed", "inputs"), ("/", "inputs")])
@pytest.mark.parametrize("accept", [f"{NPY}, {JSON}", f"{RAW}, */*;q=0.1"])
def test_dense_vectors_in_bytes(path: str, field: str, accept: str) -> None:
    with running_server(FakeEngine()) as address:
        answer = httpx.post(address.url + path, json={field: TEXTS}, headers={"accept": accept}, trust_env=False)
    kind = accept.partition(",")[0]
    assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
    assert (answer.headers["x-embedding-shape"], answer.headers["x-truncated"]) == ("2,8", "1")
    rows = np.load(io.BytesIO(answer.content)) if kind == NPY else np.frombuffer(answer.content, "<f4").reshape(2, 8)
    np.testing.assert_array_equal(rows, np.stack([vector_of(text) for text in TEXTS]))


@pytest.mark.parametrize("path", ["/embed_all", "/embed_sparse"])
@pytest.mark.parametrize("accept", [RAW, f"{NPY}, {JSON}"])
def test_of_what_is_no_dense_vector_there_are_no_bytes(path: str, accept: str) -> None:
    with running_server(FakeEngine(tasks=(TaskType.DENSE, TaskType.SPARSE, TaskType.TOKENS))) as address:
        answer = httpx.post(address.url + path, json={"inputs": "a"}, headers={"accept": accept}, trust_env=False)
        assert answer.status_code == 422 and "raw bytes and .npy hold dense vectors" in answer.json()["error"]
        json_first = f"{JSON}, {accept}"
        assert (
            httpx.post(
                address.url + path, json={"inputs": "a"}, headers={"accept": json_first}, trust_env=False
            ).status_code
            == 200
        )
