"""Static embeddings: a token's hidden state is its row of a table, whatever stands beside it.

Equals sentence-transformers' StaticEmbedding, of its own checkpoints and of model2vec's (Minish Lab).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rtp_llm.checkpoint import TensorSource, check_finite, check_floats
from rtp_llm.core import Batch, FloatArray
from rtp_llm.errors import CheckpointError
from rtp_llm.models import OnKeys, OnLayer
from rtp_llm.ops import Ops, Tensor

# The table's name in sentence-transformers' files, and in model2vec's.
_TABLES = ("embedding.weight", "embeddings")
# model2vec's: the row of each token, where several share one, and what it is multiplied by.
_MAPPING, _SCALES = "mapping", "weights"
# There are no positions; what bounds a text is the time that its tokens take.
_LONGEST = 1 << 16


class Static:
    """The table, and after its rows one of zeros, `vocab_size`: what a text without tokens is read as."""

    learnt_positions = False
    causal = False
    shares_prefixes = False
    reads_host = False
    kv_size = 0
    max_positions = _LONGEST

    def __init__(self, rows: FloatArray, ops: Ops) -> None:
        self.vocab_size, self.hidden_size = rows.shape
        self.table = ops.table(np.concatenate([rows, np.zeros((1, self.hidden_size), np.float32)]))
        self.layers: Sequence[Any] = ()
        self.matrices: Mapping[tuple[int, str], tuple[str, ...]] = {}

    @classmethod
    def load(cls, hf: Mapping[str, Any], source: TensorSource, ops: Ops) -> "Static":
        """Strictly from the checkpoint's tensors; config.json is not needed."""
        name = next((name for name in _TABLES if name in source.tensors), _TABLES[0])
        known = {name, _MAPPING, _SCALES} if name == _TABLES[1] else {name}
        unexpected = sorted(source.tensors.keys() - known)
        if name not in source.tensors or unexpected:
            missing = "" if name in source.tensors else f"neither of {', '.join(_TABLES)} is there; "
            raise CheckpointError(f"{source.path}: {missing}unexpected: {', '.join(unexpected[:10]) or 'nothing'}")
        rows = _floats(source, name, 2)
        if _MAPPING in source.tensors:
            rows = rows[_mapping(source, len(rows))]
        if _SCALES in source.tensors:
            scales = _floats(source, _SCALES, 1)
            if len(scales) != len(rows):
                raise CheckpointError(f"{source.path}: {_SCALES} has {len(scales)} numbers for {len(rows)} tokens")
            rows = rows * scales[:, None]
        return cls(rows, ops)

    def prepare(self, batch: Batch) -> Batch:
        """There are no positions."""
        return batch

    def __call__(
        self, ops: Ops, batch: Batch, on_layer: OnLayer | None = None, on_keys: OnKeys | None = None
    ) -> Tensor:
        """Packed batch -> hidden_states [T, hidden_size], or of the wanted rows; neither callback is called."""
        hidden_states = ops.embed([(self.table, batch.input_ids)])
        return hidden_states if batch.wanted is None else ops.rows(hidden_states, batch.wanted)


def _floats(source: TensorSource, name: str, num_axes: int) -> FloatArray:
    """A finite tensor of so many axes, none of them empty."""
    check_floats(source, name)
    shape = source.tensors[name].shape
    if len(shape) != num_axes or 0 in shape:
        raise CheckpointError(f"{source.path}: {name} is {list(shape)}; {num_axes} axes are needed, none of them empty")
    values = source.read(name)
    check_finite(values, source, name)
    return values


def _mapping(source: TensorSource, num_rows: int) -> Any:
    """The row of each token."""
    info = source.tensors[_MAPPING]
    # NOTE: as fp32, whole numbers below 2^24 are exact; a table is smaller.
    mapping = source.read(_MAPPING)
    if len(info.shape) != 1 or not info.num_elements or not info.dtype.startswith(("int", "uint")):
        raise CheckpointError(f"{source.path}: {_MAPPING} is {info.dtype} {list(info.shape)}; a list of rows is needed")
    if mapping.min() < 0 or mapping.max() >= num_rows or num_rows >= 1 << 24:
        raise CheckpointError(f"{source.path}: {_MAPPING} names rows that are not among the {num_rows} of the table")
    return mapping.astype(np.int64)
