"""T5's buckets of distances (Raffel et al. 2020): near ones have one each, far ones share, in steps that widen."""

import math

import numpy as np
from numpy.typing import NDArray

from rtp_llm.core import FloatArray


def distance_buckets(num_buckets: int, max_distance: int) -> NDArray[np.int32]:
    """The bucket of each distance from a query to a key, -max_distance to max_distance -> [2 * max_distance + 1].

    Half of the buckets are for keys that come after the query. Beyond max_distance a distance has the bucket of the
    ends. Equals transformers' T5Attention._relative_position_bucket, bidirectional, logarithms in fp32 as there.
    """
    distances = np.arange(-max_distance, max_distance + 1, dtype=np.int32)
    half = num_buckets // 2
    exact = half // 2
    size = np.abs(distances)
    ratio = np.maximum(size, 1).astype(np.float32) / np.float32(exact)
    steps = np.log(ratio) / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + steps.astype(np.int32), half - 1)
    return np.where(distances > 0, half, 0).astype(np.int32) + np.where(size < exact, size, far).astype(np.int32)


def distance_bias(rows: FloatArray, max_distance: int) -> FloatArray:
    """A table with a row for each bucket [num_buckets, num_heads] -> what `Ops.attention` takes of this name."""
    bias: FloatArray = np.ascontiguousarray(rows[distance_buckets(len(rows), max_distance)].T)
    return bias
