"""Rerankers that read query and document through their checkpoint's own chat template.

Equals sentence-transformers' CrossEncoder (5.4 and later): messages of the roles `query` and `document`, after a
`system` message where there is a prompt; the text cut at the limit, and over its end the template's tail once more,
since the score is read there.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rtp_llm.chat_format import ChatFormat
from rtp_llm.core import Input, Int32Array, Item, Params
from rtp_llm.engine.pairs import common_length, naming, plain_ids, read_pairs, share
from rtp_llm.engine.prompt_cache import PromptCache
from rtp_llm.engine.tokenizer import Tokenizer
from rtp_llm.errors import CheckpointError, InvalidRequest, RtpError

logger = logging.getLogger(__name__)

_PROBES = (("alpha", "bravo"), ("charlie", "bravo"), ("alpha", "foxtrot"))
_FILLERS = ("0", "1 2 3 4")
_SWITCHES = ("add_generation_prompt", "restore_suffix")
# How sentence-transformers tells that a template wants content as a list of parts.
_PARTS = ("content[0]", ".type", "'type'", '"type"', "item.type", "message.content[")


class ChatRerank:
    """Encodes pairs of query and document; ready token ids pass as they are."""

    def __init__(self, tokenizer: Tokenizer, chat: ChatFormat) -> None:
        """CheckpointError for a template that drops the query or the document, or fails on them."""
        self._tokenizer = tokenizer
        self._template = tokenizer.chat_template
        self._options = chat.options
        form = chat.message_format
        source = self._template.source or ""
        self._has_parts = any(part in source for part in _PARTS) if form == "auto" else form == "structured"
        self._tails = PromptCache[Int32Array]()
        problem = self._problem()
        if problem:
            raise CheckpointError(f"the chat template cannot carry a query and a document: {problem}")
        self.around_pair = len(self._rendered(*_PROBES[0], "")) - sum(map(len, _PROBES[0]))

    def encode(self, inputs: Sequence[Input], params: Params, start: int = 0) -> list[Item]:
        """An Item per input, in order, that knows what it shares with others; InvalidRequest for a text alone."""
        items, pairs = read_pairs(self._tokenizer, inputs, params, start)
        prompt = self._tokenizer.instruction_text(params) or self._tokenizer.prompt_text(params)
        texts = [self._rendered(query, document, prompt) for query, document in pairs.values()]
        own = replace(params, prompt="", add_special_tokens=False)
        with naming(pairs):
            encoded = self._tokenizer.encode(texts, own)
        for index, item in zip(pairs, encoded, strict=True):
            item.index = index
            self._restore_tail(item, prompt)
            items[index] = item
        share(pairs, items, lambda query: self._head(query, prompt))
        return [items[index] for index in range(start, start + len(inputs))]

    def _rendered(self, query: str, document: str, prompt: str) -> str:
        texts = {**({"system": prompt} if prompt else {}), "query": query, "document": document}
        messages = [{"role": role, "content": self._content(text)} for role, text in texts.items()]
        variables = {name: value for name, value in self._options.items() if name not in _SWITCHES}
        return self._template.render(
            messages, add_generation_prompt=bool(self._options.get("add_generation_prompt")), variables=variables
        )

    def _content(self, text: str) -> Any:
        return [{"type": "text", "text": text}] if self._has_parts else text

    def _problem(self) -> str:
        """Why the template cannot serve; empty: both texts of a pair reach what it makes."""
        try:
            base, *varied = (self._rendered(*probe, "") for probe in _PROBES)
        except InvalidRequest as error:
            return error.message
        dropped = [role for role, text in zip(("query", "document"), varied, strict=True) if text == base]
        return f"it leaves out the {' and the '.join(dropped)}" if dropped else ""

    def _restore_tail(self, item: Item, prompt: str) -> None:
        """The template's end over that of a text which reached the limit."""
        if self._options.get("restore_suffix") is False:
            return
        if item.truncated or item.num_tokens >= self._tokenizer.max_seq_len:
            tail = self._tail(prompt)[-item.num_tokens :]
            if len(tail):
                item.input_ids[-len(tail) :] = tail

    def _tail(self, prompt: str) -> Int32Array:
        """The tokens at the end that are the same whatever the texts are."""
        tail = self._tails.get(prompt)
        if tail is None:
            first, second = (self._ids(self._rendered(filler, filler, prompt)) for filler in _FILLERS)
            length = common_length(first[::-1], second[::-1])
            tail = first[len(first) - length :] if length < min(len(first), len(second)) else first[:0]
            self._tails.put(prompt, tail)
        return tail

    def _head(self, query: str, prompt: str) -> Int32Array:
        """The leading tokens that two documents have in common."""
        first, second = (self._ids(self._rendered(query, filler, prompt)) for filler in _FILLERS)
        return first[: common_length(first, second)]

    def _ids(self, text: str) -> Int32Array:
        return plain_ids(self._tokenizer, text)


def chat_rerank(tokenizer: Tokenizer, chat: ChatFormat, *, or_else: str) -> ChatRerank | None:
    """The encoder; None where the template does not serve and something else does: `or_else`, in words; empty: nothing.

    CheckpointError where there is nothing else.
    """
    if not tokenizer.chat_template.source and or_else:
        logger.info("no chat template in the checkpoint; %s", or_else)
        return None
    try:
        return ChatRerank(tokenizer, chat)
    except RtpError as error:
        if not or_else:
            raise
        logger.info("%s; %s", error.message, or_else)
        return None
