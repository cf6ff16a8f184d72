"""An engine with a fake runtime."""

from collections.abc import Iterator

import pytest

from rtp_llm.engine.engine import Engine
from tests.engine.fakes import FakeRuntime, make_engine


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def engine(runtime: FakeRuntime) -> Iterator[Engine]:
    engine = make_engine(runtime)
    yield engine
    runtime.gate.set()
    engine.close()
