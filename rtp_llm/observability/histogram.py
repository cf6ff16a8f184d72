"""A Prometheus histogram that takes many observations at a time."""

import math
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString


class Histogram(Collector):
    """Observations by size, for each value of a label, or without one. It exposes what prometheus_client's own does.

    NOTE: that one takes 1 us an observation, with a lock for each number, and a request has six of them. This one has
    no lock: of each label's observations one thread at a time may tell.
    """

    def __init__(self, name: str, help: str, buckets: Sequence[float], label: str | None = None) -> None:
        self._name, self._help, self._label = name, help, label
        self._bounds = (*buckets, math.inf)
        self._observed: dict[str, _Observed] = {}
        if label is None:
            self.of("")

    def of(self, value: str) -> "_Observed":
        """Those with this value of the label, which are exposed from now on."""
        found = self._observed.get(value)
        if found is None:
            found = self._observed[value] = _Observed(self._bounds)
        return found

    def observe(self, amounts: Sequence[float], value: str = "") -> None:
        """These, with this value of the label."""
        self.of(value).add(amounts)

    def collect(self) -> Iterator[Metric]:
        """One family."""
        family = Metric(self._name, self._help, "histogram")
        for value, observed in list(self._observed.items()):
            labels = {} if self._label is None else {self._label: value}
            family.samples += observed.samples(self._name, labels)
        yield family


class _Observed:
    __slots__ = ("_bounds", "_counts", "_created", "_total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * len(bounds)
        self._total = 0.0
        self._created = time.time()

    def add(self, amounts: Sequence[float]) -> None:
        bounds, counts = self._bounds, self._counts
        for amount in amounts:
            counts[bisect_left(bounds, amount)] += 1
        self._total += sum(amounts)

    def samples(self, name: str, labels: dict[str, str]) -> Iterator[Sample]:
        num_so_far = 0
        for bound, count in zip(self._bounds, self._counts, strict=True):
            num_so_far += count
            yield Sample(f"{name}_bucket", {**labels, "le": floatToGoString(bound)}, float(num_so_far))  # type: ignore[no-untyped-call]
        yield Sample(f"{name}_count", labels, float(num_so_far))
        yield Sample(f"{name}_sum", labels, self._total)
        yield Sample(f"{name}_created", labels, self._created)
