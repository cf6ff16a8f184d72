"""Lexical weights of BGE-M3: relu of one linear output a token, the maximum of each id, without special tokens."""

from collections.abc import Sequence

import numpy as np

from rtp_llm.core import Batch, FloatArray, Int32Array, Params, Reads, Rows, SparseVector
from rtp_llm.errors import CheckpointError
from rtp_llm.m3_heads import SPARSE_HEAD
from rtp_llm.ops import Ops, Tensor
from rtp_llm.tasks import Task, TaskSource, Vocabulary
from rtp_llm.tasks.bge_m3 import TokenLinear, load_linear
from rtp_llm.tasks.finishing import check_max_active_dims, sparse_vector

# FlagEmbedding skips these roles and no others: BERT's [SEP] is none of them, XLM-R's </s> is `eos`.
_SKIPPED_ROLES = ("cls", "eos", "pad", "unk")


class Sparse(Task):
    """A SparseVector an input."""

    per_token = True
    reads: Reads = "all"

    def __init__(self, linear: TokenLinear, vocabulary: Vocabulary) -> None:
        self.linear = linear
        self.vocabulary = vocabulary
        self.dimension = vocabulary.vocab_size
        ids = vocabulary.special_ids
        self.skipped_ids = np.array([ids[role] for role in _SKIPPED_ROLES if role in ids], np.int32)

    @classmethod
    def load(cls, source: TaskSource) -> "Sparse":
        """sparse_linear.pt of the checkpoint."""
        linear = load_linear(source, SPARSE_HEAD, "relu")
        if linear.dimension != 1:
            raise CheckpointError(
                f"{source.model_config.folder / SPARSE_HEAD}: weight has {linear.dimension} rows; one is needed, since "
                "a token's lexical weight is one number"
            )
        return cls(linear, source.vocabulary)

    def __call__(self, ops: Ops, hidden_states: Tensor, batch: Batch) -> Tensor:
        """[T, H] -> weights [T, 1]."""
        return self.linear(ops, hidden_states, batch)

    def check(self, params: Params) -> None:
        """`max_active_dims` must be at least 1."""
        check_max_active_dims(params)

    def finish(self, rows: Rows, params: Params, input_ids: Sequence[Int32Array]) -> list[SparseVector]:
        """Token weights [tokens, 1] and ids -> the vectors."""
        return [self._vector(weights[:, 0], ids, params) for weights, ids in zip(rows, input_ids, strict=True)]

    def _vector(self, weights: FloatArray, ids: Int32Array, params: Params) -> SparseVector:
        kept = (weights > 0) & ~np.isin(ids, self.skipped_ids)
        indices, places = np.unique(ids[kept], return_inverse=True)
        values = np.zeros(len(indices), np.float32)
        np.maximum.at(values, places, weights[kept])
        return sparse_vector(indices, values, params, self.vocabulary)
