"""jina-reranker-v3's prompt: a query and all of its documents in one text, with a mark after each.

Equals the rerank() of its authors' code for as many documents as that reads at once; what it has behind the query's
mark is left out, since no mark sees it.
"""

from collections.abc import Sequence

import numpy as np

from rtp_llm.core import Input, Int32Array, Item, Params
from rtp_llm.engine.tokenizer import Tokenizer
from rtp_llm.errors import CheckpointError, InputTooLong, InvalidInput, InvalidRequest

DOCUMENT_MARK, QUERY_MARK = "<|embed_token|>", "<|rerank_token|>"
MOST_DOCUMENTS = 125
_MOST_QUERY, _MOST_DOCUMENT = 512, 2048  # tokens that are read of either
_SYSTEM = (
    "<|im_start|>system\nYou are a search relevance expert who can determine a ranking of the passages based on how "
    "relevant they are to the query. If the query is a question, how relevant a passage is depends on how well it "
    "answers the question. If not, try to analyze the intent of the query and assess how well each passage satisfies "
    "the intent. If an instruction is provided, you should follow the instruction when determining the ranking."
    "<|im_end|>\n<|im_start|>user\n"
)
_WAY_OUT = "send fewer a request, and compare the scores of one request alone"


class Listwise:
    """Encodes the pairs of one query as one item, a part for each document and one for the query."""

    around_pair = len('<passage id="99">\n\n</passage>\n')

    def __init__(self, tokenizer: Tokenizer) -> None:
        """CheckpointError where the tokenizer lacks a mark."""
        self._tokenizer = tokenizer
        marks = [tokenizer.token_id(mark) for mark in (DOCUMENT_MARK, QUERY_MARK)]
        if None in marks:
            raise CheckpointError(f"the tokenizer lacks {DOCUMENT_MARK} or {QUERY_MARK}, by which documents are marked")
        self._marks: tuple[int, int] = tuple(marks)  # type: ignore[assignment]

    def encode(self, inputs: Sequence[Input], params: Params, start: int = 0) -> list[Item]:
        """One Item of them all; of ready token ids each list is a document's part, and the query's mark follows.

        InvalidRequest for several queries, and for more documents or tokens than are read at once.
        """
        ready = [value for value in inputs if isinstance(value, list)]
        if ready and len(ready) == len(inputs):
            own = [item.input_ids for item in self._tokenizer.encode(ready, params, start)]
            return [_item([*own, np.array(self._marks[1:], np.int32)], start)]
        query, documents, is_cut = self._read(inputs, params, start)
        text = _prompt(query, documents, _unmarked(self._tokenizer.instruction_text(params)))
        ids = np.array([token.id for token in self._tokenizer.tokens(text)], np.int32)
        ends = np.flatnonzero(ids == self._marks[0]) + 1
        (stop,) = np.flatnonzero(ids == self._marks[1]) + 1
        if stop > self._tokenizer.max_seq_len:
            raise _too_many(f"{len(documents)} documents of {stop} tokens", f"{self._tokenizer.max_seq_len} tokens")
        return [_item(np.split(ids[:stop], ends), start, truncated=is_cut)]

    def _read(self, inputs: Sequence[Input], params: Params, start: int) -> tuple[str, list[str], bool]:
        """The query, the documents, and whether one of them was cut; checked as their authors' code divides them."""
        pairs = [value for value in inputs if isinstance(value, tuple) and len(value) == 2]
        if len(pairs) < len(inputs):
            index = next(index for index, value in enumerate(inputs, start) if not isinstance(value, tuple))
            raise InvalidInput(index, " is no pair; this reranker reads pairs of one query with its documents")
        if len({query for query, _ in pairs}) > 1:
            raise InvalidRequest(
                "several queries in one request; this reranker reads a query with all of its documents: send one a "
                "request", param="query",
            )  # fmt: skip
        if len(pairs) > MOST_DOCUMENTS:
            raise _too_many(f"{len(pairs)} documents", str(MOST_DOCUMENTS))
        query, is_cut = self._cut(pairs[0][0], _MOST_QUERY, start, params)
        most = min(_MOST_DOCUMENT, params.max_tokens_per_doc or _MOST_DOCUMENT, params.max_tokens or _MOST_DOCUMENT)
        documents = [self._cut(text, most, index, params) for index, (_, text) in enumerate(pairs, start)]
        return query, [text for text, _ in documents], is_cut or any(is_short for _, is_short in documents)

    def _cut(self, text: str, most: int, index: int, params: Params) -> tuple[str, bool]:
        """Without the marks, and of its tokens the first, where it has more; InputTooLong where it is not to be cut."""
        text = _unmarked(text)
        tokens = self._tokenizer.tokens(text, add_special_tokens=False)
        if len(tokens) <= most:
            return text, False
        if not params.truncate:
            raise InputTooLong(index, f" has {len(tokens)} tokens, the limit is {most}; shorten it, or set {{cut}}")
        return text[: tokens[most - 1].stop], True


def _unmarked(text: str) -> str:
    """Without the marks, nor what becomes one when others are taken out."""
    while DOCUMENT_MARK in text or QUERY_MARK in text:
        text = text.replace(DOCUMENT_MARK, "").replace(QUERY_MARK, "")
    return text


def _prompt(query: str, documents: Sequence[str], instruction: str) -> str:
    instruction = f"<instruct>\n{instruction}\n</instruct>\n" if instruction else ""
    passages = (f'<passage id="{i}">\n{document}{DOCUMENT_MARK}\n</passage>\n' for i, document in enumerate(documents))
    return (
        f"{_SYSTEM}I will provide you with {len(documents)} passages, each indicated by a numerical identifier. Rank "
        f"the passages based on their relevance to query: {query}\n{instruction}{''.join(passages)}"
        f"<query>\n{query}{QUERY_MARK}"
    )


def _item(parts: Sequence[Int32Array], index: int, *, truncated: bool = False) -> Item:
    return Item(np.concatenate(parts), index, truncated=truncated, parts=tuple(len(part) for part in parts))


def _too_many(what: str, limit: str) -> InvalidRequest:
    return InvalidRequest(f"{what}; this reranker reads at most {limit} at once: {_WAY_OUT}", param="documents")
