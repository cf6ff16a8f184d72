"""Where a CLIP reads a text: at its end token, so that nothing behind that is computed."""

from dataclasses import dataclass

import numpy as np

from rtp_llm.core import Int32Array
from rtp_llm.errors import CheckpointError
from rtp_llm.model_config import ModelConfig

# Of transformers' CLIPTextConfig.
_END = 49407
# What config.json had before transformers 4.31, whatever the tokenizer's was.
_LEGACY = 2


@dataclass(frozen=True, slots=True)
class EndToken:
    """The first of this id; None: of the greatest that the text has. Of a text without one, its first token.

    Source: transformers, CLIPTextModel.forward.
    """

    token_id: int | None

    @classmethod
    def of(cls, config: ModelConfig, written: int | None) -> "EndToken":
        """As config.json says; CheckpointError for several, or none, or another than is `written` by the tokenizer."""
        path, found = config.transformer_folder / "config.json", config.hf.get("eos_token_id", _END)
        if not isinstance(found, int):
            raise CheckpointError(f"{path}: eos_token_id {found}; a CLIP reads a text at the one token that ends it")
        if found not in (_LEGACY, written) and written is not None:
            raise CheckpointError(
                f"{path}: eos_token_id is {found}, but the tokenizer ends a text with {written}: all texts would be "
                "read at their first token, and have one vector"
            )
        return cls(None if found == _LEGACY else found)

    def num_read(self, input_ids: Int32Array) -> int:
        """How many leading tokens of a text [T] what is read depends on: up to the one at which it is read."""
        token_id = input_ids.max() if self.token_id is None else self.token_id
        return int(np.argmax(input_ids == token_id)) + 1
