"""vLLM's embed_dtype, endianness and answers of bytes, against torch's types."""

import base64
import json
from typing import Any

import numpy as np
import pytest

from rtp_llm.server.small_floats import bfloat16, fp8_e4m3, fp8_e5m2
from tests.server.rtp_clients import Served

torch = pytest.importorskip("torch")
TYPES = {
    "float32": (torch.float32, "f4"),
    "float16": (torch.float16, "f2"),
    "bfloat16": (torch.bfloat16, "u2"),
    "fp8_e4m3": (torch.float8_e4m3fn, "u1"),
    "fp8_e5m2": (torch.float8_e5m2, "u1"),
}
TEXTS = ["so sunny", "the weather is lovely today ."]


def torch_bytes(rows: Any, kind: str, order: str = "little") -> bytes:
    dtype, view = TYPES[kind]
    bits = torch.tensor(np.ascontiguousarray(rows)).to(dtype).view(torch.uint8).numpy().reshape(-1).view(f"<{view}")
    return bytes(bits.astype(bits.dtype.newbyteorder(">" if order == "big" else "<")).tobytes())


@pytest.mark.parametrize(
    ("convert", "kind", "largest"),
    [(bfloat16, "bfloat16", 3e38), (fp8_e4m3, "fp8_e4m3", 448), (fp8_e5m2, "fp8_e5m2", 57344)],
)
def test_bits_are_torchs(convert: Any, kind: str, largest: float) -> None:
    """Every exponent, both signs, all ties between neighbours of fp8."""
    random = np.random.default_rng(0)
    spread = np.ldexp(random.uniform(-1, 1, 20_000), random.integers(-30, 9, 20_000)).astype(np.float32)
    ties = (np.arange(-4096, 4096) / 1024).astype(np.float32)
    edges = np.array([0.0, -0.0, largest, -largest, 1e-30, -1e-30], np.float32)
    rows = np.concatenate([spread, ties, edges])
    assert convert(rows).tobytes() == torch_bytes(rows, kind)


def test_what_is_too_large_is_the_largest() -> None:
    assert fp8_e4m3(np.array([1e9, -1e9], np.float32)).tolist() == [0x7E, 0xFE]
    assert fp8_e5m2(np.array([1e9], np.float32)).tolist() == [0x7B]
    assert bfloat16(np.array([3.4e38, -3.4e38], np.float32)).tolist() == [0x7F7F, 0xFF7F]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("order", [None, "native", "little", "big"])
@pytest.mark.parametrize(("path", "key"), [("/v1/embeddings", "embedding"), ("/pooling", "data")])
def test_base64(path: str, key: str, kind: str, order: str | None, m3: Served) -> None:
    answer = m3.post(path, input=TEXTS, encoding_format="base64", embed_dtype=kind, endianness=order)
    for item, row in zip(answer["data"], m3.model.embed(TEXTS), strict=True):
        assert base64.b64decode(item[key]) == torch_bytes(row, kind, order or "little")


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings", "/pooling"])
def test_bytes(path: str, m3: Served) -> None:
    body = {"input": TEXTS, "encoding_format": "bytes", "embed_dtype": "float16", "endianness": "big"}
    answer = m3.client.post(path, json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/octet-stream")
    told = json.loads(answer.headers["metadata"])
    assert (told["model"], told["usage"]) == ("tiny", {"prompt_tokens": 12, "total_tokens": 12})
    for item, row in zip(told["data"], m3.model.embed(TEXTS), strict=True):
        assert (item["embed_dtype"], item["endianness"], item["shape"]) == ("float16", "big", [32])
        assert answer.content[item["start"] : item["end"]] == torch_bytes(row, "float16", "big")
    only = m3.client.post(path, json={**body, "encoding_format": "bytes_only"})
    assert only.content == answer.content and "metadata" not in only.headers


def test_a_matrix_is_one_string_or_one_run_of_bytes(m3: Served) -> None:
    matrices = m3.model.embed_colbert(TEXTS)
    body = {"input": TEXTS, "task": "token_embed"}
    coded = m3.post("/pooling", **body, encoding_format="base64")["data"]
    assert [base64.b64decode(item["data"]) for item in coded] == [rows.tobytes() for rows in matrices]
    answer = m3.client.post("/pooling", json={**body, "encoding_format": "bytes"})
    assert answer.content == b"".join(rows.tobytes() for rows in matrices)
    assert [item["shape"] for item in json.loads(answer.headers["metadata"])["data"]] == [
        list(rows.shape) for rows in matrices
    ]


def test_accept_and_bytes(m3: Served) -> None:
    """What Accept asks for goes first, and says its own shape."""
    body = {"input": TEXTS, "encoding_format": "bytes"}
    answer = m3.client.post("/v1/embeddings", json=body, headers={"accept": "application/x-npy"})
    assert answer.headers["x-embedding-shape"] == "2,32"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {"embed_dtype": "float16", "output_dtype": "int8"}, "embed_dtype"),
        ("/v1/embeddings", {"encoding_format": "bytes", "output": ["colbert"]}, None),
        ("/v1/embeddings", {"encoding_format": "hex"}, "encoding_format"),
        ("/pooling", {"embed_dtype": "int4"}, "embed_dtype"),
        ("/pooling", {"endianness": "middle"}, "endianness"),
    ],
)
def test_refusals(path: str, body: dict[str, Any], param: str | None, m3: Served) -> None:
    assert m3.refuse(path, input=TEXTS, **body)["param"] == param


def test_a_header_describes_so_many_inputs(tmp_path_factory: pytest.TempPathFactory) -> None:
    from dataclasses import replace

    import httpx

    from tests.server.conftest import CONFIG, running_server
    from tests.server.fake_engine import FakeEngine

    with running_server(FakeEngine(), replace(CONFIG, max_client_batch_size=1000)) as address:
        body = {"input": ["a"] * 257, "encoding_format": "bytes"}
        refused = httpx.post(f"{address.url}/v1/embeddings", json=body)
        assert refused.status_code == 400 and "bytes_only" in refused.json()["message"]
        assert httpx.post(f"{address.url}/v1/embeddings", json={**body, "input": ["a"] * 256}).status_code == 200
        assert httpx.post(f"{address.url}/v1/embeddings", json={**body, "encoding_format": "bytes_only"}).is_success
