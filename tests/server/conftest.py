"""A real server on a free loopback port, in a thread, over the fake engine."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvicorn

from rtp_llm.config import ServerConfig
from rtp_llm.server import create_app
from rtp_llm.server.engine_like import EngineLike
from rtp_llm.server.listening import listen
from rtp_llm.server.protocol import Protocol
from tests.server.fake_engine import FakeEngine

MAX_BODY_BYTES = 64 << 10
CONFIG = ServerConfig(
    checkpoint_path="fake", max_body_bytes=MAX_BODY_BYTES, max_client_batch_size=200, concurrency_limit=4
)


@dataclass(frozen=True)
class Address:
    """Where the server listens."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def running_server(engine: EngineLike | list[FakeEngine], config: ServerConfig = CONFIG) -> Iterator[Address]:
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(engine, config),
            log_config=None,
            lifespan="off",
            ws="none",
            proxy_headers=False,
            http=Protocol,
            timeout_keep_alive=config.timeout_keep_alive,
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield Address(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.002)


@pytest.fixture(scope="session")
def shared_engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="session")
def address(shared_engine: FakeEngine) -> Iterator[Address]:
    with running_server(shared_engine) as where:
        yield where


@pytest.fixture
def engine(shared_engine: FakeEngine) -> FakeEngine:
    shared_engine.reset()
    return shared_engine


@pytest.fixture(scope="session")
def _connection(address: Address) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address.url, timeout=20, trust_env=False) as client:
        yield client


@pytest.fixture
def client(_connection: httpx.Client, engine: FakeEngine) -> httpx.Client:
    return _connection


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """For localhost: the certificate chain, its private key, the authority that signed it."""
    trustme = pytest.importorskip("trustme", reason="trustme is not installed: pip install trustme")
    folder = tmp_path_factory.mktemp("certificate")
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    chain, key, signer = folder / "chain.pem", folder / "key.pem", folder / "authority.pem"
    for blob in issued.cert_chain_pems:
        blob.write_to_path(chain, append=True)
    issued.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(signer)
    return chain, key, signer
