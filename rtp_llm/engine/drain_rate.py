"""How fast a device computes, told from the batches that it has computed."""

import math

# What a batch leaves of the weight of those before it: a rate follows the last ten or so.
_MEMORY = 0.9


class DrainRate:
    """Tokens that a core computes in a second, by the size of a batch in powers of two.

    A small batch takes longer by token: what lone queries took last says nothing of a queue, which is computed in full
    batches. One thread at a time may observe; any may ask meanwhile.
    """

    def __init__(self) -> None:
        # size -> tokens, core seconds; never changed, but replaced as a whole.
        self._observed: dict[int, tuple[float, float]] = {}

    def observe(self, num_tokens: int, core_seconds: float) -> None:
        """A batch has been computed."""
        size = num_tokens.bit_length()
        tokens, seconds = self._observed.get(size, (0.0, 0.0))
        own = (_MEMORY * tokens + num_tokens, _MEMORY * seconds + core_seconds)
        self._observed = self._observed | {size: own}

    def of(self, num_tokens: float) -> float:
        """Of batches of so many tokens, or of those nearest to them in size; 0 before the first."""
        observed, wanted = self._observed, math.frexp(num_tokens)[1]
        size = min(observed, key=lambda size: (abs(size - wanted), -size), default=0)
        if not size:
            return 0.0
        tokens, seconds = observed[size]
        return tokens / seconds
