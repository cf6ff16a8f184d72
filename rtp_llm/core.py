"""The nouns that travel through every floor: a Request becomes Items, Items become Batches, rows become a Response."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Int32Array: TypeAlias = NDArray[np.int32]
FloatArray: TypeAlias = NDArray[np.float32]
Input: TypeAlias = str | tuple[str, str] | list[int]
Output: TypeAlias = FloatArray


class TaskType(str, Enum):
    """What a caller can ask a checkpoint for."""

    DENSE = "dense"
    SPARSE = "sparse"
    COLBERT = "colbert"
    RERANK = "rerank"
    CLASSIFY = "classify"


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """What a caller may vary per request; every default means "as the checkpoint says".

    dimensions          Matryoshka: slice the vector, then normalise it again; None or the native size: no-op
    normalize           None: the checkpoint's own module chain; True: L2 afterwards; False: stop before its Normalize
    truncate            False: an input over the limit is an error
    truncation_side     which end an over-long input loses; None: the checkpoint's, right where it does not say
    prompt              text put before each input; None: `prompt_name`, else the checkpoint's default prompt
    prompt_name         a key of the checkpoint's prompts
    add_special_tokens  False: [CLS] and [SEP] are left out
    """

    dimensions: int | None = None
    normalize: bool | None = None
    truncate: bool = True
    truncation_side: Literal["left", "right"] | None = None
    prompt: str | None = None
    prompt_name: str | None = None
    add_special_tokens: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call: `inputs` are answered in order, each by every task of `tasks`."""

    inputs: Sequence[Input]
    tasks: tuple[TaskType, ...] = (TaskType.DENSE,)
    params: Params = field(default_factory=Params)
    request_id: str | None = None


@dataclass(slots=True, eq=False)
class Item:
    """One tokenised sequence of a request: `index` is its place among the request's inputs."""

    input_ids: Int32Array
    index: int
    token_type_ids: Int32Array | None = None
    prompt_length: int = 0
    truncated: bool = False
    owner: Any = None
    queued: bool = False

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences laid end to end, without padding.

    input_ids, position_ids, token_type_ids  [T]
    cu_seqlens                               [B + 1], sequence i is rows cu_seqlens[i]:cu_seqlens[i + 1]
    prompt_lens                              [B], leading tokens of each sequence that belong to its prompt
    max_seqlen                               the longest sequence
    """

    input_ids: Int32Array
    position_ids: Int32Array
    token_type_ids: Int32Array
    cu_seqlens: Int32Array
    prompt_lens: Int32Array
    max_seqlen: int

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_seqs(self) -> int:
        return len(self.cu_seqlens) - 1


def pack(items: Sequence[Item]) -> Batch:
    """Lay the items' tokens end to end; positions count from 0 in each sequence."""
    lengths = np.array([len(item.input_ids) for item in items], dtype=np.int32)
    cu_seqlens = np.zeros(len(items) + 1, dtype=np.int32)
    np.cumsum(lengths, out=cu_seqlens[1:])
    num_tokens = int(cu_seqlens[-1])
    token_type_ids = np.zeros(num_tokens, dtype=np.int32)
    for item, start in zip(items, cu_seqlens.tolist(), strict=False):
        if item.token_type_ids is not None:
            token_type_ids[start : start + len(item.token_type_ids)] = item.token_type_ids
    starts = np.repeat(cu_seqlens[:-1], lengths)
    return Batch(
        input_ids=np.concatenate([item.input_ids for item in items], dtype=np.int32),
        position_ids=np.arange(num_tokens, dtype=np.int32) - starts,
        token_type_ids=token_type_ids,
        cu_seqlens=cu_seqlens,
        prompt_lens=np.array([item.prompt_length for item in items], dtype=np.int32),
        max_seqlen=int(lengths.max()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds spent in each stage of one request."""

    tokenize: float = 0.0
    queue: float = 0.0
    compute: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """`outputs[task]` has a row per input, in the request's order.

    For the dense task that is one fp32 matrix [inputs, dim].
    `num_tokens` counts what the model really read: after truncation, special tokens included.
    """

    outputs: dict[TaskType, Output]
    num_tokens: Sequence[int]
    truncated: Sequence[bool]
    timings: Timings = field(default_factory=Timings)

    @property
    def total_tokens(self) -> int:
        return sum(self.num_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a server tells of the model it has loaded."""

    name: str
    model_type: str
    tasks: tuple[TaskType, ...]
    dimension: int
    max_seq_len: int
    vocab_size: int
    backend: str
    instruction_set: str
    num_threads: int
    dtype: str
    max_batch_tokens: int
    prompts: tuple[str, ...] = ()
    created: int = 0
