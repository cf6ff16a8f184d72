"""A vector for each token: a text's is their mean, and no model is run.

Equals sentence-transformers' StaticEmbedding, as a route beside a transformer's.
"""

from collections.abc import Sequence

import numpy as np

from rtp_llm.checkpoint import open_tensors, read_token_table
from rtp_llm.core import FloatArray, Int32Array, Params
from rtp_llm.errors import CheckpointError
from rtp_llm.modules import Module
from rtp_llm.tasks import Vocabulary
from rtp_llm.tasks.finishing import slice_and_normalize


class TokenMeans:
    """`table` [tokens, dimension], for ids below `num_ids`; `normalizes`: the vectors are of length 1."""

    def __init__(self, table: FloatArray, num_ids: int, *, normalizes: bool) -> None:
        self.table = table
        self.num_ids = num_ids
        self.normalizes = normalizes

    @classmethod
    def load(cls, modules: Sequence[Module], vocabulary: Vocabulary) -> "TokenMeans":
        """The table of the first module; what follows it is Normalize or nothing."""
        source = open_tensors(modules[0].folder)
        table = read_token_table(source).copy()
        source.close()
        if len(table) < vocabulary.vocab_size:
            raise CheckpointError(
                f"{source.path} has {len(table)} rows for the tokenizer's {vocabulary.vocab_size} ids"
            )
        normalizes = any(module.kind == "Normalize" for module in modules)
        return cls(table, vocabulary.vocab_size, normalizes=normalizes)

    @property
    def dimension(self) -> int:
        """Columns of a vector."""
        return int(self.table.shape[1])

    def finish(self, texts: Sequence[Int32Array], params: Params, truncate_dim: int | None) -> FloatArray:
        """Each text's token ids -> [texts, dimensions], as `Dense.finish` has it; zeros for a text of no tokens."""
        means = np.zeros((len(texts), self.dimension), np.float32)
        for mean, ids in zip(means, texts, strict=True):
            known = ids[ids < self.num_ids]
            if len(known):
                mean[:] = self.table[known].mean(axis=0, dtype=np.float64)
        return slice_and_normalize(means, params, normalizes=self.normalizes, truncate_dim=truncate_dim)
