"""Rerankers that read query and document through their checkpoint's own chat template.

Equals sentence-transformers' CrossEncoder (5.4 and later): messages of the roles `query` and `document`, after a
`system` message where there is a prompt; the text cut at the limit, and over its end the template's tail once more,
since the score is read there.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

from rtp_llm.chat_format import ChatFormat
from rtp_llm.core import Input, Item, Params
from rtp_llm.engine.chat_form import ChatForm
from rtp_llm.engine.pairs import naming, read_pairs, share
from rtp_llm.engine.tokenizer import Tokenizer
from rtp_llm.errors import CheckpointError, InvalidRequest, RtpError

logger = logging.getLogger(__name__)

_PROBES = (("alpha", "bravo"), ("charlie", "bravo"), ("alpha", "foxtrot"))


class ChatRerank:
    """Encodes pairs of query and document; ready token ids pass as they are."""

    def __init__(self, tokenizer: Tokenizer, chat: ChatFormat) -> None:
        """CheckpointError for a template that drops the query or the document, or fails on them."""
        self._tokenizer = tokenizer
        self._form = ChatForm(tokenizer, chat, ("query", "document"))
        problem = self._problem()
        if problem:
            raise CheckpointError(f"the chat template cannot carry a query and a document: {problem}")
        self.around_pair = len(self._form.rendered("", *_PROBES[0])) - sum(map(len, _PROBES[0]))

    def encode(self, inputs: Sequence[Input], params: Params, start: int = 0) -> list[Item]:
        """An Item per input, in order, that knows what it shares with others; InvalidRequest for a text alone."""
        items, pairs = read_pairs(self._tokenizer, inputs, params, start)
        prompt = self._tokenizer.instruction_text(params) or self._tokenizer.prompt_text(params)
        texts = [self._form.rendered(prompt, query, document) for query, document in pairs.values()]
        own = replace(params, prompt="", add_special_tokens=False)
        with naming(pairs):
            encoded = self._tokenizer.encode(texts, own)
        for index, item in zip(pairs, encoded, strict=True):
            item.index = index
            self._form.restore_tail(item, prompt)
            items[index] = item
        share(pairs, items, lambda query: self._form.head(prompt, query))
        return [items[index] for index in range(start, start + len(inputs))]

    def _problem(self) -> str:
        """Why the template cannot serve; empty: both texts of a pair reach what it makes."""
        try:
            base, *varied = (self._form.rendered("", *probe) for probe in _PROBES)
        except InvalidRequest as error:
            return error.message
        dropped = [role for role, text in zip(("query", "document"), varied, strict=True) if text == base]
        return f"it leaves out the {' and the '.join(dropped)}" if dropped else ""


def chat_rerank(tokenizer: Tokenizer, chat: ChatFormat, *, or_else: str) -> ChatRerank | None:
    """The encoder; None where the template does not serve and something else does: `or_else`, in words; empty: nothing.

    CheckpointError where there is nothing else.
    """
    if not (chat.template or tokenizer.chat_template.source) and or_else:
        logger.info("no chat template in the checkpoint; %s", or_else)
        return None
    try:
        return ChatRerank(tokenizer, chat)
    except RtpError as error:
        if not or_else:
            raise
        logger.info("%s; %s", error.message, or_else)
        return None
