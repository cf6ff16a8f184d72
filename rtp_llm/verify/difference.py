"""How far two values are apart."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtp_llm.verify.outcome import Value


@dataclass(frozen=True, slots=True)
class Difference:
    """`max_abs` of two numbers; `scale`, the largest number of theirs, or 1; the least `cosine` of two vectors."""

    max_abs: float
    scale: float
    cosine: float

    def __add__(self, other: "Difference") -> "Difference":
        """The worse of both."""
        worse = max(self, other, key=lambda difference: difference.max_abs / difference.scale)
        return Difference(worse.max_abs, worse.scale, min(self.cosine, other.cosine))


def difference(ours: Value, theirs: Value) -> Difference:
    """Lexical weights that one side lacks count as 0; ValueError where the shapes are not the same."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        ids = sorted(ours.keys() | theirs.keys())
        return difference(*(np.array([side.get(i, 0.0) for i in ids], np.float32) for side in (ours, theirs)))
    left, right = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if left.shape != right.shape:
        raise ValueError(f"shapes differ: {list(left.shape)} here, {list(right.shape)} there")
    if not left.size:
        return Difference(0.0, 1.0, 1.0)
    # NaN is not within any bound.
    max_abs = float(np.nan_to_num(np.abs(left - right), nan=np.inf).max())
    return Difference(max_abs, max(1.0, float(np.abs(right).max())), _least_cosine(left, right))


def _least_cosine(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """Of the vectors in the last dimension; that of two zero vectors is 1."""
    products = (left * right).sum(-1)
    lengths = np.sqrt((left * left).sum(-1) * (right * right).sum(-1))
    both_zero = ((left == 0).all(-1)) & ((right == 0).all(-1))
    return float(np.where(both_zero, 1.0, products / np.where(lengths > 0, lengths, 1.0)).min())
