"""What rerankers that read a pair as one text have in common: their pairs, errors that name them, shared beginnings."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from rtp_llm.core import Input, Int32Array, Item, Params
from rtp_llm.engine.tokenizer import Tokenizer
from rtp_llm.errors import InvalidInput


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


def plain_ids(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool = False) -> Int32Array:
    """All of the text's tokens, and no special ones but those that it names, where they are not asked for."""
    return np.array([token.id for token in tokenizer.tokens(text, add_special_tokens=add_special_tokens)], np.int32)
