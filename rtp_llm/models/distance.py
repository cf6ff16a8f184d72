"""What a score has of the distance from query to key: T5's and DeBERTa's buckets, ALiBi's slopes.

Buckets: near distances have one each, far ones share, in steps that widen.
"""

import math

import numpy as np
from numpy.typing import NDArray

from rtp_llm.core import FloatArray


def distance_buckets(num_buckets: int, max_distance: int) -> NDArray[np.int32]:
    """T5's bucket of each distance from a query to a key, -max_distance to max_distance -> [2 * max_distance + 1].

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


def log_buckets(num_buckets: int, max_distance: int) -> NDArray[np.int32]:
    """DeBERTa's rows for distances -max_distance to max_distance -> [2 * max_distance + 1], of 2 * num_buckets.

    Distance 0 has the row in the middle, and each distance below half of num_buckets one of its own. Beyond
    max_distance a distance has the row of the ends. `num_buckets` 0: each has its own, 2 * max_distance of them in all.
    Equals transformers' make_log_bucket_position, logarithms in fp32 as there, and what is clamped to the table.
    """
    distances = np.arange(-max_distance, max_distance + 1, dtype=np.int32)
    half, span = num_buckets // 2, num_buckets or max_distance
    if num_buckets:
        size = np.maximum(np.abs(distances), half).astype(np.float32)
        steps = np.log(size / np.float32(half)) / np.log(np.float32((max_distance - 1) / half)) * np.float32(half - 1)
        far = (np.ceil(steps) + half).astype(np.int32) * np.sign(distances)
        distances = np.where(np.abs(distances) <= half, distances, far)
    return np.clip(distances + span, 0, 2 * span - 1).astype(np.int32)


def distance_bias(rows: FloatArray, max_distance: int) -> FloatArray:
    """A table with a row for each bucket [num_buckets, num_heads] -> what `Ops.attention` takes of this name."""
    bias: FloatArray = np.ascontiguousarray(rows[distance_buckets(len(rows), max_distance)].T)
    return bias


def alibi_slopes(num_heads: int, *, halved: bool = False) -> FloatArray:
    """ALiBi's slope of each head (Press et al. 2022) -> [num_heads].

    Of a power of two, 2 ** (-8 / num_heads) and its powers. Other numbers of heads have those of the largest power of
    two below, then every other one of twice as many; `halved`: these halved, as jina-reranker-v1's own code has them.
    """
    power = 1 << (num_heads.bit_length() - 1)
    own = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    more = [2 ** (-8 * (head + 1) / (2 * power)) for head in range(0, 2 * (num_heads - power), 2)]
    return np.array(own + [slope / 2 if halved else slope for slope in more], np.float32)


def alibi_bias(slopes: FloatArray, max_distance: int) -> FloatArray:
    """-slope * distance, to either side -> what `Ops.attention` takes as `distance_bias`, up to max_distance."""
    bias: FloatArray = -slopes[:, None] * np.abs(np.arange(1 - max_distance, max_distance, dtype=np.float32))
    return bias
