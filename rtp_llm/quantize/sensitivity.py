"""Which linear layers stay in fp32: the fewest with which the rows reach the bars."""

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from rtp_llm.core import FloatArray, Item
from rtp_llm.engine.likeness import Likeness, likeness, rows
from rtp_llm.models import Model
from rtp_llm.ops import Ops, PoolMode

# (number of the layer, name of its weight): a key of `Model.matrices`.
Matrix: TypeAlias = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Choice:
    """What stays in fp32, and what was measured on the way.

    all_quantized  with nothing in fp32
    chosen         with `kept` in fp32
    alone          with one weight in 8 bits and all others in fp32; empty where nothing had to be kept
    """

    kept: tuple[Matrix, ...]
    all_quantized: Likeness
    chosen: Likeness
    alone: dict[Matrix, Likeness] = field(default_factory=dict)


class Mixture:
    """One model with each weight in fp32 or in 8 bits, as is asked, beside the rows of fp32."""

    def __init__(self, exact: Model, quantized: Model, ops: Ops, items: Sequence[Item], mode: PoolMode) -> None:
        self.matrices = [
            matrix for matrix in exact.matrices if type(_of(exact, matrix)) is not type(_of(quantized, matrix))
        ]
        self._exact, self._quantized = exact, quantized
        self._ops, self._items, self._mode = ops, items, mode
        self._rows: FloatArray = rows(exact, ops, items, mode)

    def measure(self, kept: Collection[Matrix]) -> Likeness:
        """To fp32, with these in fp32."""
        mixed: Any = copy.copy(self._exact)
        mixed.layers = list(self._exact.layers)
        for number, name in set(self.matrices) - set(kept):
            mixed.layers[number] = replace(mixed.layers[number], **{name: _of(self._quantized, (number, name))})
        return likeness(rows(mixed, self._ops, self._items, self._mode), self._rows)


def _of(model: Model, matrix: Matrix) -> Any:
    return getattr(model.layers[matrix[0]], matrix[1])


def choose(mixture: Mixture, bars: Likeness, on_measured: Callable[[], None]) -> Choice:
    """Nothing is kept where all weights reach the bars in 8 bits; else those that do most harm alone.

    How many is found by halving, since with more kept the rows come nearer.
    """

    def measure(kept: Collection[Matrix]) -> Likeness:
        found = mixture.measure(kept)
        on_measured()
        return found

    everything = measure(())
    if everything.reaches(bars):
        return Choice((), everything, everything)
    matrices = mixture.matrices
    alone = {matrix: measure([other for other in matrices if other != matrix]) for matrix in matrices}
    worst_first = sorted(matrices, key=lambda matrix: alone[matrix].mean)
    low, high, best = 0, len(matrices), Likeness(1.0, 1.0)
    while high - low > 1:
        middle = (low + high) // 2
        found = measure(worst_first[:middle])
        if found.reaches(bars):
            high, best = middle, found
        else:
            low = middle
    return Choice(tuple(sorted(worst_first[:high])), everything, best, alone)
