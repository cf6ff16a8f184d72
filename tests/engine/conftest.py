"""An engine with a fake runtime; a tokenizer of a few words."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rtp_llm.engine.engine import Engine
from tests.engine.fakes import FakeRuntime, make_engine
from tests.engine.tokenizer_folders import VOCAB


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def engine(runtime: FakeRuntime) -> Iterator[Engine]:
    engine = make_engine(runtime)
    yield engine
    runtime.gate.set()
    engine.close()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but a vocab.txt."""
    folder = tmp_path_factory.mktemp("vocab_only")
    (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    return folder
