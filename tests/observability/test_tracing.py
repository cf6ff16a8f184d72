"""Traces: the spans that a collector receives of a real server, and what is not sent."""

import builtins
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from rtp_llm.config import ServerConfig
from rtp_llm.errors import ConfigError
from rtp_llm.observability import tracing
from rtp_llm.observability.tracing import Tracer
from tests.observability.collector import attributes, collecting
from tests.observability.test_logs import seen
from tests.real_server import free_port, running
from tests.server.conftest import wait_until

pytest.importorskip("opentelemetry.sdk", reason="pip install 'rtp-llm[tracing]'")

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_a_real_server_sends_the_stages_of_a_request(tiny_bert: Path, tmp_path: Path) -> None:
    port = free_port()
    with collecting() as collector:
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}",
            "OTEL_SERVICE_NAME": "search",
            "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=blue",
        }
        arguments = [str(tiny_bert), "--port", str(port), "--served_model_name", "tiny"]
        with running(arguments, tmp_path / "log", port, **environ) as server:
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"}
            body = {"input": ["the weather", "is lovely"]}
            answer = httpx.post(f"{server.url}/v1/embeddings", json=body, headers=headers, trust_env=False)
            assert answer.status_code == 200
    assert collector.resources[0]["service.name"] == "search" and collector.headers[0]["x-tenant"] == "blue"
    spans = {span.name: span for span in collector.spans if span.trace_id.hex() == TRACE}
    assert set(spans) == {"POST /v1/embeddings", "tokenize", "queue", "compute", "encode"}
    root, now = spans.pop("POST /v1/embeddings"), time.time_ns()
    told = attributes(root)
    assert (root.parent_span_id.hex(), root.kind) == (PARENT, 2)
    assert (told["http.response.status_code"], told["rtp_llm.request_id"]) == (200, "mine")
    assert (told["rtp_llm.inputs"], told["rtp_llm.model"]) == (2, "tiny") and told["rtp_llm.tokens"] > 4
    assert attributes(spans["compute"])["rtp_llm.batch_rows"] == 2
    stages = [spans[name] for name in ("tokenize", "queue", "compute", "encode")]
    assert all(span.parent_span_id == root.span_id for span in stages)
    ends = [root.start_time_unix_nano, *(span.end_time_unix_nano for span in stages), root.end_time_unix_nano, now]
    assert ends == sorted(ends) and now - ends[0] < 60e9


def test_a_failure_is_an_error_without_stages() -> None:
    with collecting() as collector:
        tracer = Tracer(f"http://127.0.0.1:{collector.port}/v1/traces")
        tracer.observe(seen(status=503, failure="not_ready"))
        tracer.close()
    (span,) = collector.spans
    assert (span.status.code, attributes(span)["http.response.status_code"]) == (2, 503)
    assert span.parent_span_id == b"" and collector.resources[0]["service.name"] == "rtp_llm"


@pytest.mark.parametrize("traceparent", [b"", b"00-" + b"0" * 32 + b"-" + b"1" * 16 + b"-01", b"\xff" * 99], ids=len)
def test_a_traceparent_that_is_none_starts_a_trace(traceparent: bytes) -> None:
    with collecting() as collector:
        tracer = Tracer(f"http://127.0.0.1:{collector.port}/v1/traces")
        tracer.observe(seen(headers={b"traceparent": traceparent}))
        tracer.close()
    assert len({span.trace_id for span in collector.spans}) == 1 and len(collector.spans) == 5


def test_what_the_caller_does_not_sample_is_not_sent() -> None:
    with collecting() as collector:
        tracer = Tracer(f"http://127.0.0.1:{collector.port}/v1/traces")
        tracer.observe(seen(headers={b"traceparent": f"00-{TRACE}-{PARENT}-00".encode()}))
        tracer.close()
    assert collector.spans == []


def test_a_collector_that_is_away_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setattr(tracing, "_FLUSH_MILLISECONDS", 100)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracer = Tracer(f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces")
        began = time.monotonic()
        for _ in range(600):
            tracer.observe(seen())
        assert time.monotonic() - began < 30  # each of them waits a second where they are sent one by one
        tracer.close()
        assert time.monotonic() - began < 60


def test_over_grpc() -> None:
    grpc: Any = pytest.importorskip("grpc")
    messages = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    received: list[Any] = []

    def export(request: Any, context: Any) -> Any:
        received.extend(request.resource_spans)
        return messages.ExportTraceServiceResponse()

    handler = grpc.unary_unary_rpc_method_handler(
        export,
        request_deserializer=messages.ExportTraceServiceRequest.FromString,
        response_serializer=lambda answer: answer.SerializeToString(),
    )
    server = grpc.server(ThreadPoolExecutor(1))
    name = "opentelemetry.proto.collector.trace.v1.TraceService"
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(name, {"Export": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    tracer = Tracer(f"http://127.0.0.1:{port}", "grpc")
    tracer.observe(seen())
    tracer.close()
    server.stop(None).wait()
    wait_until(lambda: bool(received))
    assert len(received[0].scope_spans[0].spans) == 5


def test_missing_libraries_are_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'rtp-llm\[tracing\]'"):
        Tracer("http://127.0.0.1:1/v1/traces")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ""),
        ({"otlp_endpoint": "http://c:4318/"}, "http://c:4318/v1/traces"),
        ({"otlp_endpoint": "http://c:4318", "otlp_traces_endpoint": "http://d/x"}, "http://d/x"),
        ({"otlp_endpoint": "http://c:4317", "otlp_protocol": "grpc"}, "http://c:4317"),
    ],
)
def test_endpoints(options: dict[str, Any], expected: str) -> None:
    assert ServerConfig(checkpoint_path="x", **options).traces_endpoint == expected
