"""gRPC beside HTTP in one process: keys, certificates, and an end in order."""

import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from rtp_llm.config import ServerConfig
from rtp_llm.errors import ConfigError
from rtp_llm.server.listening import listen
from rtp_llm.server.turns import Turns
from tests.real_server import free_port
from tests.server.conftest import wait_until
from tests.server.fake_engine import FakeEngine
from tests.server.grpc.conftest import Loop, Stubs, connected, serving
from tests.server.process import process, running_requests

grpc: Any = pytest.importorskip("grpc")
Code = grpc.StatusCode


def test_running_calls_end_and_idle_streams_are_told(stubs: Stubs) -> None:
    http_port, grpc_port = free_port(), free_port()
    done = threading.Event()
    answers: list[int] = []
    request = stubs.messages.EmbedRequest(inputs="a")

    def requests() -> Iterator[Any]:
        yield request
        done.wait(20)

    def ask() -> None:
        url = f"http://127.0.0.1:{http_port}/v1/embeddings"
        answers.append(httpx.post(url, json={"input": "a"}, trust_env=False).status_code)

    with (
        process(0.4, start_port=http_port, grpc_port=grpc_port) as child,
        connected(f"127.0.0.1:{grpc_port}", stubs) as client,
    ):
        thread = threading.Thread(target=ask)
        thread.start()
        call, stream = client.embed.Embed.future(request, timeout=20), client.embed.EmbedStream(requests(), timeout=20)
        wait_until(lambda: running_requests(http_port) == 3)
        child.send_signal(signal.SIGTERM)
        assert len(call.result().embeddings) == len(next(stream).embeddings) == 8
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert (caught.value.code(), "shutting down" in caught.value.details()) == (Code.UNAVAILABLE, True)
        output, errors = child.communicate(timeout=20)
        thread.join()
        done.set()
    assert (answers, output, errors, child.returncode) == ([200], "ended\n", "", 0)


def test_calls_do_not_hold_the_end_for_ever(stubs: Stubs) -> None:
    http_port, grpc_port = free_port(), free_port()
    with (
        process(60, start_port=http_port, grpc_port=grpc_port, shutdown_timeout=1) as child,
        connected(f"127.0.0.1:{grpc_port}", stubs) as client,
    ):
        call = client.embed.Embed.future(stubs.messages.EmbedRequest(inputs="a"), timeout=30)
        wait_until(lambda: running_requests(http_port) == 1)
        child.send_signal(signal.SIGTERM)
        output, errors = child.communicate(timeout=20)
        assert (output, errors, child.returncode) == ("ended\n", "", 0)
        assert (call.code(), "shutting down" in call.details()) == (Code.UNAVAILABLE, True)


def test_a_key_is_needed(loop: Loop, config: ServerConfig, stubs: Stubs) -> None:
    health_pb2: Any = pytest.importorskip("grpc_health.v1.health_pb2")
    health_grpc: Any = pytest.importorskip("grpc_health.v1.health_pb2_grpc")
    engine = FakeEngine()
    request = stubs.messages.EmbedRequest(inputs="a")
    with (
        serving(loop, engine, replace(config, api_key=("k1", "k2"))) as address,
        connected(address, stubs) as client,
    ):
        for metadata in ([], [("authorization", "Bearer k3")], [("authorization", "k1")]):
            with pytest.raises(grpc.RpcError) as caught:
                client.embed.Embed(request, metadata=metadata, timeout=10)
            assert caught.value.code() is Code.UNAUTHENTICATED
            with pytest.raises(grpc.RpcError) as caught:
                next(client.embed.EmbedStream(iter([request]), metadata=metadata, timeout=10))
            assert caught.value.code() is Code.UNAUTHENTICATED
        assert not engine.requests
        for metadata in ([("authorization", "Bearer k1")], [("x-api-key", "k2")]):
            assert len(client.embed.Embed(request, metadata=metadata, timeout=10).embeddings) == 8
        health = health_grpc.HealthStub(client.channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == 1


def test_tls(loop: Loop, config: ServerConfig, stubs: Stubs, certificate: tuple[Path, Path, Path]) -> None:
    chain, key, authority = certificate
    config = replace(config, ssl_certfile=str(chain), ssl_keyfile=str(key))
    with serving(loop, FakeEngine(), config) as address:
        credentials = grpc.ssl_channel_credentials(authority.read_bytes())
        channel = grpc.secure_channel(address.replace("127.0.0.1", "localhost"), credentials)
        with connected(address, stubs, channel) as client:
            assert len(client.embed.Embed(stubs.messages.EmbedRequest(inputs="a"), timeout=10).embeddings) == 8


def test_who_fails_at_the_handshake_writes_no_log(certificate: tuple[Path, Path, Path]) -> None:
    """gRPC's own lines are no JSON, and there is no end of them."""
    chain, key, _ = map(str, certificate)
    grpc_port = free_port()
    with process(start_port=free_port(), grpc_port=grpc_port, ssl_certfile=chain, ssl_keyfile=key) as child:
        with socket.create_connection(("127.0.0.1", grpc_port), timeout=20) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert connection.recv(100) == b""
        child.send_signal(signal.SIGTERM)
        assert child.communicate(timeout=20) == ("ended\n", "")


def test_a_taken_port(loop: Loop, config: ServerConfig) -> None:
    from rtp_llm.server.admission import Admission
    from rtp_llm.server.auth import KeyRing
    from rtp_llm.server.catalog import Catalog
    from rtp_llm.server.grpc import GrpcServer

    async def start(port: int) -> None:
        server = GrpcServer(Catalog([FakeEngine()]), config, Admission(config), KeyRing(config), Turns())
        try:
            server.bind(port)
        finally:
            await server.stop(0)

    with listen("127.0.0.1", 0) as taken, pytest.raises(ConfigError, match="--grpc_port"):
        loop.run(start(taken.getsockname()[1]))
