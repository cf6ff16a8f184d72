"""What a checkpoint's chat template makes of texts by their roles, as sentence-transformers (5.4 and later) asks it."""

from collections.abc import Sequence
from typing import Any

from rtp_llm.chat_format import ChatFormat
from rtp_llm.core import Int32Array, Item
from rtp_llm.engine.pairs import common_length, plain_ids
from rtp_llm.engine.prompt_cache import PromptCache
from rtp_llm.engine.tokenizer import Tokenizer

_FILLERS = ("0", "1 2 3 4")
_SWITCHES = ("add_generation_prompt", "restore_suffix")
# How sentence-transformers tells that a template wants content as a list of parts.
_PARTS = ("content[0]", ".type", "'type'", '"type"', "item.type", "message.content[")


class ChatForm:
    """Messages of some roles as one text, after a `system` message where there is a prompt."""

    def __init__(
        self, tokenizer: Tokenizer, chat: ChatFormat, roles: Sequence[str], *, add_special_tokens: bool = False
    ) -> None:
        """CheckpointError for a template that is named and not there.

        add_special_tokens  whether the tokenizer's own stand around what the template writes
        """
        self._tokenizer = tokenizer
        self._template = tokenizer.chat_template.named(chat.template) if chat.template else tokenizer.chat_template
        self._options = chat.options
        self._roles = roles
        self._adds_special_tokens = add_special_tokens
        form = chat.message_format
        source = self._template.source or ""
        self._has_parts = any(part in source for part in _PARTS) if form == "auto" else form == "structured"
        self._tails = PromptCache[Int32Array]()

    def rendered(self, prompt: str, *texts: str) -> str:
        """One text for each role; InvalidRequest where the template fails on them."""
        by_role = {**({"system": prompt} if prompt else {}), **dict(zip(self._roles, texts, strict=True))}
        messages = [{"role": role, "content": self._content(text)} for role, text in by_role.items()]
        variables = {name: value for name, value in self._options.items() if name not in _SWITCHES}
        return self._template.render(
            messages, add_generation_prompt=bool(self._options.get("add_generation_prompt")), variables=variables
        )

    def restore_tail(self, item: Item, prompt: str) -> None:
        """The template's end over that of a text which reached the limit."""
        if self._options.get("restore_suffix") is False:
            return
        if item.truncated or item.num_tokens >= self._tokenizer.max_seq_len:
            tail = self._tail(prompt)[-item.num_tokens :]
            if len(tail):
                item.input_ids[-len(tail) :] = tail

    def head(self, prompt: str, *texts: str) -> Int32Array:
        """The leading tokens that two last texts after these have in common."""
        first, second = (self._ids(self.rendered(prompt, *texts, filler)) for filler in _FILLERS)
        return first[: common_length(first, second)]

    def _content(self, text: str) -> Any:
        return [{"type": "text", "text": text}] if self._has_parts else text

    def _tail(self, prompt: str) -> Int32Array:
        """The tokens at the end that are the same whatever the texts are."""
        tail = self._tails.get(prompt)
        if tail is None:
            first, second = (self._ids(self.rendered(prompt, *[filler] * len(self._roles))) for filler in _FILLERS)
            length = common_length(first[::-1], second[::-1])
            tail = first[len(first) - length :] if length < min(len(first), len(second)) else first[:0]
            self._tails.put(prompt, tail)
        return tail

    def _ids(self, text: str) -> Int32Array:
        return plain_ids(self._tokenizer, text, add_special_tokens=self._adds_special_tokens)
