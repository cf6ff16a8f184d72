"""Texts longer than the model reads, as chunks: averaged, read at once as the parts of one text, or for entities.

mean  An over-long text becomes chunks of as many tokens as fit, each with the model's special tokens and the prompt
      around it. The answer is the mean of the chunks' vectors as a caller would get them, weighted by the text's
      tokens in each, and normalised where they are.
late  The inputs are consecutive chunks of one text. Their tokens, each input's tokenised alone, are read at once, so
      that each sees the others; then each is pooled alone. The first has the leading special tokens and the prompt, the
      last the closing ones, so that a single input has the vector that it always has. Source: Guenther et al., Late
      Chunking, arXiv 2409.04701, and Jina's evaluation of it.

Where entities are wanted, `stride` makes chunks as `mean` has them, with so many tokens in common with the next: the
windows of transformers' pipeline. What is found in each is put together in rtp_llm/entities.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rtp_llm.core import Chunk, FloatArray, Input, Int32Array, Item, Params, Request, TaskType
from rtp_llm.engine.shortening import most_characters
from rtp_llm.engine.tokenizer import Tokenizer
from rtp_llm.engine.tokens import Framed
from rtp_llm.errors import InputTooLarge, InvalidInput, InvalidRequest, RequestTooLarge
from rtp_llm.ops.numpy_ops import l2_normalize
from rtp_llm.tasks import Task

# Of one input: each is an object in the queue, whatever its length.
_MOST_CHUNKS = 16_384


def check_chunking(request: Request, tasks: Mapping[TaskType, Task]) -> None:
    """InvalidRequest where the request's chunking is not for its tasks, or not for this model's pooling."""
    chunking = request.params.chunking
    if chunking is None:
        return
    if request.tasks != (TaskType.DENSE,):
        raise InvalidRequest(f"chunking {chunking!r} is of dense vectors alone: ask for no others", param="chunking")
    task = tasks[TaskType.DENSE]
    if chunking not in task.chunkings:
        pooling, has_routes = task.pooling_name, len(task.purposes) > 1
        reason = f"this model's pooling is {pooling}" if pooling else "this model's vectors are made by its own code"
        if has_routes:
            reason = "each of its routes reads a text whole"
        elif pooling and not task.chunkings:
            reason = "its chat template stands around each text"
        elif chunking == "late":
            reason += ", and a chunk's vector must be the mean of its tokens"
        raise InvalidRequest(f"chunking {chunking!r} is not for this model: {reason}", param="chunking")


class Chunker:
    """Encodes inputs by `params.chunking`; `max_tokens` bounds those of all chunks that are made at a time."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens

    def encode(self, inputs: Sequence[Input], params: Params, start: int = 0) -> list[Item]:
        """mean: an Item or more an input, in order; late: one for all. InvalidRequest names what cannot be read."""
        singles = [_single(value, index) for index, value in enumerate(inputs, start)]
        tokenizer = self._tokenizer.limited(params)
        if params.chunking == "late":
            return [_together(tokenizer, singles, params)]
        framed = tokenizer.framed(singles, params, start)
        stride, limit = params.stride, tokenizer.max_seq_len
        is_left = stride is not None and (params.truncation_side or tokenizer.truncation_side) == "left"
        spans = [_spans(one, index, limit, stride, is_left=is_left) for index, one in enumerate(framed, start)]
        # NOTE: before any is made: a long prompt around each of many short chunks is gigabytes.
        self._check_size(sum(_num_tokens(one, len(own)) for one, own in zip(framed, spans, strict=True)))
        return [
            item
            for index, (one, own) in enumerate(zip(framed, spans, strict=True), start)
            for item in _chunks(one, index, own)
        ]

    def _check_size(self, num_tokens: int) -> None:
        if num_tokens > self._max_tokens:
            raise RequestTooLarge(
                f"the request has over {self._max_tokens} tokens (max_request_tokens), with those around each chunk: "
                "send fewer inputs at a time, or leave more room in a chunk (with a stride: have less in common)",
                param="input",
            )


def _single(value: Input, index: int) -> str | list[int]:
    if isinstance(value, (str, list)):
        return value
    raise InvalidInput(index, " is a pair of texts; chunking is of single texts")


def _spans(framed: Framed, index: int, limit: int, stride: int | None, *, is_left: bool) -> list[tuple[int, int]]:
    """The places first:stop of a text's own tokens that make a chunk each; `is_left`: from the right, as if cut there.

    Source: tokenizers, tokenizer/encoding.rs, truncate.
    """
    num_own, room = len(framed.body), limit - len(framed.head) - len(framed.tail)
    step = room - (stride or 0)
    if stride is not None and step < 1:
        message = f"stride: {stride} is not below {max(room, 0)}, the tokens of a text that a window has room for"
        raise InvalidRequest(message, param="stride")
    if num_own <= room:
        return [(0, num_own)]
    if room < 1:
        raise InvalidRequest(f"the prompt's {len(framed.head)} tokens leave no room below the limit of {limit}")
    if num_own - room > step * (_MOST_CHUNKS - 1):
        found = f" has {num_own} tokens, which are over {_MOST_CHUNKS} chunks of {room}"
        if stride:
            raise InputTooLarge(index, f"{found} that have {stride} in common: split it, or take a smaller stride")
        raise InputTooLarge(index, f"{found}: split it, or leave more room in a chunk")
    starts = range(0, num_own - room + step, step)
    spans = [(start, min(start + room, num_own)) for start in starts]
    return [(num_own - stop, num_own - start) for start, stop in spans] if is_left else spans


def _num_tokens(framed: Framed, num_chunks: int) -> int:
    return len(framed.body) + num_chunks * (len(framed.head) + len(framed.tail))


def _chunks(framed: Framed, index: int, spans: Sequence[tuple[int, int]]) -> list[Item]:
    head, body, tail, prompt_length, _ = framed
    return [
        Item(
            np.concatenate([head, body[first:last], tail]),
            index,
            prompt_length=prompt_length,
            chunk=Chunk(place, len(spans), last - first),
            spans=None if framed.spans is None else _framed_spans(framed, first, last),
        )
        for place, (first, last) in enumerate(spans)
    ]


def _framed_spans(framed: Framed, first: int, last: int) -> Int32Array:
    """Of one chunk's tokens; those around it stand for no characters."""
    assert framed.spans is not None
    around = ((len(framed.head), len(framed.tail)), (0, 0))
    return np.pad(framed.spans[first:last], around, constant_values=-1)


def _together(tokenizer: Tokenizer, inputs: Sequence[str | list[int]], params: Params) -> Item:
    if len({type(value) for value in inputs}) > 1:
        raise InvalidRequest("late chunking: the chunks are texts or token ids, not some of each", param="input")
    _check_characters(inputs, tokenizer.max_seq_len)
    first = tokenizer.framed(inputs[:1], params)[0]
    alone = replace(params, prompt="", add_special_tokens=False)
    bodies = [first.body, *(one.body for one in tokenizer.framed(inputs[1:], alone, 1))]
    for index, body in enumerate(bodies):
        if not len(body):
            raise InvalidInput(index, " has no tokens, and late chunking gives it none: leave it out")
    parts = [len(body) for body in bodies]
    parts[0] += len(first.head)
    parts[-1] += len(first.tail)
    total, limit = sum(parts), tokenizer.max_seq_len
    if total > limit:
        raise InvalidRequest(
            f"late chunking: the inputs have {total} tokens together, and this model reads {limit} at once; send "
            "fewer a request, overlapping where context matters, or have each averaged (chunking mean)",
            param="input",
        )
    return Item(
        np.concatenate([first.head, *bodies, first.tail]), 0, prompt_length=first.prompt_length, parts=tuple(parts)
    )


def _check_characters(inputs: Sequence[str | list[int]], limit: int) -> None:
    """RequestTooLarge for more text than is tokenised at a time: what has so much is not read at once either."""
    total, most = sum(len(value) for value in inputs if isinstance(value, str)), most_characters(limit)
    if total > most:
        raise RequestTooLarge(
            f"late chunking: the inputs have {total} characters together, the limit is {most} where {limit} tokens are "
            "read at once; send fewer a request, overlapping where context matters, or have each averaged (chunking "
            "mean)",
            param="input",
        )


class ChunkRows:
    """The rows of one request's chunks, until all are in; then a vector for each input. Its owner holds a lock.

    rows  of each input, those of its chunks
    """

    def __init__(self, num_inputs: int) -> None:
        self.rows: list[list[Any]] = [[]] * num_inputs
        self._weights: list[list[int]] = [[]] * num_inputs
        self._missing = [0] * num_inputs

    def add(self, item: Item, row: FloatArray) -> bool:
        """Keep a copy of an item's row -> whether its input is complete."""
        assert item.chunk is not None
        place, num_chunks, weight = item.chunk
        if not self.rows[item.index]:
            self.rows[item.index], self._weights[item.index] = [None] * num_chunks, [0] * num_chunks
            self._missing[item.index] = num_chunks
        self.rows[item.index][place] = row.copy()
        self._weights[item.index][place] = weight
        self._missing[item.index] -= 1
        return not self._missing[item.index]

    def finish(self, task: Task, params: Params, input_ids: Sequence[Int32Array]) -> FloatArray:
        """-> [inputs, dimensions], each the weighted mean of its chunks' finished vectors."""
        vectors = task.finish(np.stack([row for own in self.rows for row in own]), params, input_ids)
        normalizes = params.normalize if params.normalize is not None else task.normalizes
        means, start = [], 0
        for weights in self._weights:
            own = vectors[start : start + len(weights)]
            start += len(weights)
            means.append(own[0] if len(own) == 1 else _mean(own, weights, normalizes))
        return np.stack(means)


def _mean(vectors: FloatArray, weights: Sequence[int], normalizes: bool) -> FloatArray:
    """Chunk by chunk, in fp64: one order of summing for any number of chunks."""
    total = np.zeros(vectors.shape[1], np.float64)
    for vector, weight in zip(vectors, weights, strict=True):
        total += weight * vector.astype(np.float64)
    mean = np.asarray(total / sum(weights), np.float32)
    return l2_normalize(mean[None])[0] if normalizes else mean
