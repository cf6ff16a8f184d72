"""Static embeddings: a token's hidden state is its row of a table, whatever stands beside it.

Equals sentence-transformers' StaticEmbedding, of its own checkpoints and of model2vec's (Minish Lab).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rtp_llm.checkpoint import TensorSource, read_token_table
from rtp_llm.core import Batch, FloatArray
from rtp_llm.models import Model, OnKeys, OnLayer
from rtp_llm.ops import Ops, Tensor

# There are no positions; what bounds a text is the time that its tokens take.
_LONGEST = 1 << 16


class Static(Model):
    """The table, and after its rows one of zeros, `vocab_size`: what a text without tokens is read as."""

    max_positions = _LONGEST

    def __init__(self, rows: FloatArray, ops: Ops) -> None:
        self.vocab_size, self.hidden_size = rows.shape
        self.table = ops.table(np.concatenate([rows, np.zeros((1, self.hidden_size), np.float32)]))
        self.layers, self.matrices = (), {}

    @classmethod
    def load(cls, hf: Mapping[str, Any], source: TensorSource, ops: Ops) -> "Static":
        """Strictly from the checkpoint's tensors; config.json is not needed."""
        return cls(read_token_table(source), ops)

    def __call__(
        self, ops: Ops, batch: Batch, on_layer: OnLayer | None = None, on_keys: OnKeys | None = None
    ) -> Tensor:
        """Packed batch -> hidden_states [T, hidden_size], or of the wanted rows; neither callback is called."""
        hidden_states = ops.embed([(self.table, batch.input_ids)])
        return hidden_states if batch.wanted is None else ops.rows(hidden_states, batch.wanted)
