"""Rerankers that read query and document as one text of a fixed form: NVIDIA's of a Llama that looks both ways.

Source: the model card of llama-nemotron-rerank-1b-v2, whose end is cut at the limit.
"""

from collections.abc import Sequence
from dataclasses import replace

from rtp_llm.core import Input, Item, Params
from rtp_llm.engine.pairs import naming, read_pairs
from rtp_llm.engine.tokenizer import Tokenizer

NEMOTRON = "question:{query} \n \n passage:{document}"


class PairText:
    """Encodes pairs of query and document; ready token ids pass as they are."""

    def __init__(self, tokenizer: Tokenizer, form: str) -> None:
        """`form` has places for `query` and `document`."""
        self._tokenizer = tokenizer
        self._form = form
        self.around_pair = len(form.format(query="", document=""))

    def encode(self, inputs: Sequence[Input], params: Params, start: int = 0) -> list[Item]:
        """An Item per input, in order; InvalidRequest for a text alone."""
        items, pairs = read_pairs(self._tokenizer, inputs, params, start)
        texts = [self._form.format(query=query, document=document) for query, document in pairs.values()]
        with naming(pairs):
            encoded = self._tokenizer.encode(texts, replace(params, prompt=""))
        for index, item in zip(pairs, encoded, strict=True):
            item.index = index
            items[index] = item
        return [items[index] for index in range(start, start + len(inputs))]
