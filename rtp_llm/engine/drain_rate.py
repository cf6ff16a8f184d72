"""How fast a device computes, told from the batches that it has computed."""

import math

# What a batch leaves of the weight of those before it: a rate follows the last ten or so.
_MEMORY = 0.9
# Twice the tokens are done at this part of the rate at least (0.71 in bge-m3, of 8192 tokens beside 4096). What was
# seen of a size while the machine was held up is believed no longer than smaller batches, later, say so too: of a size
# that seems too slow for the deadlines no batch is made that could tell better.
_LEAST_GROWTH = 0.7


class DrainRate:
    """Tokens that a core computes in a second, by the size of a batch: a power of two, and what is nearest to it.

    A small batch takes longer by token: what lone queries took last says nothing of a queue, which is computed in full
    batches. One thread at a time may observe; any may ask meanwhile.
    """

    def __init__(self) -> None:
        # size -> tokens, core seconds, in the order of their last batch.
        self._observed: dict[int, tuple[float, float]] = {}
        # By size, the rates of those that were seen, and of others that were asked for; replaced together.
        self._rates: tuple[dict[int, float], dict[int, float]] = {}, {}

    @property
    def is_known(self) -> bool:
        """Whether a batch has been observed."""
        return bool(self._rates[0])

    def observe(self, num_tokens: int, core_seconds: float) -> None:
        """A batch has been computed."""
        size = _size_of(num_tokens)
        tokens, seconds = self._observed.pop(size, (0.0, 0.0))
        self._observed[size] = (_MEMORY * tokens + num_tokens, _MEMORY * seconds + core_seconds)
        rates: dict[int, float] = {}
        for size, (tokens, seconds) in reversed(self._observed.items()):
            later = (rate * _LEAST_GROWTH ** (size - other) for other, rate in rates.items() if other < size)
            rates[size] = max(tokens / max(seconds, 1e-9), *later, 0.0)
        self._rates = rates, {}

    def of(self, num_tokens: float) -> float:
        """Of batches of so many tokens, or of those nearest to them in size; 0 before the first."""
        (seen, others), wanted = self._rates, _size_of(num_tokens)
        rate = seen.get(wanted) or others.get(wanted)
        if rate is None:
            size = min(seen, key=lambda size: (abs(size - wanted), -size), default=0)
            rate = others[wanted] = seen.get(size, 0.0)
        return rate

    def core_seconds(self, num_tokens: float) -> float:
        """What a core needs for a batch of so many tokens; 0 before the first."""
        rate = self.of(num_tokens)
        return num_tokens / rate if rate else 0.0


def _size_of(num_tokens: float) -> int:
    """The binary exponent of the nearest power of two, so that almost full steps of a budget are of its own size."""
    return math.frexp(1.5 * num_tokens)[1]
