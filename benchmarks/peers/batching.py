"""What peers without a tokenizer and a batcher of their own are given: the fast tokenizer and length-sorted batches."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers import Embed, FloatArray, Setup

Ids: TypeAlias = list[list[int]]
Forward: TypeAlias = Callable[[Ids], FloatArray]  # token ids of a batch, longest last -> normalised vectors [B, dim]


def load_tokenizer(setup: Setup) -> Callable[[list[str]], Ids]:
    """tokenizer.json without its own padding, cut at `max_seq_len`; a list is tokenised in parallel."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(setup.checkpoint / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(setup.max_seq_len)

    def tokenize(texts: list[str]) -> Ids:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]

    return tokenize


def split(lengths: list[int], max_tokens: int) -> list[list[int]]:
    """Indices of sequences, shortest first, in batches of at most `max_tokens` tokens after padding (at least one)."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        padded = (len(batches[-1]) + 1) * lengths[index] if batches else max_tokens + 1
        if padded > max_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches


def padded(ids: Ids) -> dict[str, NDArray[Any]]:
    """The inputs of an exported graph: ids filled up with zeros, and the mask that leaves those out."""
    input_ids = np.zeros((len(ids), max(map(len, ids))), np.int64)
    attention_mask = np.zeros_like(input_ids)
    for row, tokens in enumerate(ids):
        input_ids[row, : len(tokens)] = tokens
        attention_mask[row, : len(tokens)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def batched(setup: Setup, forward: Forward, workers: int, max_tokens: int) -> Embed:
    """Text to vectors: tokenise, sort, and run the batches on `workers` threads, the longest first."""
    tokenize = load_tokenizer(setup)
    pool = ThreadPoolExecutor(workers) if workers > 1 else None

    def embed(texts: list[str]) -> FloatArray:
        ids = tokenize(texts)
        batches = split([len(row) for row in ids], max_tokens)[::-1]
        inputs = [[ids[index] for index in batch] for batch in batches]
        results = pool.map(forward, inputs) if pool and len(batches) > 1 else map(forward, inputs)
        vectors = np.concatenate(list(results))
        ordered = np.empty_like(vectors)
        ordered[np.concatenate(batches)] = vectors
        return ordered

    return embed
