"""A table with a vector for each token: sentence-transformers' StaticEmbedding's, or model2vec's (Minish Lab)."""

from typing import Any

import numpy as np

from rtp_llm.checkpoint.tensors import TensorSource
from rtp_llm.checkpoint.weights import check_finite, check_floats
from rtp_llm.core import FloatArray
from rtp_llm.errors import CheckpointError

# The table's name in sentence-transformers' files, and in model2vec's.
_TABLES = ("embedding.weight", "embeddings")
# model2vec's: the row of each token, where several share one, and what it is multiplied by.
_MAPPING, _SCALES = "mapping", "weights"


def read_token_table(source: TensorSource) -> FloatArray:
    """-> [tokens, columns]; CheckpointError for tensors that make no such table, or are left over."""
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
    return rows


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
