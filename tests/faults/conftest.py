"""The real engine and the real HTTP server around a runtime and a tokeniser that break on demand."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from rtp_llm.engine.engine import Engine
from tests.engine.fakes import FakeRuntime, make_engine
from tests.server.conftest import CONFIG, running_server


class BreakableRuntime(FakeRuntime):
    """`broken` is called at the start of each batch; `busy` batches run."""

    broken: Callable[[], object] | None = None
    busy = 0

    def run(self, items: Any, num_cores: int) -> Any:
        self.busy += 1
        try:
            if self.broken is not None:
                self.broken()
            return super().run(items, num_cores)
        finally:
            self.busy -= 1


@dataclass
class Faulty:
    """A server and the parts of it that can be broken."""

    engine: Engine
    runtime: BreakableRuntime
    port: int
    client: httpx.Client

    def ask(self, *texts: str, **options: Any) -> httpx.Response:
        return self.client.post("/v1/embeddings", json={"input": list(texts)}, **options)

    def works(self) -> bool:
        """Whether an ordinary request is answered as ever."""
        answer = self.ask("hello")
        return answer.status_code == 200 and self.client.get("/health").status_code == 200


@contextmanager
def serving(**options: Any) -> Iterator[Faulty]:
    """A server over a breakable runtime; `options` are the engine's."""
    runtime = BreakableRuntime()
    engine = make_engine(runtime, **options)
    engine.warm_up()
    try:
        with running_server(engine, CONFIG) as address:
            with httpx.Client(base_url=address.url, timeout=10, trust_env=False) as client:
                yield Faulty(engine, runtime, address.port, client)
    finally:
        runtime.gate.set()
        engine.close(timeout=5)


@pytest.fixture
def server() -> Iterator[Faulty]:
    with serving() as faulty:
        yield faulty
