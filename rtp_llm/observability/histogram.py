"""A Prometheus histogram that takes many observations at a time."""

from bisect import bisect_left
from collections.abc import Sequence

import prometheus_client


class Histogram(prometheus_client.Histogram):
    """prometheus_client's own, whose `observe` takes 1 us, with a lock for each number; a request has six of them."""

    def observe_all(self, amounts: Sequence[float]) -> None:
        """As `observe` of each."""
        bounds = self._upper_bounds
        counts = [0] * len(bounds)
        for amount in amounts:
            counts[bisect_left(bounds, amount)] += 1
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        self._sum.inc(sum(amounts))
