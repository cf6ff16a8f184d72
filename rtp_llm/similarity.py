"""How alike answers are: every left one with every right one, by kind or as FlagEmbedding's mean of kinds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rtp_llm.core import FloatArray, Int32Array, Output, Params, SparseVector, TaskType
from rtp_llm.errors import InvalidRequest

# The kinds that can be compared, in the order of FlagEmbedding's weights.
KINDS = (TaskType.DENSE, TaskType.SPARSE, TaskType.COLBERT)
# The kinds that score documents where there is no reranker's head, the better one first.
SCORING_KINDS = (TaskType.COLBERT, TaskType.DENSE)
_LARGEST = float(np.finfo(np.float64).max)
# Left-hand and right-hand tokens that one product of MaxSim covers: bounds its memory and time, and is plenty for BLAS.
_ROWS, _BLOCK_TOKENS = 256, 4096
_NO_VECTORS = -1.0  # MaxSim with a document that has none: the least cosine, so that it is among the last


def scored_by(offered: Sequence[TaskType], kinds: Sequence[TaskType] = SCORING_KINDS) -> TaskType:
    """What scores documents for a query: a reranker's head, else vectors of the first of the `kinds` there is.

    RERANK where there is neither, which the engine refuses.
    """
    if TaskType.RERANK in offered:
        return TaskType.RERANK
    return next((kind for kind in kinds if kind in offered), TaskType.RERANK)


def scoring_params(kind: TaskType, params: Params, num_queries: int) -> Params:
    """Of texts whose vectors are compared for a score, which has no activation: dense ones by the cosine."""
    # Vectors of tokens are compared as the checkpoint leaves them.
    normalize = True if kind is TaskType.DENSE else params.normalize
    return replace(params, activation=None, normalize=normalize, num_queries=num_queries)


def similarity(kind: TaskType, left: Output, right: Output) -> FloatArray:
    """Outputs of one kind, as in Response -> fp32 [left, right]; InvalidRequest where dot products overflow."""
    scores = np.zeros((len(left), len(right)), np.float32)
    for _ in similarity_steps(kind, left, right, scores):
        pass
    return scores


def similarity_steps(kind: TaskType, left: Output, right: Output, scores: FloatArray) -> Iterator[None]:
    """`similarity`, into `scores`, in steps of some milliseconds: whoever takes them may stop in between."""
    if kind is TaskType.DENSE:
        with np.errstate(over="ignore", invalid="ignore"):
            scores[:] = left @ right.T
        if not np.isfinite(scores).all():
            raise InvalidRequest("the vectors are so long that their products overflow; ask for normalize true")
        yield
    elif kind is TaskType.SPARSE:
        terms = _terms(right)
        for one, row in zip(left, scores, strict=True):
            row[:] = _lexical(one, terms)
            yield
    else:
        for one, row in zip(left, scores, strict=True):
            for _ in _max_sim(one, right, row):
                yield


def max_sim(scores: FloatArray, queries: Sequence[FloatArray], how: Literal["sum", "mean"]) -> FloatArray:
    """`similarity` of colbert vectors [queries, ·], which is a mean over each query's vectors, as `how` has it."""
    if how == "mean":
        return scores
    counts = np.array([len(vectors) for vectors in queries], np.float32)
    return np.asarray(scores * counts.reshape(-1, *[1] * (scores.ndim - 1)), np.float32)


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


class _Terms(NamedTuple):
    """All weights of several sparse vectors: whose they are, their ids, and the weights in fp64."""

    owners: NDArray[np.intp]
    indices: Int32Array
    values: NDArray[np.float64]
    num_owners: int


def _terms(vectors: Sequence[SparseVector]) -> _Terms:
    owners = np.repeat(np.arange(len(vectors)), [len(vector.indices) for vector in vectors])
    indices = np.concatenate([np.zeros(0, np.int32), *(vector.indices for vector in vectors)])
    values = np.concatenate([np.zeros(0), *(vector.values for vector in vectors)])
    return _Terms(owners, indices, values, len(vectors))


def _lexical(one: SparseVector, others: _Terms) -> FloatArray:
    """Sum over shared ids of the products of the weights, in fp64 and in the order of the ids -> [others]."""
    if not len(one.indices):
        return np.zeros(others.num_owners, np.float32)
    places = np.minimum(np.searchsorted(one.indices, others.indices), len(one.indices) - 1)
    shared = one.indices[places] == others.indices
    products = one.values[places[shared]] * others.values[shared]
    return np.bincount(others.owners[shared], products, others.num_owners).astype(np.float32)


def _max_sim(one: FloatArray, others: Sequence[FloatArray], scores: FloatArray) -> Iterator[None]:
    """Mean over the tokens of `one` of their largest product with a token of the other -> [others]; no tokens: 0."""
    if not len(one):
        return
    scores[:] = _NO_VECTORS
    for places in _blocks([place for place, other in enumerate(others) if len(other)], others):
        columns = np.concatenate([others[place] for place in places]).T
        starts = np.cumsum([0, *(len(others[place]) for place in places[:-1])])
        sums = np.zeros(len(places))
        for first in range(0, len(one), _ROWS):
            products = one[first : first + _ROWS] @ columns
            sums += np.maximum.reduceat(products, starts, axis=1).sum(axis=0, dtype=np.float64)
            yield
        scores[places] = sums / len(one)


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
