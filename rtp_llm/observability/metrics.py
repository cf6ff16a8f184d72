"""Prometheus metrics, in one registry, observed in one place each."""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence, Sized
from functools import partial
from typing import Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from rtp_llm.core import ModelInfo, Response
from rtp_llm.observability.families import Families, Joined
from rtp_llm.observability.histogram import Histogram
from rtp_llm.observability.process_metrics import ProcessMetrics
from rtp_llm.timings import Timings

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_SHARES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
# tokenize to total are the engine's; encode is the server's: writing the answer.
_STAGES = ("tokenize", "queue", "compute", "total", "encode")

# Observations that are counted together: few enough that whoever counts them is not held up.
_MOST_PENDING = 64
# Of an exchange: route, status, seconds, failure.
_Exchange: TypeAlias = tuple[str, int, float, str]
# Of an answer: its timings, and how many tokens, inputs and truncated inputs it has.
_Answer: TypeAlias = tuple[Timings, int, int, int]
# Of a step: lane, tokens, rows, duplicates, its share of the budget, seconds.
_Step: TypeAlias = tuple[str, int, int, int, float, float]
Observed = TypeVar("Observed")

_DEVICE_COUNTERS = {
    "out_of_memory": "Steps that did not fit the device's memory",
    "graph_replays": "Steps that were computed by a CUDA graph",
}
_DEVICE_GAUGES = {
    "largest_step": "Tokens of a step since one did not fit; 0: all have",
    "graphs": "CUDA graphs that are kept",
}


class Queue(Protocol):
    """What waits in a lane."""

    tokens: int
    items: int


class Cache(Sized, Protocol):
    """Results that are kept."""

    num_bytes: int


class Waiting(NamedTuple):
    """Inputs that wait for a step, and requests that have no answer yet, over all lanes."""

    inputs: int
    requests: int


class RequestMetrics(Protocol):
    """What is counted of a model's requests by whoever speaks with its clients."""

    @property
    def model_name(self) -> str:
        """The model whose metrics these are."""

    def observe_http(self, route: str, status: int, seconds: float, failure: str = "") -> None:
        """An HTTP exchange has ended; `route` is the path's template, never the path itself.

        failure  why a request that was in order failed; empty where it did not, or was at fault
        """

    def observe_encode(self, seconds: float) -> None:
        """An answer has been written."""


def render(process: ProcessMetrics, models: "Sequence[Metrics]") -> bytes:
    """The metrics of the process and of its models in one exposition, of `CONTENT_TYPE`."""
    joined = Joined([(one.model_name, one.registry) for one in models])
    return generate_latest(process.families.registry) + generate_latest(joined)


class Later(Generic[Observed]):
    """What has been observed, by any thread, and is counted some at a time, by one thread at a time."""

    def __init__(self, count: Callable[[Sequence[Observed]], None]) -> None:
        self._pending: deque[Observed] = deque()
        self._count = count
        self._counting = threading.Lock()

    def add(self, observed: Observed) -> None:
        """It is counted with those to come."""
        self._pending.append(observed)
        if len(self._pending) >= _MOST_PENDING:
            self.count()

    def count(self) -> None:
        """Count what there is."""
        with self._counting:
            some = [self._pending.popleft() for _ in range(len(self._pending))]
            if some:
                self._count(some)


class Metrics:
    """One engine's counters and histograms; the engine and the server each call their part.

    What is observed for each request or step is counted later, some of it at once: that takes a tenth of the time, and
    nobody waits for it. `registry` has it all.
    """

    def __init__(self) -> None:
        self._exchanges = Later[_Exchange](self._count_exchanges)
        self._encodes = Later[float](self._count_encodes)
        self._answers = Later[_Answer](self._count_answers)
        self._steps = Later[_Step](self._count_steps)
        self.families = families = Families()
        self._model_name = ""
        self._lanes: list[tuple[Queue, Sized]] = []
        self._requests = families.counter("requests", "HTTP requests by route and status", "route", "status", "model")
        self._failures = families.counter(
            "failed_requests",
            "Requests that were in order and failed, by reason, whatever status their dialect gives it (TEI's: 424)",
            "route",
            "reason",
        )
        self._seconds = families.histogram(
            "request_seconds", "Seconds from a request's head to the end of its answer", _SECONDS, "route"
        )
        self._stage = families.histogram("stage_seconds", "Seconds of a request by stage", _SECONDS, "stage")
        self._tokens = families.counter("tokens", "Tokens read by the model")
        self._inputs = families.counter("inputs", "Inputs answered")
        self._truncated = families.counter("truncated_inputs", "Inputs cut at the limit")
        self._batch_tokens = families.histogram("batch_tokens", "Tokens of a step", _TOKENS)
        self._batch_rows = families.histogram("batch_rows", "Sequences of a step", _ROWS)
        self._batch_budget = families.histogram("batch_budget_ratio", "Tokens of a step, of the budget", _SHARES)
        self._batch_seconds = families.histogram("batch_seconds", "Seconds of a step", _SECONDS)
        self._lane_tokens = families.counter("lane_tokens", "Tokens computed, by lane", "lane")
        self._failed = families.counter("failed_batches", "Steps that raised")
        self._failed_inputs = families.counter("failed_inputs", "Inputs that could not be computed")
        self._cancelled = families.counter("cancelled_requests", "Requests whose client left")
        self._refused = families.counter("refused_requests", "Requests refused: a full queue, or too late", "lane")
        self._expired = families.counter(
            "expired_requests",
            "Requests whose deadline came while the engine had them; failed_requests has those too that came before",
        )
        self._duplicates = families.counter(
            "duplicate_inputs", "Inputs answered with an identical one of the same step"
        )
        self._cache_lookups = families.counter("cache_lookups", "Look-ups of the result cache", "result")
        self._add_gauges(families)
        self._device_counts: Callable[[], Mapping[str, float]] = dict
        self._add_device(families)
        # NOTE: `labels` takes 3 us a call, so its results are kept.
        self._counters: dict[tuple[str, int], Counter] = {}
        self._refused_by_lane: dict[str, Counter] = {}
        self._routes: dict[str, Histogram] = {}
        self._stages = {stage: self._stage.labels(stage) for stage in _STAGES}

    def observe_http(self, route: str, status: int, seconds: float, failure: str = "") -> None:
        """As RequestMetrics."""
        self._exchanges.add((route, status, seconds, failure))

    def _count_exchanges(self, exchanges: Sequence[_Exchange]) -> None:
        counts: dict[tuple[str, int], int] = {}
        by_route: dict[str, list[float]] = {}
        for route, status, seconds, failure in exchanges:
            counts[route, status] = counts.get((route, status), 0) + 1
            by_route.setdefault(route, []).append(seconds)
            if failure:
                self._failures.labels(route, failure).inc()
        for (route, status), count in counts.items():
            counter = self._counters.get((route, status))
            if counter is None:
                labels = (route, str(status), self._model_name)
                counter = self._counters[route, status] = self._requests.labels(*labels)
            counter.inc(count)
        for route, times in by_route.items():
            histogram = self._routes.get(route)
            if histogram is None:
                histogram = self._routes[route] = self._seconds.labels(route)
            histogram.observe_all(times)

    def observe_encode(self, seconds: float) -> None:
        """As RequestMetrics."""
        self._encodes.add(seconds)

    def _count_encodes(self, times: Sequence[float]) -> None:
        self._stages["encode"].observe_all(times)

    def observe_response(self, response: Response) -> None:
        """A request has been answered."""
        counts = response.total_tokens, len(response.num_tokens), sum(response.truncated)
        self._answers.add((response.timings, *counts))

    def _count_answers(self, answers: Sequence[_Answer]) -> None:
        timings, num_tokens, num_inputs, num_truncated = zip(*answers, strict=True)
        for stage in _STAGES[:-1]:
            self._stages[stage].observe_all([getattr(one, stage) for one in timings])
        self._tokens.inc(sum(num_tokens))
        self._inputs.inc(sum(num_inputs))
        self._truncated.inc(sum(num_truncated))

    def observe_batch(
        self, *, lane: str, num_tokens: int, num_rows: int, num_duplicates: int, budget: int, seconds: float
    ) -> None:
        """A step has been computed, for `num_duplicates` inputs more than its rows."""
        self._steps.add((lane, num_tokens, num_rows, num_duplicates, num_tokens / budget, seconds))

    def _count_steps(self, steps: Sequence[_Step]) -> None:
        lanes, num_tokens, num_rows, num_duplicates, shares, seconds = zip(*steps, strict=True)
        self._batch_tokens.observe_all(num_tokens)
        self._batch_rows.observe_all(num_rows)
        self._batch_budget.observe_all(shares)
        self._batch_seconds.observe_all(seconds)
        for lane, tokens in zip(lanes, num_tokens, strict=True):
            self._lane_tokens.labels(lane).inc(tokens)
        self._duplicates.inc(sum(num_duplicates))

    def observe_failed_batch(self) -> None:
        """A step raised; its halves are tried."""
        self._failed.inc()

    def observe_failed_input(self) -> None:
        """An input could not be computed."""
        self._failed_inputs.inc()

    def observe_cancelled(self) -> None:
        """A client left before its answer."""
        self._cancelled.inc()

    def observe_refused(self, lane: str) -> None:
        """A request found its lane full."""
        counter = self._refused_by_lane.get(lane)
        if counter is None:
            counter = self._refused_by_lane[lane] = self._refused.labels(lane)
        counter.inc()

    def observe_expired(self) -> None:
        """A request's deadline passed before it was computed."""
        self._expired.inc()

    def observe_cache(self, *, hit: bool) -> None:
        """An input was looked up among the results that are kept."""
        self._cache_lookups.labels("hit" if hit else "miss").inc()

    def watch_lane(self, lane: str, queue: Queue, requests: Sized) -> None:
        """Publish what waits in a lane, as it is when somebody asks."""
        self._queued_tokens.labels(lane).set_function(lambda: queue.tokens)
        self._queued_inputs.labels(lane).set_function(lambda: queue.items)
        self._in_flight.labels(lane).set_function(lambda: len(requests))
        self._lanes.append((queue, requests))

    def waiting(self) -> Waiting:
        """What has no answer yet."""
        return Waiting(sum(queue.items for queue, _ in self._lanes), sum(len(each) for _, each in self._lanes))

    def watch_drain_rate(self, tokens_per_second: Callable[[], float]) -> None:
        """Publish how fast the device works."""
        self._drain_rate.set_function(tokens_per_second)

    def watch_cache(self, cache: Cache) -> None:
        """Publish what the result cache holds."""
        self._cache_bytes.set_function(lambda: cache.num_bytes)
        self._cache_entries.set_function(lambda: len(cache))

    def watch_device(self, counts: Callable[[], Mapping[str, float]]) -> None:
        """Publish what the runtime counts, by its names."""
        self._device_counts = counts

    def describe_model(self, info: ModelInfo) -> None:
        """Publish the loaded model as labels."""
        self._model_name = info.name
        self._model.labels(info.name, info.model_type, info.backend, info.instruction_set, info.dtype).set(1)

    def render(self) -> bytes:
        """The exposition text, of `CONTENT_TYPE`."""
        return generate_latest(self.registry)

    @property
    def model_name(self) -> str:
        """The model whose metrics these are."""
        return self._model_name

    @property
    def registry(self) -> CollectorRegistry:
        """Where the samples are."""
        for later in (self._exchanges, self._encodes, self._answers, self._steps):
            later.count()
        return self.families.registry

    def _add_gauges(self, families: Families) -> None:
        self._queued_tokens = families.gauge("queued_tokens", "Tokens that wait for a step", "lane")
        self._queued_inputs = families.gauge("queued_inputs", "Inputs that wait for a step", "lane")
        self._in_flight = families.gauge("requests_in_flight", "Requests that have no answer yet", "lane")
        self._model = families.gauge(
            "model_info", "The loaded model", "name", "model_type", "backend", "instruction_set", "dtype"
        )
        self._drain_rate = families.gauge(
            "drain_tokens_per_second", "Tokens that the device computes in a second when it is busy"
        )
        self._cache_bytes = families.gauge("cache_bytes", "Bytes of results that are kept")
        self._cache_entries = families.gauge("cache_entries", "Results that are kept")

    def _add_device(self, families: Families) -> None:
        for name, help in _DEVICE_COUNTERS.items():
            families.counted(f"device_{name}", help, partial(self._device_count, name))
        for name, help in _DEVICE_GAUGES.items():
            families.gauge(f"device_{name}", help).set_function(partial(self._device_count, name))

    def _device_count(self, name: str) -> float:
        return self._device_counts().get(name, 0)
