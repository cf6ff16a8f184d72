"""What a model's tokenizer and templates tell without running the model."""

from collections.abc import Iterator
from typing import Any

from rtp_llm.engine.chat_template import Messages
from rtp_llm.engine.token_parts import token_parts
from rtp_llm.engine.tokenizer_pool import TokenizerPool
from rtp_llm.engine.tokens import Part


class Lookups:
    """The part of an engine that is the same wherever the model is computed."""

    _tokenizer: TokenizerPool

    def token_parts(self, text: str, *, add_special_tokens: bool = True) -> Iterator[Part]:
        """The tokens of a text as the model would read it, without prompt or limit, part by part."""
        return token_parts(self._tokenizer.tokenizer, text, add_special_tokens=add_special_tokens)

    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; InvalidRequest for an id that is out of the vocabulary."""
        return self._tokenizer.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def prompt(self, name: str) -> str:
        """The text of the prompt called `name`, one of the model's."""
        return self._tokenizer.tokenizer.prompts[name]

    def chat(self, messages: Messages, **options: Any) -> str:
        """A conversation as the model's chat template writes it; see ChatTemplate.render."""
        return self._tokenizer.tokenizer.chat_template.render(messages, **options)
