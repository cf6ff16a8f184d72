"""Capacity: costs are found again in what they made, and the answer keeps its bound."""

import math
import random
from dataclasses import replace

import pytest

from benchmarks.capacity import Traffic, fit, spread
from benchmarks.simulator import Arrival, Costs, simulate
from rtp_llm.engine.scheduler import Scheduler

TRUE = Costs(fixed=5e-4, per_token=2e-4, per_square=3e-8)
QUERIES = spread(1, (4, 20))
SHAPES = [(1, 4), (1, 64), (1, 512), (16, 16), (8, 64), (4, 256)]


def seconds(costs: Costs, rows: int, length: int) -> float:
    return costs.fixed + rows * (costs.per_token * length + costs.per_square * length**2)


def test_costs_are_found_again() -> None:
    rng = random.Random(0)
    once = [(*shape, seconds(TRUE, *shape) * rng.uniform(0.97, 1.03)) for shape in SHAPES]
    costs, error = fit([(*step, step[2] / 2.5) for step in once], 4)
    assert error < 0.06
    assert costs.per_token == pytest.approx(TRUE.per_token, rel=0.05)
    assert costs.gain == pytest.approx(0.5)
    assert all(seconds(costs, *shape) == pytest.approx(seconds(TRUE, *shape), rel=0.06) for shape in SHAPES)


def test_no_cost_is_below_zero() -> None:
    costs, _ = fit([(*shape, 1e-3 * math.prod(shape) ** 0.8, 1.0) for shape in SHAPES], 2)
    assert min(costs.fixed, costs.per_token, costs.per_square, costs.gain) >= 0


def test_the_answer_keeps_its_bound() -> None:
    traffic = Traffic(QUERIES, 1024, 2, TRUE)
    rate = traffic.rate_within(0.05)
    assert 0.5 * traffic.most < rate < traffic.most
    assert traffic.latencies(rate)[1] <= 0.05 < traffic.latencies(1.1 * traffic.most)[1]
    assert Traffic(spread(1, (500, 512)), 1024, 1, TRUE).rate_within(0.001) == 0


def test_the_event_loop_takes_its_part_of_the_cores() -> None:
    """A lone query waits for it, and under load its time is lost to the steps."""
    costs = replace(TRUE, per_request=3e-4)
    lone = simulate(Scheduler(1024, 1), [Arrival(1.0, [10])], costs)
    assert lone.answers[0].seconds == pytest.approx(3e-4 + seconds(TRUE, 1, 10))
    without, with_it = (Traffic(QUERIES, 1024, 2, each) for each in (TRUE, costs))
    assert 1 / with_it.most == pytest.approx(1 / without.most + 3e-4 / 2)
    *_, busy = with_it.latencies(2 * with_it.most)
    assert busy == pytest.approx(1, abs=0.02)
    assert without.latencies(0.97 * without.most)[1] < with_it.latencies(0.97 * without.most)[1] / 5


def test_cores_that_share_a_step_are_worth_their_gain() -> None:
    lone = simulate(Scheduler(1024, 2), [Arrival(1.0, [10])], replace(TRUE, gain=0.25))
    assert lone.answers[0].seconds == pytest.approx(seconds(TRUE, 1, 10) / 1.25)
