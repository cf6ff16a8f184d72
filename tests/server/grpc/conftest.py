"""gRPC servers on free loopback ports, on an event loop in a thread, and stubs that protoc made."""

import asyncio
import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rtp_llm.config import ServerConfig
from rtp_llm.server.admission import Admission
from rtp_llm.server.auth import KeyRing
from rtp_llm.server.catalog import Catalog
from rtp_llm.server.engine_like import EngineLike
from rtp_llm.server.turns import Turns
from tests.server.conftest import CONFIG
from tests.server.fake_engine import FakeEngine

grpc: Any = pytest.importorskip("grpc", reason="gRPC is not installed: pip install 'rtp-llm[grpc]'")


class Stubs(NamedTuple):
    """What protoc makes of tei.proto."""

    messages: Any
    services: Any


class Client(NamedTuple):
    """A channel with a stub for each service."""

    channel: Any
    embed: Any
    predict: Any
    rerank: Any
    tokenize: Any
    info: Any


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Stubs:
    protoc = pytest.importorskip("grpc_tools.protoc", reason="protoc is not installed: pip install grpcio-tools")
    folder = tmp_path_factory.mktemp("stubs")
    with resources.as_file(resources.files("rtp_llm.server.grpc").joinpath("tei.proto")) as proto:
        outputs = [f"--python_out={folder}", f"--grpc_python_out={folder}", f"--descriptor_set_out={folder}/tei.bin"]
        assert protoc.main(["protoc", f"-I{proto.parent}", *outputs, str(proto)]) == 0
    sys.path.insert(0, str(folder))
    try:
        return Stubs(importlib.import_module("tei_pb2"), importlib.import_module("tei_pb2_grpc"))
    finally:
        sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def descriptor_file(stubs: Stubs) -> Path:
    return Path(stubs.messages.__file__).with_name("tei.bin")


class Loop:
    """An event loop in a thread, as uvicorn has one."""

    def __init__(self) -> None:
        uvloop = pytest.importorskip("uvloop")
        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture(scope="session")
def loop() -> Iterator[Loop]:
    running = Loop()
    yield running
    running.close()


@contextmanager
def serving(loop: Loop, engine: EngineLike, config: ServerConfig, *more: EngineLike) -> Iterator[str]:
    """A gRPC server -> its address."""
    from rtp_llm.server.grpc import GrpcServer

    async def start() -> tuple[Any, int]:
        server = GrpcServer(Catalog([engine, *more]), config, Admission(config), KeyRing(config), Turns())
        port = server.bind(0)
        await server.start()
        return server, port

    server, port = loop.run(start())
    try:
        yield f"127.0.0.1:{port}"
    finally:
        loop.run(server.stop(0))


@contextmanager
def connected(address: str, stubs: Stubs, channel: Any = None) -> Iterator[Client]:
    channel = channel or grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])
    names = ("Embed", "Predict", "Rerank", "Tokenize", "Info")
    with channel:
        yield Client(channel, *(getattr(stubs.services, f"{name}Stub")(channel) for name in names))


@pytest.fixture(scope="session")
def config() -> ServerConfig:
    return ServerConfig(**{**vars(CONFIG), "host": "127.0.0.1"})


@pytest.fixture(scope="session")
def fake_address(loop: Loop, config: ServerConfig, shared_engine: FakeEngine) -> Iterator[str]:
    with serving(loop, shared_engine, config) as address:
        yield address


@pytest.fixture(scope="session")
def _fake_client(fake_address: str, stubs: Stubs) -> Iterator[Client]:
    with connected(fake_address, stubs) as made:
        yield made


@pytest.fixture
def fake(_fake_client: Client, engine: FakeEngine) -> Client:
    """A client of the fake engine, which is as new."""
    return _fake_client
