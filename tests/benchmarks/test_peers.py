from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import ENGINES, OURS, Engine, Setup, batching, process, select
from benchmarks.peers.process import EngineFailed, EngineProcess


@pytest.mark.parametrize(
    ("patterns", "count"),
    [("", len(ENGINES)), (OURS, 5), ("ctranslate2", 4), ("fused wide, bs8", 2), ("openvino default", 2)],
)
def test_select(patterns: str, count: int) -> None:
    assert len(select(patterns)) == count


def test_select_lists_what_exists() -> None:
    with pytest.raises(ValueError, match="no engine is called 'onx'; there are: rtp_llm, "):
        select("onx")


def test_missing_packages_are_named() -> None:
    assert Engine("json", ("json", "no_such_package"), ()).missing() == ["no_such_package"]


def test_converted_checkpoints_of_one_name_do_not_collide() -> None:
    folders = {Setup(Path(parent) / "model", Path("models")).converted("onnx") for parent in ("/a", "/b")}
    assert len(folders) == 2


@pytest.mark.parametrize("max_tokens", [1, 16, 64, 1000])
def test_split_covers_every_text_once_within_the_budget(max_tokens: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 40, 50).tolist()
    batches = batching.split(lengths, max_tokens)
    assert sorted(index for batch in batches for index in batch) == list(range(50))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= max_tokens for batch in batches)


@pytest.mark.parametrize("workers", [1, 2])
def test_batched_answers_in_the_texts_order(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setattr(batching, "load_tokenizer", lambda setup: lambda texts: [[len(t)] * len(t) for t in texts])
    setup = Setup(Path("model"), Path("models"))

    def forward(ids: batching.Ids) -> np.ndarray:
        return np.array([[row[0]] for row in ids], np.float32)

    embed = batching.batched(setup, forward, workers, max_tokens=8)
    assert embed(["aaaa", "b", "cc", "ddddddd", "ee"]).ravel().tolist() == [4, 1, 2, 7, 2]


def test_an_engine_that_cannot_load_says_why(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EngineFailed, match="KeyError: 'no such engine'"):
        EngineProcess("no such engine", Setup(tmp_path, tmp_path), {})
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize("limit", ["_PATIENCE", "_IDLE"])
def test_an_engine_that_does_not_answer_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str) -> None:
    monkeypatch.setattr(process, "_LOOK_AGAIN", 0.0)
    monkeypatch.setattr(process, limit, 0.0)
    with pytest.raises(EngineFailed, match="no answer after 0 s, of which the last 0 without work"):
        EngineProcess("no such engine", Setup(tmp_path, tmp_path), {})


def test_latencies_are_of_the_first_text_alone() -> None:
    seen: list[list[str]] = []

    def embed(texts: list[str]) -> np.ndarray:
        seen.append(texts)
        return np.zeros((1, 1), np.float32)

    assert len(process.latencies(embed, {"short": ["a", "b"]}, "short", 3)) == 3
    assert seen == [["a"]] * 3
