"""jina-reranker-v3: the cosine of what stands at a document's mark and at the query's, each through a projector.

Equals its authors' JinaForRanking.
"""

from collections.abc import Sequence

import numpy as np

from rtp_llm.checkpoint import Parameter, bind, open_tensors
from rtp_llm.core import Batch, FloatArray, Int32Array, Params, Rows
from rtp_llm.ops import Ops, Tensor, Weight
from rtp_llm.tasks import Task, TaskSource
from rtp_llm.tasks.finishing import check_score_activation

_DIMENSION = 512


class Listwise(Task):
    """A sequence is a document's part, up to its mark; the last of an item is the query's."""

    dimension = 1
    per_token = False
    reads = "all"

    def __init__(self, narrow: Weight, out: Weight) -> None:
        self.narrow, self.out = narrow, out

    @classmethod
    def load(cls, source: TaskSource) -> "Listwise":
        """The projector, strictly."""
        tensors = open_tensors(source.model_config.transformer_folder)
        half = source.hidden_size // 2
        needed = {
            "narrow": Parameter(("projector.0.weight",), (half, source.hidden_size)),
            "out": Parameter(("projector.2.weight",), (_DIMENSION, half)),
        }
        weights = bind(tensors, needed, ignore=(r"^(?!projector\.)",))
        task = cls(*(source.ops.matrix(weights.matrix(name)) for name in needed))
        tensors.close()
        return task

    def __call__(self, ops: Ops, hidden_states: Tensor, batch: Batch) -> Tensor:
        """[T, H] -> [B, 512], of the mark at each part's end."""
        marks = ops.pool(hidden_states, batch, "lasttoken")
        return ops.linear(ops.linear(marks, self.narrow, activation="relu"), self.out)

    def check(self, params: Params) -> None:
        """A single score has no softmax."""
        check_score_activation(params)

    def finish(self, rows: Rows, params: Params, input_ids: Sequence[Int32Array]) -> FloatArray:
        """Of n documents and the query -> [n]: cosines, which no `activation` changes, since they are no logits."""
        vectors = np.asarray(rows, np.float64)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return np.asarray(vectors[:-1] @ vectors[-1], np.float32)
