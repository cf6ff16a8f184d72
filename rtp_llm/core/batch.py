"""What a model computes at a time: sequences laid end to end, and the prefixes that several of them share."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from rtp_llm.core.arrays import Int32Array
from rtp_llm.core.item import ID_BYTES, NO_ADAPTER, Item

# Which of a sequence's last hidden states a task reads.
Reads: TypeAlias = Literal["all", "first", "last"]


class PrefixKey(NamedTuple):
    """All that the keys and values of a sequence's first tokens depend on."""

    token_ids: bytes
    adapter: int = NO_ADAPTER


@dataclass(frozen=True, slots=True, eq=False)
class KeptPrefix:
    """Keys and values of some tokens, left from an earlier batch: a tensor [num_tokens, ·] for each layer."""

    token_ids: bytes
    layers: Sequence[Any]
    num_bytes: int
    adapter: int = NO_ADAPTER

    @property
    def key(self) -> PrefixKey:
        return PrefixKey(self.token_ids, self.adapter)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) // ID_BYTES


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
    adapters, wanted_adapters                [T], [R], the adapter (LoRA) of each row, and of the wanted ones; None: no
                                             row has one
    adapter_numbers                          those that occur, ascending, NO_ADAPTER too; (): no row has one
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
    adapters: Int32Array | None = None
    wanted_adapters: Int32Array | None = None
    adapter_numbers: tuple[int, ...] = ()
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
    prefixes = prefixes or Prefixes((), (), np.full(len(items), -1, np.int32), [0] * len(items), ())
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
    of_items = [item.adapter for item in items]
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
        **_adapters([*prefixes.adapters, *of_items], lengths, None if reads == "all" else of_items),
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
        **_adapters([item.adapter], [num_tokens], None if wanted is None else [item.adapter]),
    )


def _adapters(
    of_sequences: list[int], lengths: Sequence[int] | Int32Array, of_wanted: list[int] | None
) -> dict[str, Any]:
    """The fields of a batch that are about adapters; none where there are none."""
    if not any(number != NO_ADAPTER for number in of_sequences):
        return {}
    return {
        "adapters": np.repeat(np.array(of_sequences, np.int32), lengths),
        "wanted_adapters": None if of_wanted is None else np.array(of_wanted, np.int32),
        "adapter_numbers": tuple(sorted(set(of_sequences))),
    }


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
    adapters  of the new ones
    """

    new: Sequence[Int32Array]
    kept: tuple[KeptPrefix, ...]
    of_items: Int32Array
    skipped: list[int]
    adapters: Sequence[int]

    @classmethod
    def find(cls, items: Sequence[Item], kept: Mapping[PrefixKey, KeptPrefix], *, least: int = 2) -> "Prefixes":
        """Prefixes that are in `kept`, or that at least `least` of the items have."""
        keys = [_prefix_of(item) for item in items]
        counts = Counter(key for key in keys if key.token_ids)
        there = [key for key in counts if key in kept]
        new = [key for key, count in counts.items() if key not in kept and count >= least]
        places = {key: place for place, key in enumerate(new)} | {key: -2 - place for place, key in enumerate(there)}
        return cls(
            new=[np.frombuffer(key.token_ids, np.int32) for key in new],
            kept=tuple(kept[key] for key in there),
            of_items=np.array([places.get(key, -1) for key in keys], np.int32),
            skipped=[len(key.token_ids) // ID_BYTES if key in places else 0 for key in keys],
            adapters=[key.adapter for key in new],
        )


def _prefix_of(item: Item) -> PrefixKey:
    """What an item begins with, but for one token of its own at least."""
    token_ids = item.prefix or item.input_ids[: item.prompt_length].tobytes()
    return PrefixKey(token_ids if len(token_ids) < item.input_ids.nbytes else b"", item.adapter)
