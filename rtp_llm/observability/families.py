"""Prometheus families in a registry of their own, each described once for the page that lists them."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from rtp_llm.observability.histogram import Histogram

_PREFIX = "rtp_llm_"


class Described(NamedTuple):
    """A metric as its page tells of it; the name is the one that is exposed."""

    name: str
    kind: str
    labels: Sequence[str]
    help: str


class Families:
    """A registry, and what is in it; names are given without their prefix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.described: list[Described] = []

    def counter(self, name: str, help: str, *labels: str) -> Counter:
        """A counter, whose exposed name ends in _total."""
        self._describe(f"{name}_total", "counter", labels, help)
        return Counter(f"{_PREFIX}{name}", help, labels, registry=self.registry)

    def counted(self, name: str, help: str, count: Callable[[], float]) -> None:
        """A counter that somebody else counts."""
        self._describe(f"{name}_total", "counter", (), help)
        self.registry.register(_Counted(f"{_PREFIX}{name}", help, count))

    def gauge(self, name: str, help: str, *labels: str) -> Gauge:
        """What goes up and down."""
        self._describe(name, "gauge", labels, help)
        return Gauge(f"{_PREFIX}{name}", help, labels, registry=self.registry)

    def histogram(self, name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        """Observations by size."""
        self._describe(name, "histogram", labels, help)
        return Histogram(f"{_PREFIX}{name}", help, labels, buckets=buckets, registry=self.registry)

    def _describe(self, name: str, kind: str, labels: tuple[str, ...], help: str) -> None:
        self.described.append(Described(f"{_PREFIX}{name}", kind, labels, help))


class _Counted(Collector):
    """One counter without labels, read when somebody asks."""

    def __init__(self, name: str, help: str, count: Callable[[], float]) -> None:
        self._name, self._help, self._count = name, help, count

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(self._name, self._help, value=self._count())


class Joined(Collector):
    """The families of several registries, each once; their samples say by the label `model` whose they are."""

    def __init__(self, registries: Sequence[tuple[str, CollectorRegistry]]) -> None:
        self._registries = registries

    def collect(self) -> Iterator[Metric]:
        """A family at a time."""
        families: dict[str, Metric] = {}
        for model, registry in self._registries:
            for family in registry.collect():
                joined = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                joined.samples += [
                    sample._replace(labels={"model": model, **sample.labels}) for sample in family.samples
                ]
        yield from families.values()
