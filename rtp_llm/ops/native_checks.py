"""What protects memory from a wrong index: ranges are checked here, the kernels take them as they are."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rtp_llm.core import Batch, Int32Array
from rtp_llm.errors import InvalidRequest
from rtp_llm.ops.native_stream import Tensor


def int32(values: Int32Array) -> Int32Array:
    """As the kernels read it."""
    return np.ascontiguousarray(values, dtype=np.int32)


def check_ids(ids: Int32Array, num_rows: int) -> None:
    """InvalidRequest for an id without a row."""
    if len(ids) and ids.view(np.uint32).max() >= num_rows:  # a negative one is large there
        bad = ids[(ids < 0) | (ids >= num_rows)][0]
        raise InvalidRequest(f"id {bad} is outside the model's table of {num_rows} rows")


def checked_seen(batch: Batch, lengths: Int32Array) -> Int32Array | None:
    """`batch.seen_lens`: of each sequence one token at least, and no more than there are."""
    if batch.seen_lens is None:
        return None
    seen_lens = int32(batch.seen_lens)
    assert seen_lens.shape == lengths.shape and (seen_lens >= 1).all() and (seen_lens <= lengths).all(), seen_lens
    return seen_lens


def checked_prefixes(batch: Batch) -> Int32Array | None:
    """`batch.prefix_of`, each of which is a sequence before or kept."""
    if batch.prefix_of is None:
        return None
    prefix_of = int32(batch.prefix_of)
    assert len(prefix_of) == batch.num_seqs and prefix_of.min() >= -1 - len(batch.kept)
    # An earlier sequence, which has no prefix itself, or one that is kept.
    assert (prefix_of < np.arange(batch.num_seqs)).all() and (prefix_of[prefix_of[prefix_of >= 0]] == -1).all()
    return prefix_of


def kept_addresses(alive: list[Any], batch: Batch, kept: Sequence[Tensor], size: int) -> tuple[int, int]:
    """Addresses of the addresses of `kept` [tokens, size], and of their lengths; `alive` holds them."""
    assert [x.shape for x in kept] == [(prefix.num_tokens, size) for prefix in batch.kept]
    if not kept:
        return 0, 0
    assert all(x.host is not None for x in kept), "what is kept is on the host"
    arrays = np.array([x.reference for x in kept]), np.array([x.shape[0] for x in kept])
    alive += (*kept, *arrays)
    return arrays[0].ctypes.data, arrays[1].ctypes.data


def wanted_address(alive: list[Any], rows: Int32Array, cu_seqlens: Int32Array) -> int:
    """The address of one row of each of the last sequences of the batch, which was checked; `alive` holds it."""
    rows, ends = int32(rows), cu_seqlens[-len(rows) - 1 :]
    assert len(ends) == len(rows) + 1 and (rows >= ends[:-1]).all() and (rows < ends[1:]).all(), rows
    alive.append(rows)
    return rows.ctypes.data
