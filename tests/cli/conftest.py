"""Commands in this process, and a checkpoint of each kind."""

import io
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rtp_llm.cli import main
from tests.tasks.checkpoints import save, save_m3

HEAD = "BertForSequenceClassification"
FAST = ("--backend", "numpy", "--Num-Threads=1")


class Done(NamedTuple):
    status: int
    out: str
    err: str


class Shell:
    """Commands in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch = monkeypatch
        self.capsys = capsys

    def __call__(self, *arguments: Any, stdin: bytes = b"") -> Done:
        self.monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status: Any = 0
        try:
            main([*map(str, arguments)])
        except SystemExit as left:
            status = left.code or 0
        return Done(status, *self.capsys.readouterr())


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, capsys)


@pytest.fixture(scope="session")
def m3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    save_m3(folder := tmp_path_factory.mktemp("m3"))
    return folder


@pytest.fixture(scope="session")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    save(folder := tmp_path_factory.mktemp("reranker"), HEAD, num_labels=1)
    return folder


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    save(folder := tmp_path_factory.mktemp("classifier"), HEAD, id2label={0: "bad", 1: "good", 2: "so-so"})
    return folder


@pytest.fixture(scope="session")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tags = {0: "O", 1: "B-PER", 2: "I-PER"}
    save(folder := tmp_path_factory.mktemp("tagger"), "BertForTokenClassification", id2label=tags)
    return folder
