"""FlagEmbedding's prompt for a language model as a reranker (bge-reranker-v2-gemma, and minicpm-layerwise).

Source: FlagEmbedding, inference/reranker/decoder_only/base.py. Query, passage and question are tokenised apart and
joined by line breaks. What FlagEmbedding calls max_length is here what the limit leaves beside twice the question: the
query is cut to three quarters of it, the passage to what is left.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from rtp_llm.core import Input, Int32Array, Item, Params
from rtp_llm.engine.pairs import naming, plain_ids, read_pairs, share
from rtp_llm.engine.tokenizer import Tokenizer
from rtp_llm.errors import InputTooLong, InvalidRequest

QUESTION = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'."
)
_PASSAGE = "B: "
_LEAST_ROOM = 8


class FlagRerank:
    """Encodes pairs of query and document; ready token ids pass as they are."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._break = plain_ids(tokenizer, "\n")
        ids = tokenizer.special_ids
        starts = "bos" in ids and ids["bos"] != ids.get("pad")
        self._start = np.array([ids["bos"]] if starts else [], np.int32)
        self.around_pair = len(_PASSAGE)

    def encode(self, inputs: Sequence[Input], params: Params, start: int = 0) -> list[Item]:
        """An Item per input, in order, that knows what it shares with others; InvalidRequest for a text alone."""
        items, pairs = read_pairs(self._tokenizer, inputs, params, start)
        question = self._tokenizer.instruction_text(params) or QUESTION
        end = np.concatenate([self._break, plain_ids(self._tokenizer, question)])
        room = self._room(params.max_tokens, len(end))
        queries = self._heads(pairs, room, cuts=params.truncate)
        own = replace(params, prompt="", add_special_tokens=False, max_tokens=None, truncation_side="right")
        with naming(pairs):
            passages = self._tokenizer.encode([_PASSAGE + document for _, document in pairs.values()], own)
        for (index, (query, _)), passage in zip(pairs.items(), passages, strict=True):
            head, whole = queries[query], passage.input_ids[:room]
            body = whole[: max(0, room + len(end) - len(head))]
            passage.truncated |= len(body) < len(passage.input_ids)
            if passage.truncated and not params.truncate:
                raise InputTooLong(index, f" is longer than the limit allows; shorten it, or set {InputTooLong.CUT}")
            passage.index, passage.input_ids = index, np.concatenate([head, body, end])
            items[index] = passage
        share(pairs, items, queries.__getitem__)
        return [items[index] for index in range(start, start + len(inputs))]

    def _heads(self, pairs: Mapping[int, tuple[str, str]], room: int, *, cuts: bool) -> dict[str, Int32Array]:
        """What stands before the passages of each query."""
        heads: dict[str, Int32Array] = {}
        for index, (query, _) in pairs.items():
            if query not in heads:
                with naming([index]):
                    heads[query] = self._head(query, room, cuts=cuts)
        return heads

    def _head(self, query: str, room: int, *, cuts: bool) -> Int32Array:
        ids, most = plain_ids(self._tokenizer, f"A: {query}"), room * 3 // 4
        if len(ids) > most and not cuts:
            message = f" has a query of {len(ids)} tokens, the limit is {most}; shorten it, or set {InputTooLong.CUT}"
            raise InputTooLong(0, message)
        return np.concatenate([self._start, ids[:most], self._break])

    def _room(self, max_tokens: int | None, question: int) -> int:
        """FlagEmbedding's max_length, so that nothing is longer than the limit."""
        limit: int = min(self._tokenizer.max_seq_len, max_tokens or self._tokenizer.max_seq_len)
        if limit < 2 * question + _LEAST_ROOM:
            raise InvalidRequest(f"a limit of {limit} tokens leaves no room beside twice a question of {question}")
        return limit - 2 * question
