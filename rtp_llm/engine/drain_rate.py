"""How fast a device computes, told from the batches that it has computed."""

import math

# What a batch leaves of the weight of those before it: a rate follows the last ten or so.
_MEMORY = 0.9


class DrainRate:
    """Tokens that a core computes in a second, by the size of a batch in powers of two.

    A small batch takes longer by token: what lone queries took last says nothing of a queue, which is computed in full
    batches.
    """

    def __init__(self) -> None:
        self._tokens: dict[int, float] = {}
        self._core_seconds: dict[int, float] = {}

    def observe(self, num_tokens: int, core_seconds: float) -> None:
        """A batch has been computed."""
        size = num_tokens.bit_length()
        self._tokens[size] = _MEMORY * self._tokens.get(size, 0.0) + num_tokens
        self._core_seconds[size] = _MEMORY * self._core_seconds.get(size, 0.0) + core_seconds

    def of(self, num_tokens: float) -> float:
        """Of batches of so many tokens, or of those nearest to them in size; 0 before the first."""
        wanted = math.frexp(num_tokens)[1]
        size = min(self._tokens, key=lambda size: (abs(size - wanted), -size), default=0)
        return self._tokens[size] / self._core_seconds[size] if size else 0.0
