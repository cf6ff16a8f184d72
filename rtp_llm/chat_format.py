"""How sentence-transformers puts texts through their tokenizer's chat template."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """What the settings of sentence-transformers' Transformer say of it.

    asked           whether modality_config says that it does; None: there is none
    message_format  of a message's content: `flat`, a string; `structured`, a list of parts; `auto`: the template tells
    options         what the template is given beside the messages
    template        by its name among the checkpoint's templates; empty: the one that needs none
    """

    asked: bool | None = None
    message_format: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    template: str = ""

    @classmethod
    def read(cls, transformer: Mapping[str, Any]) -> "ChatFormat":
        """From the module's file."""
        modalities = transformer.get("modality_config")
        message = (modalities or {}).get("message")
        options = dict((transformer.get("processing_kwargs") or {}).get("chat_template") or {})
        template = options.pop("chat_template", None) or ""
        own = message.get("format") if isinstance(message, dict) else None
        return cls("message" in modalities if modalities else None, own or "auto", options, template)
