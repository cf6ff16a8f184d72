"""What the process tells of itself: Prometheus metrics in one registry, observed in one place each."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from rtp_llm.core import ModelInfo, Response

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class Metrics:
    """One engine's counters and histograms; the engine and the server each call their part."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "rtp_llm_requests", "HTTP requests by route and status", ("route", "status"), registry=self.registry
        )
        self._stage = Histogram(
            "rtp_llm_stage_seconds",
            "Seconds of a request by stage",
            ("stage",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._tokens = Counter("rtp_llm_tokens", "Tokens read by the model", registry=self.registry)
        self._inputs = Counter("rtp_llm_inputs", "Inputs answered", registry=self.registry)
        self._truncated = Counter("rtp_llm_truncated_inputs", "Inputs cut at the limit", registry=self.registry)
        self._batch_tokens = Histogram(
            "rtp_llm_batch_tokens", "Tokens of a step", buckets=_TOKENS, registry=self.registry
        )
        self._batch_seconds = Histogram(
            "rtp_llm_batch_seconds", "Seconds of a step", buckets=_SECONDS, registry=self.registry
        )
        self._failed = Counter("rtp_llm_failed_batches", "Steps that raised", registry=self.registry)
        self._cancelled = Counter("rtp_llm_cancelled_requests", "Requests whose client left", registry=self.registry)
        self.queued_tokens = Gauge("rtp_llm_queued_tokens", "Tokens that wait for a step", registry=self.registry)
        self._model = Gauge(
            "rtp_llm_model_info",
            "The loaded model",
            ("name", "model_type", "backend", "instruction_set", "dtype"),
            registry=self.registry,
        )
        # NOTE: `labels` takes 3 us a call, so its results are kept.
        self._exchanges: dict[tuple[str, int], Counter] = {}
        stages = ("tokenize", "queue", "compute", "total")
        self._stages = {stage: self._stage.labels(stage) for stage in stages}

    def observe_http(self, route: str, status: int) -> None:
        """An HTTP exchange has ended; `route` is the path's template, never the path itself."""
        counter = self._exchanges.get((route, status))
        if counter is None:
            counter = self._exchanges[route, status] = self._requests.labels(route, str(status))
        counter.inc()

    def observe_response(self, response: Response) -> None:
        """A request has been answered."""
        for stage, histogram in self._stages.items():
            histogram.observe(getattr(response.timings, stage))
        self._tokens.inc(response.total_tokens)
        self._inputs.inc(len(response.num_tokens))
        self._truncated.inc(sum(response.truncated))

    def observe_batch(self, num_tokens: int, seconds: float) -> None:
        """A step has been computed."""
        self._batch_tokens.observe(num_tokens)
        self._batch_seconds.observe(seconds)

    def observe_failed_batch(self) -> None:
        """A step raised; its items are retried one by one."""
        self._failed.inc()

    def observe_cancelled(self) -> None:
        """A client left before its answer."""
        self._cancelled.inc()

    def describe_model(self, info: ModelInfo) -> None:
        """Publish the loaded model as labels."""
        self._model.labels(info.name, info.model_type, info.backend, info.instruction_set, info.dtype).set(1)

    def render(self) -> bytes:
        """The exposition text, of `CONTENT_TYPE`."""
        return generate_latest(self.registry)
