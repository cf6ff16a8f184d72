"""The process: it says when it listens, ends in order on a signal, and explains why it cannot start."""

import asyncio
import signal
import threading

import httpx
import pytest

from rtp_llm.config import ServerConfig
from rtp_llm.errors import ConfigError
from rtp_llm.server import create_app, serve
from rtp_llm.server.listening import listen
from tests.real_server import free_port
from tests.server.conftest import wait_until
from tests.server.fake_engine import FakeEngine
from tests.server.process import process, running_requests


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_running_requests_end_before_the_process(number: int) -> None:
    port = free_port()
    answers: list[int] = []

    def ask() -> None:
        url = f"http://127.0.0.1:{port}/v1/embeddings"
        answers.append(httpx.post(url, json={"input": "a"}, trust_env=False).status_code)

    with process(0.5, start_port=port) as child:
        thread = threading.Thread(target=ask)
        thread.start()
        wait_until(lambda: running_requests(port) == 1)
        child.send_signal(number)
        output, errors = child.communicate(timeout=20)
        thread.join()
    assert (answers, output, errors, child.returncode) == ([200], "ended\n", "", 0)


def test_shutdown_does_not_wait_for_ever() -> None:
    port = free_port()
    answers: list[httpx.Response] = []

    def ask() -> None:
        url = f"http://127.0.0.1:{port}/v1/embeddings"
        answers.append(httpx.post(url, json={"input": "a"}, trust_env=False, timeout=30))

    with process(60, start_port=port, shutdown_timeout=1) as child:
        thread = threading.Thread(target=ask)
        thread.start()
        wait_until(lambda: running_requests(port) == 1)
        child.send_signal(signal.SIGTERM)
        output, _ = child.communicate(timeout=20)
        thread.join()
    assert (output, child.returncode) == ("ended\n", 0)
    assert answers[0].status_code == 503
    assert "shutting down" in answers[0].json()["error"]["message"]


def test_taken_port_is_one_clear_line() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        config = ServerConfig(checkpoint_path="fake", host="127.0.0.1", start_port=port)
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: .*in use.*--start_port"):
            serve(FakeEngine(), config)


def test_unknown_host_is_one_clear_line() -> None:
    with pytest.raises(ConfigError, match="cannot listen on 203.0.113.1:0: .*--host"):
        listen("203.0.113.1", 0)
    with pytest.raises(ConfigError, match=r"cannot listen on ü\.\.x:0: .*--host"):
        listen("ü..x", 0)


def test_app_runs_under_any_asgi_server() -> None:
    async def ask() -> httpx.Response:
        app = create_app(FakeEngine(), ServerConfig(checkpoint_path="fake"))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://x") as client:
            return await client.post("/v1/embeddings", json={"input": "a"})

    assert asyncio.run(ask()).status_code == 200
