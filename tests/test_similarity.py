"""Scores between answers against their formulas, in blocks, and where there is nothing to compare."""

import numpy as np
import pytest

from rtp_llm import similarity as module
from rtp_llm.core import FloatArray, SparseVector, TaskType
from rtp_llm.errors import InvalidRequest
from rtp_llm.similarity import hybrid, hybrid_weights, similarity

RANDOM = np.random.default_rng(0)


def vectors(*lengths: int) -> list[FloatArray]:
    return [RANDOM.standard_normal((length, 6), dtype=np.float32) for length in lengths]


def sparse(**weights: float) -> SparseVector:
    ids = sorted(int(name[1:]) for name in weights)
    values = np.array([weights[f"t{token}"] for token in ids], np.float32)
    return SparseVector(np.array(ids, np.int32), values)


def test_dense_is_the_dot_product() -> None:
    left, right = vectors(3, 5)
    assert np.array_equal(similarity(TaskType.DENSE, left, right), left @ right.T)


def test_sparse_multiplies_shared_ids() -> None:
    left = [sparse(t1=2.0, t5=3.0, t9=1.0), sparse()]
    right = [sparse(t5=0.5, t9=4.0), sparse(t2=1.0), sparse(), sparse(t1=1.0, t5=1.0, t9=1.0)]
    assert similarity(TaskType.SPARSE, left, right).tolist() == [[5.5, 0, 0, 6], [0, 0, 0, 0]]


@pytest.mark.parametrize("block", [1, 7, 4096])
def test_colbert_is_the_mean_of_maxima(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_TOKENS", block)
    monkeypatch.setattr(module, "_ROWS", 3)
    left, right = vectors(4, 1, 0), vectors(3, 0, 9, 1, 2)
    scores = similarity(TaskType.COLBERT, left, right)
    for i, one in enumerate(left):
        for j, other in enumerate(right):
            none = -1.0 if len(one) else 0.0  # the least cosine: such a document is among the last
            expected = (one @ other.T).max(axis=1).mean() if len(one) and len(other) else none
            assert scores[i, j] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", [TaskType.SPARSE, TaskType.COLBERT])
def test_nothing_to_compare(kind: TaskType) -> None:
    assert similarity(kind, [], []).shape == (0, 0)


def test_hybrid_is_the_weighted_mean() -> None:
    scores = {kind: RANDOM.standard_normal((2, 3), dtype=np.float32) for kind in module.KINDS}
    dense, lexical, colbert = scores.values()
    weights = hybrid_weights([0.4, 0.2, 0.4], module.KINDS)
    assert np.allclose(hybrid(scores, weights), 0.4 * dense + 0.2 * lexical + 0.4 * colbert, atol=1e-6)
    without = hybrid_weights([1, 3, 0], module.KINDS)
    assert np.allclose(hybrid(scores, without), (dense + 3 * lexical) / 4, atol=1e-6)


def test_weights_default_to_what_is_offered() -> None:
    assert hybrid_weights(None, [TaskType.SPARSE, TaskType.DENSE]) == {TaskType.DENSE: 1.0, TaskType.SPARSE: 1.0}
    with pytest.raises(InvalidRequest, match="not three numbers"):
        hybrid_weights([1, float("inf"), 1], module.KINDS)


@pytest.mark.parametrize("weights", [[1e308] * 3, [1e-320, 1e-320, 1e-320], [10**300, 1e300, 1e300]])
def test_weights_of_any_size_make_the_same_mean(weights: list[float]) -> None:
    scores = {kind: RANDOM.standard_normal((2, 3), dtype=np.float32) for kind in module.KINDS}
    even = hybrid(scores, hybrid_weights([1, 1, 1], module.KINDS))
    assert np.array_equal(hybrid(scores, hybrid_weights(weights, module.KINDS)), even)


def test_one_tiny_weight_is_that_kind_alone() -> None:
    scores = {kind: RANDOM.standard_normal((2, 3), dtype=np.float32) for kind in module.KINDS}
    alone = hybrid(scores, hybrid_weights([1e-320, 0, 0], module.KINDS))
    assert np.array_equal(alone, scores[TaskType.DENSE])


def test_weights_that_make_no_mean() -> None:
    for wrong in ([1, float("nan"), 1], [10**400, 1, 1], [1, 1], [-1, 1, 1]):
        with pytest.raises(InvalidRequest, match="not three numbers"):
            hybrid_weights(wrong, module.KINDS)
    with pytest.raises(InvalidRequest, match="go with kind 'hybrid', and kind 'dense' was asked for"):
        module.check_weights_go_with("dense", [1.5])


def test_products_that_overflow_are_an_error() -> None:
    left = np.array([[1e30, 1e30]], np.float32)
    with pytest.raises(InvalidRequest, match="normalize true"):
        similarity(TaskType.DENSE, left, np.array([[1e30, -1e30]], np.float32))
