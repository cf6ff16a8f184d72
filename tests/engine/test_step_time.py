"""How large a step may be that ends in time: pure logic."""

import math

import pytest

from rtp_llm.engine.step_time import StepTime


def flat(num_tokens: float) -> float:
    """A hundred tokens a second, whatever a step's size."""
    return num_tokens / 100


def launched(num_tokens: float) -> float:
    """A second, and as little by token as nobody notices."""
    return 1 + num_tokens / 1e6


def margin() -> float:
    return StepTime(flat).seconds(100, 1)


def test_nothing_is_known() -> None:
    time = StepTime()
    assert time.seconds(100, 1) == 0 and time.fitting(100, 1, 1, 1e-9) == 100


def test_a_step_that_ends_in_time_is_taken_whole() -> None:
    assert StepTime(flat).fitting(100, 10, 1, margin()) == 100
    assert StepTime(flat).fitting(100, 10, 2, margin() / 2) == 100
    assert StepTime(flat).fitting(100, 10, 1, math.inf) == 100


@pytest.mark.parametrize("cores", [1, 4])
def test_a_step_is_made_smaller_where_that_is_no_waste(cores: int) -> None:
    fitting = StepTime(flat).fitting(100, 10, cores, 0.3 * margin() / cores)
    assert fitting in (29, 30)
    assert StepTime(flat).fitting(100, 31, cores, 0.3 * margin() / cores) == 0


def test_a_step_is_not_made_small_by_what_has_no_time() -> None:
    """Of 100 tokens it takes as long as of 10."""
    assert StepTime(launched).fitting(100, 10, 1, 0.9) == 0
    assert StepTime(launched).fitting(100, 10, 1, 2.0) == 100


def test_sizes_need_not_cost_what_one_expects() -> None:
    """Rates are measured by size: a smaller step may seem to take longer."""
    time = StepTime(lambda num_tokens: 5.0 if num_tokens < 64 else num_tokens / 100)
    assert time.fitting(128, 10, 1, 0.7 * margin()) == pytest.approx(70, abs=1)
    assert time.fitting(128, 10, 1, 0.5 * margin()) == 0
