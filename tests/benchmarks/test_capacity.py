"""Capacity: costs are found again in what they made, and the answer keeps its bound."""

import random

import pytest

from benchmarks.capacity import Traffic, fit
from benchmarks.simulator import Costs

TRUE = Costs(fixed=5e-4, per_token=2e-4, per_square=3e-8)
SHAPES = [(1, 4), (1, 64), (1, 512), (16, 16), (8, 64), (4, 256)]


def seconds(costs: Costs, rows: int, length: int) -> float:
    return costs.fixed + rows * (costs.per_token * length + costs.per_square * length**2)


def test_costs_are_found_again() -> None:
    rng = random.Random(0)
    measured = [(*shape, seconds(TRUE, *shape) * rng.uniform(0.97, 1.03)) for shape in SHAPES]
    costs, error = fit(measured)
    assert error < 0.06
    assert costs.per_token == pytest.approx(TRUE.per_token, rel=0.05)
    assert all(seconds(costs, *shape) == pytest.approx(seconds(TRUE, *shape), rel=0.06) for shape in SHAPES)


def test_no_cost_is_below_zero() -> None:
    costs, _ = fit([(rows, length, 1e-3 * (rows * length) ** 0.8) for rows, length in SHAPES])
    assert min(costs.fixed, costs.per_token, costs.per_square) >= 0


def test_the_answer_keeps_its_bound() -> None:
    traffic = Traffic(1, (4, 20), 1024, 2, TRUE)
    rate = traffic.rate_within(0.05)
    assert 0.5 * traffic.most < rate < traffic.most
    assert traffic.latencies(rate)[1] <= 0.05 < traffic.latencies(1.1 * traffic.most)[1]
    assert Traffic(1, (500, 512), 1024, 1, TRUE).rate_within(0.001) == 0
