"""A real engine over a tiny random checkpoint, behind a real server."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from rtp_llm import Model
from rtp_llm.config import ServerConfig
from rtp_llm.engine.loading import load_engine
from tests.server.conftest import running_server


class Served(NamedTuple):
    """The client of a server, and the same checkpoint as a library."""

    client: httpx.Client
    model: Model

    def post(self, path: str, **body: Any) -> Any:
        answer = self.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refuse(self, path: str, **body: Any) -> Any:
        """The error object of a body that is answered with 4xx."""
        answer = self.client.post(path, json=body)
        assert 400 <= answer.status_code < 500, answer.text
        return answer.json()["error"]


@contextmanager
def served(folder: Path, **options: Any) -> Iterator[Served]:
    config = ServerConfig(
        checkpoint_path=str(folder), backend="numpy", served_model_name="tiny", max_client_batch_size=50, **options
    )
    engine: Any = load_engine(config, config.model_name)
    try:
        with Model(str(folder), backend="numpy", **options) as model, running_server(engine, config) as address:
            with httpx.Client(base_url=address.url, timeout=20, trust_env=False) as client:
                yield Served(client, model)
    finally:
        engine.close()


def serving(make: Any, tmp_path_factory: Any, name: str, **options: Any) -> Iterator[Served]:
    """The body of a fixture: what `make(folder)` writes, served."""
    folder = tmp_path_factory.mktemp(name)
    make(folder)
    with served(folder, **options) as server:
        yield server
