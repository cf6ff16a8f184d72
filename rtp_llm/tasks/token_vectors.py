"""A vector a token: BGE-M3's colbert vectors, and the hidden states themselves (RTP-LLM's ALL_EMBEDDING)."""

from collections.abc import Sequence

from rtp_llm.core import Batch, FloatArray, Int32Array, Params, Reads, Rows
from rtp_llm.m3_heads import COLBERT_HEAD
from rtp_llm.ops import Ops, Tensor
from rtp_llm.tasks import Task, TaskSource
from rtp_llm.tasks.bge_m3 import TokenLinear, load_linear
from rtp_llm.tasks.finishing import check_dimensions, slice_and_normalize


class Tokens(Task):
    """The last hidden state of every token, special ones included; normalised unless the request says otherwise."""

    per_token = True
    reads: Reads = "all"

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension

    @classmethod
    def load(cls, source: TaskSource) -> "Tokens":
        """Nothing is loaded."""
        return cls(source.hidden_size)

    def __call__(self, ops: Ops, hidden_states: Tensor, batch: Batch) -> Tensor:
        """[T, H] -> the same."""
        return hidden_states

    def check(self, params: Params) -> None:
        """`dimensions` must lie in 1..dimension."""
        check_dimensions(params, self.dimension)

    def finish(self, rows: Rows, params: Params, input_ids: Sequence[Int32Array]) -> list[FloatArray]:
        """-> [tokens, dimensions] an input."""
        return [slice_and_normalize(vectors, params, normalizes=True) for vectors in rows]


class Colbert(Tokens):
    """One projected vector for each token but the first; the final </s> keeps its own, as in FlagEmbedding."""

    def __init__(self, linear: TokenLinear) -> None:
        super().__init__(linear.dimension)
        self.linear = linear

    @classmethod
    def load(cls, source: TaskSource) -> "Colbert":
        """colbert_linear.pt of the checkpoint."""
        return cls(load_linear(source, COLBERT_HEAD))

    def __call__(self, ops: Ops, hidden_states: Tensor, batch: Batch) -> Tensor:
        """[T, H] -> [T, dimension]."""
        return self.linear(ops, hidden_states, batch)

    def finish(self, rows: Rows, params: Params, input_ids: Sequence[Int32Array]) -> list[FloatArray]:
        """-> [tokens - 1, dimensions] an input."""
        return super().finish([vectors[1:] for vectors in rows], params, input_ids)
