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
# What a task computes for some inputs: a matrix with a row each, or a list with an array [tokens, ·] each.
Rows: TypeAlias = FloatArray | list[FloatArray]
# What a caller gets of one task; see Response.
Output: TypeAlias = Any


class TaskType(str, Enum):
    """What a caller can ask a checkpoint for."""

    DENSE = "dense"
    SPARSE = "sparse"
    COLBERT = "colbert"
    TOKENS = "tokens"
    RERANK = "rerank"
    CLASSIFY = "classify"


@dataclass(frozen=True, slots=True, eq=False)
class SparseVector:
    """Weights by token id: `indices` [n] ascending, `values` [n] > 0; `tokens` are the vocabulary's own, on request."""

    indices: Int32Array
    values: FloatArray
    tokens: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """What a caller may vary per request; every default means "as the checkpoint says".

    dimensions          Matryoshka: slice the vector, then normalise it again; None or the native size: no-op
    normalize           None: the checkpoint's own module chain; True: L2 afterwards; False: stop before its Normalize
    activation          of scores and logits; None: the checkpoint's own
    instruction         what a language model that reranks is told to look for; None: its authors' own
    return_tokens       sparse vectors carry their tokens
    truncate            False: an input over the limit is an error
    truncation          how a pair over the limit is cut: the longer side first, as sentence-transformers does; or only
                        the second, after cutting the first to three quarters of the limit, as FlagEmbedding does
    max_tokens_per_doc  the second text of a pair is cut to so many tokens, before the pair is cut to the limit
    truncation_side     which end an over-long input loses; None: the checkpoint's, right where it does not say
    prompt              text put before each input; None: `prompt_name`, else the checkpoint's default prompt
    prompt_name         a key of the checkpoint's prompts
    add_special_tokens  False: [CLS] and [SEP] are left out
    """

    dimensions: int | None = None
    normalize: bool | None = None
    activation: Literal["none", "sigmoid", "softmax"] | None = None
    instruction: str | None = None
    return_tokens: bool = False
    truncate: bool = True
    truncation: Literal["longest_first", "only_second"] = "longest_first"
    max_tokens_per_doc: int | None = None
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
    """One tokenised sequence of a request, to be answered by `tasks`: `index` is its place among the inputs."""

    input_ids: Int32Array
    index: int
    token_type_ids: Int32Array | None = None
    prompt_length: int = 0
    truncated: bool = False
    tasks: tuple[TaskType, ...] = ()
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
    """`outputs[task]` has an entry per input, in the request's order.

    dense            fp32 [inputs, dim]
    sparse           list of SparseVector
    colbert, tokens  list of fp32 [tokens, dim]: colbert without the first token, tokens with all of `input_ids`
    rerank           fp32 [inputs]
    classify         fp32 [inputs, labels]

    `num_tokens` and `input_ids` are what the model really read: after truncation, special tokens included.
    """

    outputs: dict[TaskType, Output]
    num_tokens: Sequence[int]
    truncated: Sequence[bool]
    input_ids: Sequence[Int32Array] = ()
    timings: Timings = field(default_factory=Timings)

    @property
    def total_tokens(self) -> int:
        return sum(self.num_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a server tells of the model it has loaded.

    pooling                   how dense embeddings are pooled, in sentence-transformers' words; empty: there are none
    scores_are_probabilities  of a reranker that is a language model: P(yes), where a cross-encoder has a logit
    """

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
    labels: tuple[str, ...] = ()
    pooling: str = ""
    scores_are_probabilities: bool = False
    created: int = 0
