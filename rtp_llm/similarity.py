"""How alike answers are: every left one with every right one, by kind or as FlagEmbedding's mean of kinds."""

from collections.abc import Mapping, Sequence

import numpy as np

from rtp_llm.core import FloatArray, Output, SparseVector, TaskType
from rtp_llm.errors import InvalidRequest

# The kinds that can be compared, in the order of FlagEmbedding's weights.
KINDS = (TaskType.DENSE, TaskType.SPARSE, TaskType.COLBERT)
_LARGEST = float(np.finfo(np.float64).max)
# Right-hand tokens that one product of MaxSim covers: bounds its memory, and is plenty for the BLAS.
_BLOCK_TOKENS = 4096


def similarity(kind: TaskType, left: Output, right: Output) -> FloatArray:
    """Outputs of one kind, as in Response -> fp32 [left, right]; InvalidRequest where dot products overflow."""
    if kind is TaskType.DENSE:
        with np.errstate(over="ignore", invalid="ignore"):
            products = np.asarray(left @ right.T)
        if not np.isfinite(products).all():
            raise InvalidRequest("the vectors are so long that their products overflow; ask for normalize true")
        return products
    scores = _lexical if kind is TaskType.SPARSE else _max_sim
    return np.array([scores(one, right) for one in left], np.float32).reshape(len(left), len(right))


def hybrid(scores: Mapping[TaskType, FloatArray], weights: Mapping[TaskType, float]) -> FloatArray:
    """sum(weight * score) / sum(weight) over `weights`; source: FlagEmbedding, M3Embedder.compute_score."""
    # By the largest first: neither a sum of huge weights overflows, nor does one of tiny ones lose its digits.
    largest = max(weights.values())
    shares = {kind: weight / largest for kind, weight in weights.items()}
    total = sum((share * scores[kind].astype(np.float64) for kind, share in shares.items()), np.float64(0))
    return np.asarray(total / sum(shares.values()), np.float32)


def check_weights_go_with(kind: str | None, weights: Sequence[float] | None) -> None:
    """InvalidRequest for weights that the kind takes no heed of."""
    if weights is not None and kind != "hybrid":
        shown = "no kind" if kind is None else f"kind {kind!r}"
        raise InvalidRequest(f"weights: they go with kind 'hybrid', and {shown} was asked for", param="weights")


def hybrid_weights(weights: Sequence[float] | None, offered: Sequence[TaskType]) -> dict[TaskType, float]:
    """Weights of dense, sparse and colbert -> those above 0; InvalidRequest where they make no mean.

    None: 1 for each kind that the checkpoint offers.
    """
    if weights is None:
        return {kind: 1.0 for kind in KINDS if kind in offered}
    if len(weights) != len(KINDS) or not all(0 <= weight <= _LARGEST for weight in weights):
        message = f"weights: {list(weights)!r:.100} is not three numbers from 0 up, for dense, sparse and colbert"
        raise InvalidRequest(message, param="weights")
    chosen = {kind: float(weight) for kind, weight in zip(KINDS, weights, strict=True) if weight > 0}
    if not chosen:
        raise InvalidRequest("weights: all are 0; give at least one kind a weight", param="weights")
    return chosen


def _lexical(one: SparseVector, others: Sequence[SparseVector]) -> FloatArray:
    """Sum over shared ids of the products of the weights, in fp64 -> [others]."""
    scores = np.zeros(len(others), np.float32)
    for place, other in enumerate(others):
        _, mine, theirs = np.intersect1d(one.indices, other.indices, assume_unique=True, return_indices=True)
        scores[place] = one.values[mine].astype(np.float64) @ other.values[theirs]
    return scores


def _max_sim(one: FloatArray, others: Sequence[FloatArray]) -> FloatArray:
    """Mean over the tokens of `one` of their largest product with a token of the other -> [others]; no tokens: 0."""
    scores = np.zeros(len(others), np.float32)
    filled = [place for place, other in enumerate(others) if len(other)]
    if not len(one) or not filled:
        return scores
    for places in _blocks(filled, others):
        products = one @ np.concatenate([others[place] for place in places]).T
        starts = np.cumsum([0, *(len(others[place]) for place in places[:-1])])
        scores[places] = np.maximum.reduceat(products, starts, axis=1).mean(axis=0, dtype=np.float64)
    return scores


def _blocks(places: Sequence[int], vectors: Sequence[FloatArray]) -> list[list[int]]:
    """The places in runs of at most `_BLOCK_TOKENS` vectors in all, or of one."""
    blocks: list[list[int]] = []
    room = 0
    for place in places:
        if not blocks or len(vectors[place]) > room:
            blocks.append([])
            room = _BLOCK_TOKENS
        blocks[-1].append(place)
        room -= len(vectors[place])
    return blocks
