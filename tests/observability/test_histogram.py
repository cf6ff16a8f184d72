"""Many observations at a time against prometheus_client's, one after another: the same text."""

import random

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Histogram as Theirs

from rtp_llm.observability.histogram import Histogram

BUCKETS = (0.0005, 0.125, 1, 10)


def text(registry: CollectorRegistry) -> list[str]:
    """The exposition; when a series began differs."""
    return [line for line in generate_latest(registry).decode().splitlines() if "_created{" not in line]


@pytest.mark.parametrize("seed", range(3))
def test_the_text_is_the_same(seed: int) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    own = Histogram("h", "a help", ["stage"], buckets=BUCKETS, registry=ours)
    their = Theirs("h", "a help", ["stage"], buckets=BUCKETS, registry=theirs)
    drawn = random.Random(seed)
    for _ in range(20):
        # Sums of these are exact in any order.
        amounts = [
            drawn.choice([0.0, 0.125, 1, 10, 11, drawn.randrange(1000) / 64]) for _ in range(drawn.randint(0, 9))
        ]
        stage = drawn.choice(["queue", "compute"])
        own.labels(stage).observe_all(amounts)
        for amount in amounts:
            their.labels(stage).observe(amount)
        their.labels(stage)
        assert text(ours) == text(theirs)
