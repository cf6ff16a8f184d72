"""Qwen3-Reranker's prompt: a question to a language model, which answers yes or no.

Source: the model card's transformers example; of Qwen3-VL-Reranker its authors' Qwen3VLReranker. Prefix and suffix are
tokenised apart and never cut; only the text between them, with instruction, query and document, loses its end to fit
the limit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rtp_llm.core import Input, Item, Params
from rtp_llm.engine.pairs import naming, plain_ids, read_pairs, share
from rtp_llm.engine.tokenizer import Tokenizer
from rtp_llm.errors import InvalidRequest

PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)


@dataclass(frozen=True, slots=True)
class Question:
    """What differs between families: the text before the query and the document, and after both; the instruction."""

    instruction: str
    before_query: str
    before_document: str
    suffix: str

    def lead(self, query: str, instruction: str) -> str:
        """All that stands between the prefix and what is written before a document."""
        return f"<Instruct>: {instruction or self.instruction}{self.before_query}{query}\n<Document>:"


QWEN3 = Question(
    instruction="Given a web search query, retrieve relevant passages that answer the query",
    before_query="\n<Query>: ",
    before_document=" ",
    suffix="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
)
QWEN3_VL = Question(
    instruction="Given a search query, retrieve relevant candidates that answer the query.",
    before_query="<Query>:",
    before_document="",
    suffix="<|im_end|>\n<|im_start|>assistant\n",
)


class RerankTemplate:
    """Encodes pairs of query and document; ready token ids pass as they are."""

    def __init__(self, tokenizer: Tokenizer, question: Question = QWEN3) -> None:
        self._tokenizer, self._question = tokenizer, question
        self._prefix, self._suffix = (plain_ids(tokenizer, text) for text in (PREFIX, question.suffix))
        self._bodies = tokenizer.narrowed(len(self._prefix) + len(self._suffix))
        self.around_pair = len(question.lead("", ""))

    def encode(self, inputs: Sequence[Input], params: Params, start: int = 0) -> list[Item]:
        """An Item per input, in order, that knows what it shares with others; InvalidRequest for a text alone."""
        items, pairs = read_pairs(self._tokenizer, inputs, params, start)
        instruction, space = self._tokenizer.instruction_text(params), self._question.before_document
        leads = {query: self._question.lead(query, instruction) for query, _ in pairs.values()}
        texts = [f"{leads[query]}{space}{document}" for query, document in pairs.values()]
        own = replace(params, prompt="", max_tokens=self._room(params.max_tokens))
        with naming(pairs):
            bodies = self._bodies.encode(texts, own)
        for index, body in zip(pairs, bodies, strict=True):
            body.index = index
            body.input_ids = np.concatenate([self._prefix, body.input_ids, self._suffix])
            items[index] = body
        share(pairs, items, lambda query: np.concatenate([self._prefix, plain_ids(self._tokenizer, leads[query])]))
        return [items[index] for index in range(start, start + len(inputs))]

    def _room(self, max_tokens: int | None) -> int | None:
        """What a request's own limit leaves between prefix and suffix."""
        if max_tokens is None:
            return None
        template = len(self._prefix) + len(self._suffix)
        if max_tokens <= template:
            raise InvalidRequest(f"a limit of {max_tokens} tokens leaves no room beside a template of {template}")
        return max_tokens - template
