"""The nouns that travel through every floor: a Request becomes Items, Items become Batches, rows become a Response."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rtp_llm.sides import side_of
from rtp_llm.timings import Timings

Int32Array: TypeAlias = NDArray[np.int32]
FloatArray: TypeAlias = NDArray[np.float32]
Int8Array: TypeAlias = NDArray[np.int8]
Input: TypeAlias = str | tuple[str, str] | list[int]
# What a task computes for some inputs: a matrix with a row each, or a list with an array [tokens, ·] each.
Rows: TypeAlias = FloatArray | list[FloatArray]
# What a caller gets of one task; see Response.
Output: TypeAlias = Any
_ID_BYTES = 4
# How soon a request's work is taken up; see Request.
Priority: TypeAlias = Literal["auto", "interactive", "bulk"]
# What becomes of a text that is longer than the model reads; see Params.
Chunking: TypeAlias = Literal["mean", "late"]
# How tokens become entities, in transformers' words; see Params.
AggregationStrategy: TypeAlias = Literal["none", "simple", "first", "average", "max"]
# Which of a sequence's last hidden states a task reads.
Reads: TypeAlias = Literal["all", "first", "last"]


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A weight [N, K] that a checkpoint holds in 8 bits, about scales * values; what it means is in `ops/int8.py`."""

    values: Int8Array  # [N, K]
    scales: FloatArray  # [N]


class TaskType(str, Enum):
    """What a caller can ask a checkpoint for."""

    DENSE = "dense"
    SPARSE = "sparse"
    COLBERT = "colbert"
    TOKENS = "tokens"
    RERANK = "rerank"
    CLASSIFY = "classify"
    TOKEN_CLASSIFY = "token_classify"
    CUSTOM = "custom"


# Of those, what gives a row of numbers for each token.
OF_TOKENS = frozenset({TaskType.COLBERT, TaskType.TOKENS, TaskType.TOKEN_CLASSIFY})


@dataclass(frozen=True, slots=True, eq=False)
class SparseVector:
    """Weights by token id: `indices` [n] ascending, `values` [n], none 0; `tokens`, on request, the vocabulary's."""

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
    max_active_dims     of a sparse vector, how many of its weights are kept, the largest; None: the checkpoint's word
    truncate            False: an input over the limit is an error
    truncation          how a pair over the limit is cut: the longer side first, as sentence-transformers does; or only
                        the second, after cutting the first to three quarters of the limit, as FlagEmbedding does
    max_tokens          a limit below the model's own
    max_tokens_per_doc  the second text of a pair is cut to so many tokens, before the pair is cut to the limit; so are
                        single texts, but for the first `num_queries`
    num_queries         of single texts, how many at the start are queries and not documents; None: `prompt_name` tells
    truncation_side     which end an over-long input loses; None: the checkpoint's, right where it does not say
    chunking            of dense vectors. mean: an over-long text is cut into chunks, whose vectors are averaged; late:
                        the inputs are the chunks of one text, which is read at once; see rtp_llm/engine/chunker.py
    aggregation_strategy  of a token classifier: entities instead of scores, by these rules; see rtp_llm/entities.py
    ignore_labels       of entities: labels that are left out
    prompt              text put before each input; None: `prompt_name`, else the checkpoint's default prompt
    prompt_name         a key of the checkpoint's prompts
    add_special_tokens  False: [CLS] and [SEP] are left out
    extra               whatever a custom module wants to know of a request; no other task looks at it
    """

    dimensions: int | None = None
    normalize: bool | None = None
    activation: Literal["none", "sigmoid", "softmax"] | None = None
    instruction: str | None = None
    return_tokens: bool = False
    max_active_dims: int | None = None
    truncate: bool = True
    truncation: Literal["longest_first", "only_second"] = "longest_first"
    max_tokens: int | None = None
    max_tokens_per_doc: int | None = None
    num_queries: int | None = None
    truncation_side: Literal["left", "right"] | None = None
    chunking: Chunking | None = None
    aggregation_strategy: AggregationStrategy | None = None
    ignore_labels: tuple[str, ...] = ("O",)
    prompt: str | None = None
    prompt_name: str | None = None
    add_special_tokens: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def is_query(self, index: int) -> bool:
        """Whether the input at this place is a query, to a model that reads documents differently."""
        return side_of(self.prompt_name) == "query" if self.num_queries is None else index < self.num_queries


class AnswerLimit(NamedTuple):
    """What the vectors of a request's tokens may take, in all, and what one of their numbers does."""

    max_bytes: int
    number_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call: `inputs` are answered in order, each by every task of `tasks`.

    priority  interactive work overtakes bulk work; auto: what fits one step is interactive
    deadline  as time.monotonic() counts: what has not been computed by then is not computed
    answer_limit  of tasks with a vector a token, for which no other limit is one of memory; None: none
    """

    inputs: Sequence[Input]
    tasks: tuple[TaskType, ...] = (TaskType.DENSE,)
    params: Params = field(default_factory=Params)
    request_id: str | None = None
    priority: Priority = "auto"
    deadline: float = math.inf
    answer_limit: AnswerLimit | None = None


class Chunk(NamedTuple):
    """Which of its input's chunks an item is, and what it weighs in their mean."""

    place: int
    num_chunks: int
    weight: int


@dataclass(slots=True, eq=False)
class Item:
    """One tokenised sequence of a request, to be answered by `tasks`: `index` is its place among the inputs.

    prefix  leading token ids that other items have too, as bytes; they are part of `input_ids`
    chunk   of an item that is a part of its input
    parts   of an item that is several inputs, from `index` on: how many tokens each of them has; () is one input
    num_unseen  tokens at its end that see those before them, and are seen by none
    spans   [T, 2], where entities are wanted: the characters of its text that a token stands for; -1: none of them
    """

    input_ids: Int32Array
    index: int
    token_type_ids: Int32Array | None = None
    prompt_length: int = 0
    truncated: bool = False
    tasks: tuple[TaskType, ...] = ()
    owner: Any = None
    queued: bool = False
    prefix: bytes = b""
    chunk: Chunk | None = None
    parts: tuple[int, ...] = ()
    num_unseen: int = 0
    spans: Int32Array | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_own_tokens(self) -> int:
        """Tokens that are not part of the prefix."""
        return len(self.input_ids) - len(self.prefix) // _ID_BYTES


@dataclass(frozen=True, slots=True, eq=False)
class KeptPrefix:
    """Keys and values of some tokens, left from an earlier batch: a tensor [num_tokens, ·] for each layer."""

    token_ids: bytes
    layers: Sequence[Any]
    num_bytes: int

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) // _ID_BYTES


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences laid end to end, without padding.

    input_ids, position_ids, token_type_ids  [T]
    cu_seqlens                               [B + 1], sequence i is rows cu_seqlens[i]:cu_seqlens[i + 1]
    prompt_lens                              [B], leading tokens of each sequence that belong to its prompt
    max_seqlen                               the longest sequence
    prefix_of                                [B], the earlier sequence whose tokens stand before this one's; -1: none;
                                             below that, -2 - k: the tokens of kept[k]
    seen_lens                                [B], how many of a sequence's leading tokens are seen by its tokens; None:
                                             all of them
    wanted                                   [R], the rows whose last hidden states are wanted, one of each of the last
                                             R sequences; None: all
    host                                     of a batch whose arrays are on a device, the same batch on the host
    tiles, wanted_tiles                      of a batch on a device, the work of attention as the backend's kernel
                                             takes it: for all rows, and for the wanted ones
    """

    input_ids: Int32Array
    position_ids: Int32Array
    token_type_ids: Int32Array
    cu_seqlens: Int32Array
    prompt_lens: Int32Array
    max_seqlen: int
    prefix_of: Int32Array | None = None
    seen_lens: Int32Array | None = None
    wanted: Int32Array | None = None
    kept: tuple[KeptPrefix, ...] = ()
    host: "Batch | None" = None
    tiles: Int32Array | None = None
    wanted_tiles: Int32Array | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_seqs(self) -> int:
        return len(self.cu_seqlens) - 1


def pack(items: Sequence[Item], reads: Reads = "all", prefixes: "Prefixes | None" = None) -> Batch:
    """Lay the items' tokens end to end; positions count from 0 in each sequence.

    reads     the tasks' word: the wanted rows are each item's first, its last, or all
    prefixes  what the items begin with, see `Prefixes`; its new ones become the first sequences
    """
    if len(items) == 1 and prefixes is None:
        return _pack_one(items[0], reads)
    prefixes = prefixes or Prefixes((), (), np.full(len(items), -1, np.int32), [0] * len(items))
    new, skipped = prefixes.new, prefixes.skipped
    sequences = [*new, *(item.input_ids[skip:] for item, skip in zip(items, skipped, strict=True))]
    lengths = np.array([len(ids) for ids in sequences], dtype=np.int32)
    cu_seqlens = np.zeros(len(sequences) + 1, dtype=np.int32)
    np.cumsum(lengths, out=cu_seqlens[1:])
    num_tokens, first = int(cu_seqlens[-1]), len(new)
    token_type_ids = np.zeros(num_tokens, dtype=np.int32)
    for item, skip, start in zip(items, skipped, cu_seqlens[first:].tolist(), strict=False):
        if item.token_type_ids is not None:
            types = item.token_type_ids[skip:]
            token_type_ids[start : start + len(types)] = types
    starts = cu_seqlens[:-1] - np.array([0] * first + skipped, dtype=np.int32)
    wanted = {"all": None, "first": cu_seqlens[first:-1], "last": cu_seqlens[first + 1 :] - np.int32(1)}
    return Batch(
        input_ids=np.concatenate(sequences, dtype=np.int32),
        position_ids=np.arange(num_tokens, dtype=np.int32) - np.repeat(starts, lengths),
        token_type_ids=token_type_ids,
        cu_seqlens=cu_seqlens,
        prompt_lens=np.array([0] * first + [item.prompt_length for item in items], dtype=np.int32),
        max_seqlen=int(lengths.max()),
        prefix_of=np.r_[np.full(first, -1, np.int32), prefixes.of_items] if any(skipped) else None,
        seen_lens=_seen_lens(items, lengths),
        wanted=wanted[reads],
        kept=prefixes.kept,
    )


def _pack_one(item: Item, reads: Reads) -> Batch:
    """As `pack`, in a tenth of its calls: they are what a lone short text waits for beside the kernels."""
    num_tokens, types = item.num_tokens, item.token_type_ids
    wanted = {"all": None, "first": 0, "last": num_tokens - 1}[reads]
    return Batch(
        input_ids=item.input_ids,
        position_ids=np.arange(num_tokens, dtype=np.int32),
        token_type_ids=np.zeros(num_tokens, np.int32) if types is None else types,
        cu_seqlens=np.array([0, num_tokens], np.int32),
        prompt_lens=np.array([item.prompt_length], np.int32),
        max_seqlen=num_tokens,
        seen_lens=np.array([num_tokens - item.num_unseen], np.int32) if item.num_unseen else None,
        wanted=None if wanted is None else np.array([wanted], np.int32),
    )


def _seen_lens(items: Sequence[Item], lengths: Int32Array) -> Int32Array | None:
    """`Batch.seen_lens`; the items are the last of the sequences of these lengths."""
    if not any(item.num_unseen for item in items):
        return None
    unseen = [0] * (len(lengths) - len(items)) + [item.num_unseen for item in items]
    return np.asarray(lengths - np.array(unseen, np.int32), np.int32)


@dataclass(frozen=True, slots=True)
class Prefixes:
    """The tokens that items begin with and need not bring themselves: of a causal model whose last rows are read.

    new       token ids of those to compute with this batch
    kept      those that are there
    of_items  [items] as `Batch.prefix_of`
    skipped   for each item, how many of its own tokens that saves
    """

    new: Sequence[Int32Array]
    kept: tuple[KeptPrefix, ...]
    of_items: Int32Array
    skipped: list[int]

    @classmethod
    def find(cls, items: Sequence[Item], kept: Mapping[bytes, KeptPrefix], *, least: int = 2) -> "Prefixes":
        """Prefixes that are in `kept`, or that at least `least` of the items have."""
        keys = [item.prefix or item.input_ids[: item.prompt_length].tobytes() for item in items]
        # An item has at least one token of its own.
        keys = [key if len(key) < item.input_ids.nbytes else b"" for key, item in zip(keys, items, strict=True)]
        counts = Counter(key for key in keys if key)
        there = [key for key in counts if key in kept]
        new = [key for key, count in counts.items() if key not in kept and count >= least]
        places = {key: place for place, key in enumerate(new)} | {key: -2 - place for place, key in enumerate(there)}
        return cls(
            new=[np.frombuffer(key, np.int32) for key in new],
            kept=tuple(kept[key] for key in there),
            of_items=np.array([places.get(key, -1) for key in keys], np.int32),
            skipped=[len(key) // _ID_BYTES if key in places else 0 for key in keys],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """`outputs[task]` has an entry per input, in the request's order.

    dense            fp32 [inputs, dim]
    sparse           list of SparseVector
    colbert, tokens  list of fp32 [tokens, dim]: colbert those tokens that the checkpoint compares, tokens all of
                     `input_ids`
    rerank           fp32 [inputs]
    classify         fp32 [inputs, labels]
    token_classify   list of fp32 [tokens, labels]; by `aggregation_strategy`, of lists of Entity
    custom           what the module made of all inputs together: None, bool, int, float, str, arrays, lists and dicts

    `batch_rows` are the sequences of the step that computed the first of its inputs, 0 where none was needed.
    `num_tokens` and `input_ids` are what the model really read: after truncation, special tokens included.
    """

    outputs: dict[TaskType, Output]
    num_tokens: Sequence[int]
    truncated: Sequence[bool]
    input_ids: Sequence[Int32Array] = ()
    timings: Timings = field(default_factory=Timings)
    batch_rows: int = 0

    @property
    def total_tokens(self) -> int:
        return sum(self.num_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a server tells of the model it has loaded.

    pooling                   how dense embeddings are pooled, in sentence-transformers' words; empty: there are none
    scores_are_probabilities  of a reranker that is a language model: P(yes), where a cross-encoder has a logit
    max_sim                   what the checkpoint's authors make of a query's vectors' similarities to a document
    full_dimension            how many a request may ask for, where the checkpoint's truncate_dim makes `dimension` less
    aliases                   other names that callers may ask for it by
    weight_bytes              of the checkpoint's tensors
    memory_bytes              by which the process grew while it was loaded; 0 where the system does not tell
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
    max_sim: Literal["sum", "mean"] = "mean"
    created: int = 0
    full_dimension: int | None = None
    aliases: tuple[str, ...] = ()
    weight_bytes: int = 0
    memory_bytes: int = 0
