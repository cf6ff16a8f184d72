"""Chat messages as input, through the checkpoint's own template: what vLLM's embeddings, pooling and classify take."""

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from rtp_llm.config import ServerConfig
from rtp_llm.core import ModelInfo
from rtp_llm.errors import InvalidRequest
from rtp_llm.server.checks import check_count
from rtp_llm.server.engine_like import EngineLike
from rtp_llm.server.scheduling import BodyPriority
from rtp_llm.server.turns import INLINE_CHARACTERS

# What is no variable of a template, but says how its text is made, or of what.
_NO_VARIABLES = ("messages", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize")

# What a message may have in the place of its content: an assistant's, which calls something or has only thought.
_INSTEAD_OF_CONTENT = ("tool_calls", "function_call", "reasoning_content", "reasoning")


class TextObject(msgspec.Struct, kw_only=True):
    """Jina's form of an input."""

    text: str | UnsetType = UNSET


Inputs = Annotated[
    str | list[str | int | list[int] | TextObject] | None | UnsetType,
    Meta(description="a text, texts, objects with `text`, one sequence of the model's own token ids, or several"),
]


class ChatBody(msgspec.Struct, kw_only=True):
    """`input`, or `messages` in its place."""

    input: Inputs = UNSET
    messages: Annotated[
        list[dict[str, Any] | list[dict[str, Any]]] | None,
        Meta(description="instead of `input`: a conversation, or several; through the checkpoint's chat template"),
    ] = None
    add_generation_prompt: Annotated[bool | None, Meta(description="of messages; null: false")] = None
    continue_final_message: Annotated[
        bool | None, Meta(description="of messages: the last one is left open; null: false")
    ] = None
    chat_template: Annotated[str | None, Meta(description="not served: the checkpoint's own is used")] = None
    chat_template_kwargs: Annotated[
        dict[str, Any] | None, Meta(description="of messages: variables of the template")
    ] = None
    add_special_tokens: Annotated[
        bool | None, Meta(description="[CLS], [SEP] and the like; null: true for input, false for messages")
    ] = None

    priority: BodyPriority = None

    def __post_init__(self) -> None:
        if not isinstance(self.input, (str, list)) and self.messages is None:
            raise ValueError("Object missing required field `input`")  # what msgspec says of a required field

    @property
    def adds_special_tokens(self) -> bool:
        """What the body says; a template writes what the model needs, and most models' have no others."""
        return self.messages is None if self.add_special_tokens is None else self.add_special_tokens


Body = TypeVar("Body", bound=ChatBody)


async def rendered(body: Body, config: ServerConfig, engine: EngineLike) -> Body:
    """The body with `input`: where there are messages, their text; RequestTooLarge where there are too many."""
    if body.messages is None:
        return body
    if isinstance(body.input, (str, list)):
        raise InvalidRequest("input and messages: send one of them", param="messages")
    if body.chat_template is not None:
        message = "chat_template is not taken from a request; leave it out for the checkpoint's own"
        raise InvalidRequest(message, param="chat_template")
    check_variables(body.chat_template_kwargs)
    conversations = _conversations(body.messages, config)
    size = sum(len(message["content"]) for conversation in conversations for message in conversation)
    is_small = size <= INLINE_CHARACTERS and len(conversations) == 1
    # One at a time, so that a request that has expired, or whose client has left, ends after the one that is written.
    body.input = [
        _text(body, conversation, engine) if is_small else await asyncio.to_thread(_text, body, conversation, engine)
        for conversation in conversations
    ]
    return body


def input_place(body: ChatBody, info: ModelInfo, index: int) -> str:
    """The field by which an input came: a conversation, a text, or token ids."""
    name, given = ("input", body.input) if body.messages is None else ("messages", body.messages)
    is_one = not isinstance(given, list) or isinstance(given[0], (int, dict))
    return name if is_one else f"{name}[{index}]"


def check_variables(given: Mapping[str, Any] | None) -> None:
    """InvalidRequest for what a chat template would never see, while its caller thinks that it is heeded."""
    wrong = next((name for name in _NO_VARIABLES if name in (given or {})), None)
    if wrong is not None:
        param = f"chat_template_kwargs.{wrong}"
        message = f"{param} is no variable of a template: send it as a field of the body, where there is one"
        raise InvalidRequest(message, param=param)


def _text(body: ChatBody, conversation: list[dict[str, Any]], engine: EngineLike) -> str:
    return engine.chat(
        conversation,
        add_generation_prompt=bool(body.add_generation_prompt),
        continue_final_message=bool(body.continue_final_message),
        variables=body.chat_template_kwargs,
    )


def _conversations(
    messages: list[dict[str, Any] | list[dict[str, Any]]], config: ServerConfig
) -> list[list[dict[str, Any]]]:
    """One conversation or several, each message with its content as one text."""
    kinds = set(map(type, messages))
    if len(kinds) > 1:
        raise InvalidRequest("messages: send one conversation, or a list of conversations", param="messages")
    several: list[Any] = messages if list in kinds else [messages]
    check_count(len(several), config, "messages")
    read = []
    for number, conversation in enumerate(several):
        where = f"messages[{number}]" if list in kinds else "messages"
        if not conversation:
            raise InvalidRequest(f"{where} is an empty list: give at least one message", param=where)
        read.append([_message(message, f"{where}[{place}]") for place, message in enumerate(conversation)])
    return read


def _message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(message.get("role"), str):
        raise InvalidRequest(f"{where}: a message has a role, which is a string", param=f"{where}.role")
    if message.get("content") is None and not any(message.get(name) for name in _INSTEAD_OF_CONTENT):
        words = "is missing: give a text, or a list of parts of type text; only beside tool_calls there need be none"
        raise InvalidRequest(f"{where}.content {words}", param=f"{where}.content")
    return {**message, "content": _content(message.get("content"), f"{where}.content")}


def _content(content: Any, where: str) -> str:
    """A text, or the texts of its parts, a line each."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    if len(texts) < len(parts) or not all(isinstance(text, str) for text in texts):
        raise InvalidRequest(f"{where}: a text, or a list of parts of type text, is read", param=where)
    return "\n".join(map(str, texts))
