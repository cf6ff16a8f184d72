"""How fast a device computes, told from the batches that it has computed."""

import math

# What a batch leaves of the weight of those before it: a rate follows the last ten or so.
_MEMORY = 0.9
# Twice the tokens are done at this part of the rate at least (0.71 in bge-m3, of 8192 tokens beside 4096). What was
# seen of a size while the machine was held up is believed no longer than smaller batches say so too: of a size that
# seems too slow for the deadlines no batch is made that could tell better.
_LEAST_GROWTH = 0.7


class DrainRate:
    """Tokens that a core computes in a second, by the size of a batch in powers of two.

    A small batch takes longer by token: what lone queries took last says nothing of a queue, which is computed in full
    batches. One thread at a time may observe; any may ask meanwhile.
    """

    def __init__(self) -> None:
        # size -> tokens, core seconds; size -> tokens a second. Never changed, but replaced as a whole.
        self._observed: dict[int, tuple[float, float]] = {}
        self._rates: dict[int, float] = {}

    def observe(self, num_tokens: int, core_seconds: float) -> None:
        """A batch has been computed."""
        size = num_tokens.bit_length()
        tokens, seconds = self._observed.get(size, (0.0, 0.0))
        own = (_MEMORY * tokens + num_tokens, _MEMORY * seconds + core_seconds)
        self._observed = self._observed | {size: own}
        self._rates = self._believed()

    def of(self, num_tokens: float) -> float:
        """Of batches of so many tokens, or of those nearest to them in size; 0 before the first."""
        rates, wanted = self._rates, math.frexp(num_tokens)[1]
        if wanted in rates:
            return rates[wanted]
        size = min(rates, key=lambda size: (abs(size - wanted), -size), default=0)
        return rates.get(size, 0.0)

    def core_seconds(self, num_tokens: float) -> float:
        """What a core needs for a batch of so many tokens; 0 before the first."""
        rate = self.of(num_tokens)
        return num_tokens / rate if rate else 0.0

    def _believed(self) -> dict[int, float]:
        rates: dict[int, float] = {}
        before, rate = 0, 0.0
        for size, (tokens, seconds) in sorted(self._observed.items()):
            rate = max(tokens / max(seconds, 1e-9), rate * _LEAST_GROWTH ** (size - before))
            rates[size], before = rate, size
        return rates
