"""How long a step takes, and how large one may be that ends in time: pure logic, no clock."""

from collections.abc import Callable

# By so much longer than its like took lately a step may take, its answers' way to the clients included.
_MARGIN = 1.25
# A step is made smaller for a deadline where it still does this part of the tokens a second. NOTE: under a load that
# cannot be met the oldest is always about to be late: if each step shrank to what that has time for, all would be tiny.
_FAIR = 0.95


class StepTime:
    """Of a model's steps.

    core_seconds  what one core needs for a step of so many tokens; 0 while nothing is known
    """

    def __init__(self, core_seconds: Callable[[float], float] | None = None) -> None:
        self.core_seconds = core_seconds or _unknown

    def seconds(self, num_tokens: float, num_cores: int) -> float:
        """Within which a step of so many tokens is expected to be done, and its answers sent; 0 while unknown."""
        return self.core_seconds(num_tokens) * _MARGIN / num_cores

    def fitting(self, num_tokens: int, least: int, num_cores: int, seconds: float) -> int:
        """Of how many tokens, `num_tokens` at most, a step is done in so many seconds; 0: of fewer than `least`.

        0 also where that would be a waste: a step much slower by token than the whole one.
        """
        whole = self.seconds(num_tokens, num_cores)
        size, taken = num_tokens, whole
        while taken * num_tokens * _FAIR <= whole * size:
            if taken <= seconds:
                return size
            if size == least:
                return 0
            # A smaller step may be slower by token: it comes down to the size bit by bit.
            size = max(min(int(size * seconds / taken), size - 1), least)
            taken = self.seconds(size, num_cores)
        return 0


def _unknown(num_tokens: float) -> float:
    return 0.0
