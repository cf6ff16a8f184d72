"""Qwen3-Reranker's prompt: a question to a language model, which answers yes or no.

Source: the model card's transformers example. Prefix and suffix are tokenised apart and never cut; only the text
between them, with instruction, query and document, loses its end to fit the limit.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from rtp_llm.core import Input, Int32Array, Item, Params
from rtp_llm.engine.tokenizer import Tokenizer
from rtp_llm.errors import InvalidInput, InvalidRequest

PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"


class RerankTemplate:
    """Encodes pairs of query and document; ready token ids pass as they are."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._prefix, self._suffix = (plain_ids(tokenizer, text) for text in (PREFIX, SUFFIX))
        self._bodies = tokenizer.narrowed(len(self._prefix) + len(self._suffix))

    def encode(self, inputs: Sequence[Input], params: Params, start: int = 0) -> list[Item]:
        """An Item per input, in order, that knows what it shares with others; InvalidRequest for a text alone."""
        items, pairs = read_pairs(self._tokenizer, inputs, params, start)
        instruction = self._tokenizer.instruction_text(params) or INSTRUCTION
        questions = {query: _question(query, instruction) for query, _ in pairs.values()}
        texts = [f"{questions[query]} {document}" for query, document in pairs.values()]
        own = replace(params, prompt="", max_tokens=self._room(params.max_tokens))
        with naming(pairs):
            bodies = self._bodies.encode(texts, own)
        for index, body in zip(pairs, bodies, strict=True):
            body.index = index
            body.input_ids = np.concatenate([self._prefix, body.input_ids, self._suffix])
            items[index] = body
        share(pairs, items, lambda query: np.concatenate([self._prefix, plain_ids(self._tokenizer, questions[query])]))
        return [items[index] for index in range(start, start + len(inputs))]

    def _room(self, max_tokens: int | None) -> int | None:
        """What a request's own limit leaves between prefix and suffix."""
        if max_tokens is None:
            return None
        template = len(self._prefix) + len(self._suffix)
        if max_tokens <= template:
            raise InvalidRequest(f"a limit of {max_tokens} tokens leaves no room beside a template of {template}")
        return max_tokens - template


def _question(query: str, instruction: str) -> str:
    return f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>:"


def read_pairs(
    tokenizer: Tokenizer, inputs: Sequence[Input], params: Params, start: int
) -> tuple[dict[int, Item], dict[int, tuple[str, str]]]:
    """By the inputs' places, from `start` on: Items of ready token ids, and the other inputs, documents cut as asked.

    InvalidInput for a text alone.
    """
    items, pairs = dict[int, Item](), dict[int, tuple[str, str]]()
    for index, value in enumerate(inputs, start):
        if isinstance(value, list):
            (items[index],) = tokenizer.encode([value], params, index)
        elif isinstance(value, tuple) and len(value) == 2:
            with naming([index]):
                pairs[index] = (value[0], beginning(tokenizer, value[1], params.max_tokens_per_doc))
        else:
            raise InvalidInput(index, " is a single text; a reranker reads pairs of query and document")
    return items, pairs


@contextmanager
def naming(indices: Iterable[int]) -> Iterator[None]:
    """InvalidInput of one of the texts made from the inputs at `indices` is that of its input."""
    try:
        yield
    except InvalidInput as error:
        raise error.of(list(indices)[error.index]) from None


def share(pairs: Mapping[int, tuple[str, str]], items: Mapping[int, Item], head: Callable[[str], Int32Array]) -> None:
    """Tell items of one query what they begin with alike: its `head`, up to where the tokenizer joins it on."""
    counts = Counter(query for query, _ in pairs.values())
    heads = {query: head(query) for query, count in counts.items() if count > 1}
    for index, (query, _) in pairs.items():
        if query in heads:
            ids = items[index].input_ids
            items[index].prefix = ids[: common_length(ids, heads[query])].tobytes()


def beginning(tokenizer: Tokenizer, document: str, max_tokens: int | None) -> str:
    """The document's first `max_tokens` tokens, as text; None: all."""
    if max_tokens is None:
        return document
    tokens = tokenizer.tokens(document, add_special_tokens=False)
    return document if len(tokens) <= max_tokens else document[: tokens[max_tokens - 1].stop]


def common_length(left: Int32Array, right: Int32Array) -> int:
    """How many leading ids are the same."""
    length = min(len(left), len(right))
    differ = np.flatnonzero(left[:length] != right[:length])
    return int(differ[0]) if len(differ) else length


def plain_ids(tokenizer: Tokenizer, text: str) -> Int32Array:
    """All of the text's tokens, and no special ones but those that it names."""
    return np.array([token.id for token in tokenizer.tokens(text, add_special_tokens=False)], np.int32)
