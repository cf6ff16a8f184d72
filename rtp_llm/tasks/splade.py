"""SPLADE: how much each word of the vocabulary says of a text, by the masked language model's head.

log1p(relu(logits)), the maximum over all tokens, special ones included. Equals sentence-transformers' SparseEncoder of
a Transformer for fill-mask and SpladePooling. The logarithm rises with its argument, so the maximum comes first.
"""

from collections.abc import Sequence

import numpy as np

from rtp_llm import config_files
from rtp_llm.checkpoint import read_json
from rtp_llm.core import Batch, FloatArray, Int32Array, Params, Reads, Rows, SparseVector
from rtp_llm.errors import CheckpointError
from rtp_llm.modules import Module
from rtp_llm.ops import Ops, Tensor
from rtp_llm.tasks import Task, TaskSource, Vocabulary
from rtp_llm.tasks.finishing import check_max_active_dims, sparse_vector
from rtp_llm.tasks.masked_head import MaskedLanguageHead, load_masked_head

_LOGARITHMS = {"relu": 1, "log1p_relu": 2}


class Splade(Task):
    """A SparseVector over the vocabulary an input.

    logarithms       how often log1p is taken
    max_active_dims  how many of its weights are kept, where a request does not say; None: all
    """

    per_token = False
    reads: Reads = "all"

    def __init__(
        self,
        head: MaskedLanguageHead,
        logarithms: int,
        vocabulary: Vocabulary,
        dimension: int,
        max_active_dims: int | None = None,
    ) -> None:
        self.head = head
        self.logarithms = logarithms
        self.vocabulary = vocabulary
        self.dimension = dimension
        self.max_active_dims = max_active_dims

    @classmethod
    def load(cls, source: TaskSource) -> "Splade":
        """The head, and what SpladePooling's config.json says, or without modules.json its default."""
        model_config = source.model_config
        logarithms = 1 if model_config.splade is None else logarithms_of(model_config.splade)
        size = int(model_config.hf["vocab_size"])
        return cls(load_masked_head(source), logarithms, source.vocabulary, size, model_config.max_active_dims)

    def with_logarithms(self, logarithms: int) -> "Splade":
        """The same head, after which log1p is taken so often."""
        return Splade(self.head, logarithms, self.vocabulary, self.dimension, self.max_active_dims)

    def __call__(self, ops: Ops, hidden_states: Tensor, batch: Batch) -> Tensor:
        """[T, H] -> [B, vocabulary]: the largest of each word's logits, 0 at least."""
        return ops.pool(self.head(ops, hidden_states), batch, "max")

    def check(self, params: Params) -> None:
        """`max_active_dims` must be at least 1."""
        check_max_active_dims(params)

    def finish(self, rows: Rows, params: Params, input_ids: Sequence[Int32Array]) -> list[SparseVector]:
        """-> what is above 0 of each row."""
        return [self.vector(row, params) for row in rows]

    def vector(self, row: FloatArray, params: Params) -> SparseVector:
        """One row's."""
        indices = np.flatnonzero(row).astype(np.int32)
        values = row[indices]
        for _ in range(self.logarithms):
            values = np.log1p(values)
        return sparse_vector(indices, values, params, self.vocabulary, self.max_active_dims)


def logarithms_of(module: Module) -> int:
    """How often a SpladePooling takes log1p; CheckpointError for a setting that is not served."""
    path = module.folder / "config.json"
    settings = read_json(module.folder, "config.json")
    config_files.log_unknown(path, settings, config_files.SPLADE)
    config_files.check(path, settings, config_files.SPLADE)
    if settings.get("pooling_strategy", "max") != "max":
        raise CheckpointError(f"{path}: pooling_strategy {settings['pooling_strategy']!r} is not served; 'max' is")
    activation = settings.get("activation_function", "relu")
    if activation not in _LOGARITHMS:
        raise CheckpointError(f"{path}: activation_function {activation!r} is not one of {', '.join(_LOGARITHMS)}")
    return _LOGARITHMS[activation]
