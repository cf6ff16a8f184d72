"""What every exchange has: ids, CORS, probes, metrics, limits, and errors that are never the framework's."""

import logging
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from rtp_llm.core import FloatArray
from rtp_llm.errors import DeadlineExceeded, EngineFailure, InvalidRequest, NotReady, Overloaded, UnsupportedTask
from rtp_llm.observability import CONTENT_TYPE
from tests.server.conftest import CONFIG, Address, wait_until
from tests.server.fake_engine import DIMENSION, FakeEngine, vector_of

ROUTE = "/v1/embeddings"
BODY = {"input": "a"}


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequest("no"), 400, "invalid_request_error"),
        (UnsupportedTask("no"), 400, "invalid_request_error"),
        (Overloaded("full", retry_after=0.2), 429, "rate_limit_error"),
        (NotReady("starting"), 503, "server_error"),
        (DeadlineExceeded("late"), 504, "timeout_error"),
        (EngineFailure("broken"), 500, "server_error"),
    ],
)
def test_engine_errors(client: httpx.Client, engine: FakeEngine, error: Exception, status: int, kind: str) -> None:
    engine.error = error
    answer = client.post(ROUTE, json=BODY)
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == kind
    assert answer.json()["error"]["message"] == str(error)


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (2.1, "3")])
def test_retry_after_is_whole_seconds(client: httpx.Client, engine: FakeEngine, seconds: float, header: str) -> None:
    engine.error = Overloaded("full", retry_after=seconds)
    assert client.post(ROUTE, json=BODY).headers["retry-after"] == header


def test_unforeseen_error(client: httpx.Client, engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    engine.error = KeyError("internal detail")
    answer = client.post(ROUTE, json=BODY, headers={"x-request-id": "look-me-up"})
    assert answer.status_code == 500
    assert "look-me-up" in answer.json()["error"]["message"]
    assert "internal detail" not in answer.text
    record = next(r for r in caplog.records if r.levelno == logging.ERROR)
    assert "look-me-up" in record.getMessage() and record.exc_info is not None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_no_answer_holds_nan(client: httpx.Client, engine: FakeEngine, value: float, encoding_format: str) -> None:
    engine.vector = np.ones(DIMENSION, dtype=np.float32)
    engine.vector[3] = value
    answer = client.post(ROUTE, json={**BODY, "encoding_format": encoding_format})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "engine_failure")


@pytest.mark.parametrize("magnitude", [3.4e38, 1e-45, 0.0])
def test_extreme_numbers_survive(client: httpx.Client, engine: FakeEngine, magnitude: float) -> None:
    engine.vector = np.full(DIMENSION, magnitude, dtype=np.float32)
    embedding = client.post(ROUTE, json=BODY).json()["data"][0]["embedding"]
    np.testing.assert_array_equal(np.array(embedding, dtype=np.float32), engine.vector)


@pytest.mark.parametrize("given", ["abc-1", "550e8400-e29b-41d4-a716-446655440000", "x" * 128])
def test_request_id_is_echoed(client: httpx.Client, engine: FakeEngine, given: str) -> None:
    assert client.post(ROUTE, json=BODY, headers={"x-request-id": given}).headers["x-request-id"] == given
    assert engine.requests[0].request_id == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "<script>", "a,b"])
def test_odd_request_id_is_replaced(client: httpx.Client, given: str) -> None:
    made = client.get("/health", headers={"x-request-id": given}).headers["x-request-id"]
    assert made not in ("", given)


def test_request_ids_differ(client: httpx.Client) -> None:
    ids = {client.get("/liveness").headers["x-request-id"] for _ in range(5)}
    assert len(ids) == 5


@pytest.mark.parametrize("path", [ROUTE, "/v1/models", "/"])
def test_preflight(client: httpx.Client, path: str) -> None:
    wanted = {"origin": "http://a.example", "access-control-request-method": "POST"}
    answer = client.options(path, headers={**wanted, "access-control-request-headers": "authorization,content-type"})
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert ("POST" in answer.headers["access-control-allow-methods"]) == (path != "/v1/models")
    assert answer.headers["access-control-allow-headers"] == "authorization,content-type"


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/info", "GET, HEAD, OPTIONS"),
        ("/v1/models/a/b", "GET, HEAD, OPTIONS"),
        ("/v1/embeddings", "POST, OPTIONS"),
        ("/openai/deployments/a/embeddings", "POST, OPTIONS"),
        ("/", "GET, HEAD, POST, OPTIONS"),
    ],
)
def test_options_says_what_is_served(client: httpx.Client, path: str, methods: str) -> None:
    answer = client.options(path)
    assert answer.status_code == 204
    assert answer.headers["allow"] == answer.headers["access-control-allow-methods"] == methods


def test_options_of_a_path_that_leads_nowhere(client: httpx.Client) -> None:
    answer, got = client.options("/nowhere", headers={"origin": "http://a.example"}), client.get("/nowhere")
    assert (answer.status_code, answer.json()) == (got.status_code, got.json()) and answer.status_code == 404
    assert answer.headers["access-control-allow-origin"] == "*"
    assert 'route="unmatched",status="404"' in client.get("/metrics").text


@pytest.mark.parametrize(("method", "path"), [("GET", "/health"), ("GET", "/nowhere"), ("POST", ROUTE), ("PUT", ROUTE)])
def test_any_origin_may_read(client: httpx.Client, method: str, path: str) -> None:
    answer = client.request(method, path, headers={"origin": "null"})
    assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["/health", "/status", "/health_check", "/liveness", "/frontend_health", "/health/"])
def test_probes_say_ok(client: httpx.Client, method: str, path: str) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.json()) == (200, "ok")


def test_not_ready(client: httpx.Client, engine: FakeEngine) -> None:
    engine.not_ready = "the canary has not run yet"
    answer = client.get("/health")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["message"] == "the canary has not run yet"
    assert client.get("/liveness").json() == "ok"


@pytest.mark.parametrize("path", ["/health", "/liveness", "/metrics", "/v1/models", "/", "/docs", "/openapi.json"])
def test_head(client: httpx.Client, path: str) -> None:
    answer = client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) > 0 or path == "/metrics"


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_allow_nothing_from_elsewhere(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    policy = answer.headers["content-security-policy"]
    assert answer.headers["content-type"].startswith("text/html")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy and "http" not in policy


def test_metrics(client: httpx.Client, engine: FakeEngine) -> None:
    def count(route: str, status: int) -> float:
        labels = {"route": route, "status": str(status), "model": ""}
        return engine.metrics.registry.get_sample_value("rtp_llm_requests_total", labels) or 0

    seen = ((ROUTE, 200), (ROUTE, 400), (ROUTE, 405), ("unmatched", 404), ("/v1/models/{model:path}", 404))
    before = [count(*one) for one in seen]
    client.post(f"{ROUTE}/", json=BODY)
    client.post(ROUTE, json={})
    client.get("/nowhere/at/all")
    client.get("/v1/models/other")
    client.delete(ROUTE)
    after = [count(*one) for one in seen]
    assert after == [value + 1 for value in before]
    answer = client.get("/metrics")
    assert answer.headers["content-type"] == CONTENT_TYPE
    assert 'rtp_llm_requests_total{model="",route="/v1/embeddings",status="200"}' in answer.text
    assert "nowhere" not in answer.text


def test_answers_do_not_mix(client: httpx.Client, engine: FakeEngine) -> None:
    def ask(number: int) -> FloatArray:
        answer = client.post(ROUTE, json={"input": f"text {number}"})
        return np.array(answer.json()["data"][0]["embedding"], dtype=np.float32)

    engine.delay = 0.005
    with ThreadPoolExecutor(CONFIG.concurrency_limit) as pool:
        for number, vector in enumerate(pool.map(ask, range(40))):
            np.testing.assert_array_equal(vector, vector_of(f"text {number}"))


def test_concurrency_limit(client: httpx.Client, address: Address, engine: FakeEngine) -> None:
    engine.delay = 60
    with ThreadPoolExecutor(CONFIG.concurrency_limit) as pool:
        waiting = [
            httpx.Client(base_url=address.url, trust_env=False, timeout=2) for _ in range(CONFIG.concurrency_limit)
        ]
        futures = [pool.submit(one.post, ROUTE, json=BODY) for one in waiting]
        wait_until(lambda: engine.running == CONFIG.concurrency_limit)
        refused = client.post(ROUTE, json=BODY)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "concurrency_limit" in refused.json()["error"]["message"]
        assert client.get("/health").status_code == 200
        assert all(isinstance(future.exception(), httpx.ReadTimeout) for future in futures)
    for one in waiting:
        one.close()
    wait_until(lambda: engine.running == 0)
    engine.delay = 0
    assert client.post(ROUTE, json=BODY).status_code == 200


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def test_large_body_is_refused_unread(address: Address, engine: FakeEngine) -> None:
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n"
    with socket.create_connection(("127.0.0.1", address.port), timeout=10) as connection:
        connection.sendall(head)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer


def test_endless_chunks_are_cut_off(address: Address, engine: FakeEngine) -> None:
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", address.port), timeout=10) as connection:
        connection.sendall(head + b"10000\r\n" + b"a" * 0x10000 + b"\r\n" + b"10\r\n" + b"a" * 16 + b"\r\n")
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 413")


def test_expect_continue(address: Address, engine: FakeEngine) -> None:
    line = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    head = line + b"Expect: 100-continue\r\nContent-Length: 13\r\n\r\n"
    with socket.create_connection(("127.0.0.1", address.port), timeout=10) as connection:
        connection.sendall(head)
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(b'{"input":"a"}')
        assert read_all(connection).startswith(b"HTTP/1.1 200")


def test_pipelined_requests(address: Address, engine: FakeEngine) -> None:
    one = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 13\r\n%b\r\n" + b'{"input":"a"}'
    engine.delay = 0.05
    with socket.create_connection(("127.0.0.1", address.port), timeout=10) as connection:
        connection.sendall(one % b"" + one % b"Connection: close\r\n")
        assert read_all(connection).count(b"HTTP/1.1 200") == 2
