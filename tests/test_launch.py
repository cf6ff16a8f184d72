"""Launching as users do: the documented line, the environment, failures that say what to do; and STS-B over HTTP."""

import base64
import gzip
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from rtp_llm.config import ServerConfig
from rtp_llm.core import FloatArray
from rtp_llm.errors import EngineFailure
from rtp_llm.observability.log_output import LogOutput
from rtp_llm.start_server import _announce, serve
from tests.real_server import ROOT, Running, free_port, launch, running
from tests.server.fake_engine import FakeEngine


@pytest.fixture(scope="module")
def server(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The documented line, word for word but for the folder and the port."""
    port = free_port()
    line = (
        f"--checkpoint_path {minilm} --model_type bert --act_type fp16 --start_port {port} "
        "--TASK_TYPE DENSE_EMBEDDING --MAX_CONTEXT_BATCH_SIZE 20"
    )
    with running(line.split(), tmp_path_factory.mktemp("log") / "log", port) as server:
        yield server


def embed(url: str, texts: list[str]) -> FloatArray:
    body = {"input": texts, "encoding_format": "base64"}
    answer = httpx.post(f"{url}/v1/embeddings", json=body, timeout=120).raise_for_status().json()
    rows = [np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4") for item in answer["data"]]
    return np.stack(rows)


def test_documented_line(server: Running) -> None:
    vectors = embed(server.url, ["hello world"])
    assert np.allclose(vectors[0, :3], [-0.034478, 0.03102, 0.00673], atol=1e-4)
    log = server.log.read_text()
    assert "task dense" in log and "steps up to 5120 tokens" in log
    assert re.search("act_type fp16: (the .* kernels compute in fp32|AMX tiles multiply in 15 bits)", log)
    assert "try: curl http://localhost:" in log


def test_sts_b_spearman(server: Running, assets: Path) -> None:
    stats = pytest.importorskip("scipy.stats")
    with gzip.open(assets / "data" / "stsbenchmark.tsv.gz", "rt", encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line in file]
    test = [row for row in rows if row[0] == "test"]
    assert len(test) == 1379
    texts = [row[6] for row in test] + [row[7] for row in test]
    vectors = np.concatenate([embed(server.url, texts[i : i + 500]) for i in range(0, len(texts), 500)])
    cosine = (vectors[:1379] * vectors[1379:]).sum(axis=1)
    spearman = stats.spearmanr(cosine, [float(row[5]) for row in test]).statistic
    assert spearman == pytest.approx(0.8203, abs=0.0003)


def test_a_request_over_the_step_budget_is_split(server: Running) -> None:
    texts = [f"text number {i} " * 20 for i in range(400)]
    vectors = embed(server.url, texts)
    assert vectors.shape == (400, 384)
    assert np.array_equal(vectors[7:9], embed(server.url, texts[7:9]))


def test_environment_only(minilm: Path, tmp_path: Path) -> None:
    port = free_port()
    environ = {
        "CHECKPOINT_PATH": str(minilm),
        "MODEL_TYPE": "bert",
        "START_PORT": str(port),
        "SERVED_MODEL_NAME": "mini",
    }
    with running([], tmp_path / "log", port, **environ) as server:
        assert httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"] == "mini"


def fails(arguments: list[str], tmp_path: Path) -> tuple[int, str]:
    process = launch(arguments, tmp_path / "log")
    return process.wait(60), (tmp_path / "log").read_text()


def test_a_port_that_is_taken(server: Running, tiny_bert: Path, tmp_path: Path) -> None:
    port = server.url.rpartition(":")[2]
    status, log = fails([str(tiny_bert), "--port", port], tmp_path)
    assert status == 1 and f"cannot listen on 127.0.0.1:{port}" in log and "Traceback" not in log


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["/does/not/exist"], 1, "/does/not/exist"),
        (["{empty}"], 1, "config.json"),
        (["{tiny}", "--model_type", "qwen_9"], 2, "'qwen_9', which is not one of bert"),
        (["{tiny}", "--task_type", "RERANKER"], 1, "no classification head"),
        (["{tiny}", "--max_seq_len", "100000"], 2, "512 positions"),
        (["{tiny}", "--device", "cuda"], 2, "device 'cuda' cannot be used"),
    ],
)
def test_what_cannot_start_says_why_in_one_line(
    arguments: list[str], status: int, message: str, tiny_bert: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    filled = [text.format(empty=tmp_path / "empty", tiny=tiny_bert) for text in arguments]
    actual, log = fails(filled, tmp_path)
    assert actual == status and message in log and "Traceback" not in log


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "rtp_llm", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_rtp_llm_embed(tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("the weather\nis lovely\n")
    done = run("embed", str(tiny_bert), str(tmp_path / "texts"), str(tmp_path / "out.npy"), "--dimensions", "8")
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "out.npy").shape == (2, 8)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--help"], 0, "rtp-llm {serve,embed,rerank,classify,quantize,verify}"),
        ([], 0, "usage"),
        (["--version"], 0, "rtp-llm "),
        (["sevre"], 2, "unknown command 'sevre'"),
        (["serve", "--start_prot", "1"], 2, "did you mean --start_port"),
        (["embed", "/no/model", "/no/file", "x.npy"], 1, "/no/file"),
    ],
)
def test_command_line(arguments: list[str], status: int, message: str) -> None:
    done = run(*arguments)
    assert done.returncode == status and message in done.stdout + done.stderr


def test_the_first_call_to_try_is_one_that_works(caplog: pytest.LogCaptureFixture) -> None:
    config = ServerConfig(checkpoint_path="fake", host="::1", api_key=("secret",), ssl_certfile="chain.pem")
    with caplog.at_level(logging.INFO):
        _announce([FakeEngine().info()], config, LogOutput(2), 8088)
    line = caplog.records[-1].getMessage()
    assert line.startswith("try: curl https://[::1]:8088/v1/embeddings -H 'Authorization: Bearer KEY' -H 'Content-Type")


def test_a_device_that_failed_while_other_models_were_loaded_ends_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimpleNamespace(failure="rank 1 has ended", on_failure=None, close=lambda timeout: None)
    monkeypatch.setattr("rtp_llm.engine.loading.load_engines", lambda _: [SimpleNamespace(device=device, info=dict)])
    monkeypatch.setattr("rtp_llm.server.garbage.collect_seldom", lambda: None)
    monkeypatch.setattr("rtp_llm.server.app.serve", lambda *_, **__: pytest.fail("it serves"))
    anything: Any = SimpleNamespace()
    with pytest.raises(EngineFailure, match="rank 1 has ended: the server has ended"):
        serve(ServerConfig(checkpoint_path="fake", start_port=0), [], anything)
