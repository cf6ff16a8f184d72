"""OpenTelemetry traces: a span a request and one for each of its stages, sent as OTLP; needs `rtp-llm[tracing]`.

Spans are made when a request has ended, from the times that were taken anyway: nothing is carried through the engine,
and a server without an endpoint does nothing. The SDK reads the rest of the standard OTEL_* environment itself:
OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS, OTEL_BSP_* and more.
"""

import time
from collections.abc import Mapping
from typing import Any

from rtp_llm.errors import ConfigError
from rtp_llm.observability.seen import Answered, Seen

_NAME = "rtp_llm"
_CARRIED = ("traceparent", "tracestate")
_FLUSH_MILLISECONDS = 3000


class Tracer:
    """Makes spans of requests and sends them from a thread of its own; what the collector does not take is dropped."""

    def __init__(self, endpoint: str, protocol: str = "http/protobuf") -> None:
        """`endpoint` in full: with its path for http/protobuf. ConfigError where the libraries are not installed."""
        try:
            from opentelemetry import trace
            from opentelemetry.sdk.resources import SERVICE_NAME, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

            exporter = _exporter(endpoint, protocol)
        except ImportError as error:
            message = f"otlp_endpoint: traces need more libraries ({error}): pip install 'rtp-llm[tracing]'"
            raise ConfigError(message, param="otlp_endpoint") from None
        # The environment's OTEL_SERVICE_NAME wins over the attribute that is given here.
        given = Resource.create()
        named = given.attributes.get(SERVICE_NAME, "unknown_service")
        own = Resource({SERVICE_NAME: _NAME}) if str(named).startswith("unknown_service") else Resource.get_empty()
        self._provider = TracerProvider(resource=given.merge(own), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(_NAME)
        self._read = TraceContextTextMapPropagator().extract
        self._trace = trace

    def observe(self, seen: Seen) -> None:
        """The request's span, under the caller's where it sent a traceparent, and a span for each stage."""
        # Wall-clock time is that of the end: durations are not its affair.
        epoch = time.time_ns() - time.perf_counter_ns()
        start = epoch + _nanoseconds(seen.started_at)
        span: Any = self._tracer.start_span(
            f"{seen.method} {seen.route}",
            context=self._read(_carried(seen.headers)),
            kind=self._trace.SpanKind.SERVER,
            attributes=_attributes(seen),
            start_time=start,
        )
        if span.is_recording():
            if seen.failure:
                span.set_status(self._trace.StatusCode.ERROR)
            context = self._trace.set_span_in_context(span)
            for one in seen.answered:
                self._add_stages(one, context, epoch + _nanoseconds(one.response.timings.started_at))
        span.end(end_time=start + _nanoseconds(seen.seconds))

    def close(self) -> None:
        """Send what waits, for a few seconds at most."""
        self._provider.force_flush(_FLUSH_MILLISECONDS)
        self._provider.shutdown()

    def _add_stages(self, one: Answered, context: Any, at: int) -> None:
        response, timings = one.response, one.response.timings
        sizes: dict[str, Any] = {"rtp_llm.model": one.model, "rtp_llm.tokens": response.total_tokens}
        for name, seconds, attributes in (
            ("tokenize", timings.tokenize, {**sizes, "rtp_llm.inputs": len(response.num_tokens)}),
            ("queue", timings.queue, {}),
            ("compute", timings.compute, {**sizes, "rtp_llm.batch_rows": response.batch_rows}),
            ("encode", one.encode, {}),
        ):
            span = self._tracer.start_span(name, context=context, attributes=attributes, start_time=at)
            at += _nanoseconds(seconds)
            span.end(end_time=at)


def _nanoseconds(seconds: float) -> int:
    return max(round(seconds * 1e9), 0)


def _exporter(endpoint: str, protocol: str) -> Any:
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter(endpoint=endpoint)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=endpoint)


def _carried(headers: Mapping[bytes, bytes]) -> dict[str, str]:
    given = ((name, headers.get(name.encode())) for name in _CARRIED)
    return {name: value.decode("latin-1") for name, value in given if value is not None}


def _attributes(seen: Seen) -> dict[str, Any]:
    return {
        "http.request.method": seen.method,
        "http.route": seen.route,
        "http.response.status_code": seen.status,
        "rtp_llm.request_id": seen.request_id,
        "rtp_llm.model": seen.model,
        "rtp_llm.inputs": seen.num_inputs,
        "rtp_llm.tokens": seen.num_tokens,
        "rtp_llm.truncated_inputs": seen.num_truncated,
    }
