"""A mixture of experts in numpy: which experts a row has, and what they make of it together."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtp_llm.core import FloatArray
from rtp_llm.ops import Experts

# (rows, weight, bias, activation) -> as `Ops.linear`.
Linear = Callable[[FloatArray, Any, None, str | None], FloatArray]


def route(scores: FloatArray, top_k: int) -> tuple[NDArray[np.intp], FloatArray]:
    """scores [T, E] -> the experts of each row, ascending, and their probabilities, [T, top_k] both."""
    preferred = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    chosen = np.sort(preferred, axis=1)
    exponentials = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True, initial=-np.inf))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    return chosen, np.take_along_axis(probabilities, chosen, axis=1).astype(np.float32)


def mix(x: FloatArray, scores: FloatArray, experts: Experts, linear: Linear, residual: FloatArray | None) -> FloatArray:
    """`Ops.experts` of x [T, H], whose products with the router are `scores`; `experts.bias` is an array."""
    chosen, weights = route(scores, experts.top_k)
    parts = np.empty((*chosen.shape, x.shape[1]), np.float32)
    for number in np.unique(chosen):
        rows = linear(x[(chosen == number).any(axis=1)], experts.up[number], None, experts.activation)
        parts[chosen == number] = linear(rows, experts.down[number], None, None)
    y = parts[:, 0] * weights[:, :1]
    for place in range(1, experts.top_k):
        y += parts[:, place] * weights[:, place, None]
    if experts.bias is not None:
        y += experts.bias
    return y if residual is None else y + residual
