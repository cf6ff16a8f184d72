"""What a request may take: characters, time; and TLS, addresses and paths that stay inside."""

import asyncio
import logging
import signal
import ssl
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from rtp_llm.config import ServerConfig
from rtp_llm.errors import ConfigError, Overloaded
from rtp_llm.server.admission import Admission
from rtp_llm.server.app import check, warn_if_open
from rtp_llm.server.listening import listen
from rtp_llm.server.tls import check_certificate
from tests.engine.fakes import FakeRuntime, make_engine
from tests.real_server import free_port
from tests.server.conftest import CONFIG, running_server, wait_until
from tests.server.fake_engine import FakeEngine
from tests.server.process import process
from tests.server.test_auth import ask

ROUTE, TIMEOUT = "/v1/embeddings", "x-request-timeout"
LOCAL = replace(CONFIG, host="127.0.0.1", start_port=0)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (ROUTE, {"input": ["a", "b" * 11]}, "input[1]"),
        ("/v1/reranker", {"query": "a" * 11, "documents": ["b"]}, "documents[0]"),
        ("/v1/reranker", {"query": "a", "documents": ["b", "c" * 11]}, "documents[1]"),
        ("/tokenize", {"prompt": "a" * 11}, "prompt"),
    ],
)
def test_characters(path: str, body: dict[str, Any], param: str) -> None:
    answer = ask(replace(CONFIG, max_input_characters=10), "POST", path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (413, param)
    assert "11 characters, the limit is 10 (max_input_characters)" in answer.json()["error"]["message"]


def test_characters_at_the_limit() -> None:
    config = replace(CONFIG, max_input_characters=10)
    assert ask(config, "POST", ROUTE, json={"input": ["a" * 10] * 20}).status_code == 200
    assert ask(config, "POST", ROUTE, json={"input": [1] * 20}).status_code == 200


def test_token_ids_are_counted_before_they_are_looked_at() -> None:
    config = replace(CONFIG, max_input_characters=10, max_request_tokens=30)
    assert ask(config, "POST", ROUTE, json={"input": [1] * 30}).status_code == 200
    answer = ask(config, "POST", ROUTE, json={"input": [[1], [1] * 31]})
    assert answer.status_code == 413
    assert "input[1] has 31 token ids, the limit is 30 (max_request_tokens)" in answer.json()["error"]["message"]


def test_a_huge_text_does_not_hold_up_small_ones() -> None:
    engine, huge = FakeEngine(), b'{"input":"' + b"a" * (50 << 20) + b'"}'
    with running_server(engine, replace(CONFIG, max_body_bytes=64 << 20)) as address, ThreadPoolExecutor(1) as pool:
        refused = pool.submit(httpx.post, f"{address.url}{ROUTE}", content=huge, trust_env=False, timeout=60)
        took: list[float] = []
        with httpx.Client(base_url=address.url, trust_env=False, timeout=60) as client:
            while not refused.done() or not took:
                began = time.perf_counter()
                assert client.post(ROUTE, json={"input": "a"}).status_code == 200
                took.append(time.perf_counter() - began)
        assert refused.result().status_code == 413
    # The text itself never reached the engine, whatever came beside it.
    assert {request.inputs[0] for request in engine.requests} == {"a"}
    sys.stdout.write(f"\n{len(took)} small requests meanwhile, the slowest {max(took) * 1e3:.1f} ms\n")


@pytest.mark.parametrize("header", ["0.05", "0.3"])
def test_a_callers_deadline(client: httpx.Client, engine: FakeEngine, header: str) -> None:
    engine.delay = 60
    answer = client.post(ROUTE, json={"input": "a"}, headers={"x-request-timeout": header})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert engine.running == 0
    engine.delay = 0
    assert client.post(ROUTE, json={"input": "a"}, headers={"x-request-timeout": "5"}).status_code == 200


@pytest.mark.parametrize("header", ["soon", "", "nan", "1s"])
def test_a_deadline_that_is_no_number(client: httpx.Client, header: str) -> None:
    answer = client.post(ROUTE, json={"input": "a"}, headers={"x-request-timeout": header})
    assert (answer.status_code, "X-Request-Timeout" in answer.text) == (400, True)


@pytest.mark.parametrize("header", ["0", "-1", "-0.0", "-inf"])
@pytest.mark.parametrize("path", [ROUTE, "/tokenize"])
def test_a_deadline_that_leaves_no_time(client: httpx.Client, engine: FakeEngine, path: str, header: str) -> None:
    body = {ROUTE: {"input": "a"}, "/tokenize": {"prompt": "a" * 5000}}[path]
    answer = client.post(path, json=body, headers={"x-request-timeout": header})
    expected = f"X-Request-Timeout: '{header}' is not above 0; give seconds, at most 600 (request_timeout)"
    assert answer.status_code == 400 and expected in answer.json()["error"]["message"]
    assert not engine.requests


def test_a_deadline_that_leaves_no_time_where_there_is_no_limit() -> None:
    answer = ask(replace(CONFIG, request_timeout=0), "POST", ROUTE, json={"input": "a"}, headers={TIMEOUT: "0"})
    assert answer.status_code == 400 and "give seconds, or leave it out" in answer.json()["error"]["message"]


def test_request_timeout_wins_over_a_longer_deadline() -> None:
    engine = FakeEngine()
    engine.delay = 60
    with running_server(engine, replace(CONFIG, request_timeout=1)) as address:
        headers = {"x-request-timeout": "inf"}
        answer = httpx.post(f"{address.url}{ROUTE}", json={"input": "a"}, headers=headers, trust_env=False, timeout=20)
    assert (answer.status_code, engine.cancelled) == (504, 1)


def test_expired_work_is_never_computed() -> None:
    runtime = FakeRuntime(num_cores=1)
    engine: Any = make_engine(runtime)
    runtime.gate.clear()
    with running_server(engine) as address, ThreadPoolExecutor(1) as pool:
        first = pool.submit(httpx.post, f"{address.url}{ROUTE}", json={"input": "a"}, trust_env=False, timeout=20)
        wait_until(lambda: engine.device.scheduler.free_cores == 0)
        headers = {"x-request-timeout": "0.05"}
        late = httpx.post(f"{address.url}{ROUTE}", json={"input": "b"}, headers=headers, trust_env=False)
        runtime.gate.set()
        assert (late.status_code, first.result().status_code) == (504, 200)
    engine.close()
    assert runtime.batches == [1]
    assert b"rtp_llm_expired_requests_total 1.0" in engine.metrics.render()


@pytest.mark.parametrize("error", [OSError(2, "No such file", "/srv/secret/model.bin"), KeyError("/srv/secret")])
def test_no_path_and_no_traceback_leaves(
    client: httpx.Client, engine: FakeEngine, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    engine.error = error
    answer = client.post(ROUTE, json={"input": "a"}, headers={"x-request-id": "look-me-up"})
    assert answer.status_code == 500
    shown = answer.text + str(answer.headers)
    assert not any(word in shown for word in ("secret", "Traceback", "OSError", "KeyError", ".py", "/srv"))
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "look-me-up" in record.getMessage()


def test_https(certificate: tuple[Path, Path, Path]) -> None:
    chain, key, authority = certificate
    port = free_port()
    with process(start_port=port, ssl_certfile=str(chain), ssl_keyfile=str(key)) as child:
        context = ssl.create_default_context(cafile=str(authority))
        with httpx.Client(verify=context, trust_env=False, timeout=10) as client:
            assert client.post(f"https://localhost:{port}{ROUTE}", json={"input": "a"}).status_code == 200
            plain = client.get(f"http://localhost:{port}/health", headers={"connection": "close"})
            assert (plain.status_code, plain.headers["connection"]) == (400, "close")
            assert "ask by https://" in plain.json()["error"]["message"]
            with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
                httpx.get(f"https://localhost:{port}/health", trust_env=False)

            def are_counted() -> bool:
                text = client.get(f"https://localhost:{port}/metrics").text
                return all(f'route="unreadable",status="{status}"}} 1.0' in text for status in (0, 400))

            wait_until(are_counted)
        child.send_signal(signal.SIGTERM)
        assert child.communicate(timeout=20) == ("ended\n", "")


def test_certificates_that_cannot_be_served_with(certificate: tuple[Path, Path, Path], tmp_path: Path) -> None:
    chain, key, authority = map(str, certificate)
    empty = tmp_path / "empty.pem"
    empty.touch()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"ssl_keyfile": key}, "without ssl_certfile"),
        ({"ssl_certfile": "/nowhere.pem"}, "ssl_certfile: there is no file '/nowhere.pem'"),
        ({"ssl_certfile": chain, "ssl_keyfile": "/nowhere.pem"}, "ssl_keyfile: there is no file"),
        ({"ssl_certfile": "x" * 5000}, "ssl_certfile: there is no file"),
        ({"ssl_certfile": chain}, "ssl_keyfile names none, cannot be used"),
        ({"ssl_certfile": authority, "ssl_keyfile": key}, "cannot be used .*MISMATCH"),
        ({"ssl_certfile": str(empty)}, "cannot be used"),
    ]
    for options, message in cases:
        with pytest.raises(ConfigError, match=message):
            check_certificate(ServerConfig(checkpoint_path="fake", **options))


@pytest.mark.parametrize(
    ("options", "warns"), [({}, True), ({"api_key": ("k",)}, False), ({"host": "127.0.0.1"}, False)]
)
def test_an_open_server_is_told_of(options: dict[str, Any], warns: bool, caplog: pytest.LogCaptureFixture) -> None:
    """When it serves, so that a start which fails is one line."""
    config = ServerConfig(checkpoint_path="fake", start_port=0, **options)
    check(config)
    assert not caplog.records
    warn_if_open(config)
    assert ("without an API key" in caplog.text) == warns


def test_what_cannot_start_is_known_before_loading(tmp_path: Path) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}.*--grpc_port"):
            check(replace(LOCAL, grpc_port=port))
    with pytest.raises(ConfigError, match="api_key_file"):
        check(replace(LOCAL, api_key_file=str(tmp_path / "none")))


def test_sighup_does_not_end_the_server_and_reads_the_keys(tmp_path: Path) -> None:
    keys, port = tmp_path / "keys", free_port()
    keys.write_text("k1\n")

    def status(key: str) -> int:
        headers = {"authorization": f"Bearer {key}"}
        return httpx.get(f"http://127.0.0.1:{port}/v1/models", headers=headers, trust_env=False).status_code

    with process(start_port=port, api_key_file=str(keys)) as child:
        assert (status("k1"), status("k2")) == (200, 401)
        keys.write_text("k2\n")
        child.send_signal(signal.SIGHUP)
        wait_until(lambda: status("k2") == 200)
        assert status("k1") == 401
        child.send_signal(signal.SIGTERM)
        assert child.communicate(timeout=20)[0] == "ended\n"


def test_a_part_of_the_limit_is_told_as_one() -> None:
    """Of two front-ends each lets in two of three; what a client reads names the option as it was set."""

    async def fill() -> None:
        admission = Admission(replace(CONFIG, concurrency_limit=3), num_sharers=2)
        await admission.enter()
        await admission.enter()
        admission.check_room()

    with pytest.raises(
        Overloaded, match=r"2 requests are in flight, this front-end's part of the most allowed, 3 \(con"
    ):
        asyncio.run(fill())
