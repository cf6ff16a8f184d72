"""Token ids of a text and back, as RTP-LLM's and vLLM's clients ask: /tokenize, /tokenizer/encode and /detokenize.

RTP-LLM's and vLLM's /tokenize both send `prompt`; one answer has the fields of both.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, TypeAlias

import msgspec
import orjson
from msgspec import Meta

from rtp_llm.config import ServerConfig
from rtp_llm.errors import InvalidRequest
from rtp_llm.server.catalog import ModelName
from rtp_llm.server.chat import ChatBody, rendered
from rtp_llm.server.dialect import Lookup
from rtp_llm.server.engine_like import EngineLike, Token
from rtp_llm.server.route import Choice, Route
from rtp_llm.server.service import Service
from rtp_llm.server.token_ids import decoded

TOKENIZE, ENCODE, DETOKENIZE = "/tokenize", "/tokenizer/encode", "/detokenize"
_PIECE = 8192


ReturnNames: TypeAlias = Annotated[bool | None, Meta(description="/tokenize: the tokens' names too; null: false")]


class TokenizeBody(msgspec.Struct, kw_only=True):
    """A text, tokenised as the model reads it: no prompt, no limit."""

    prompt: Annotated[str, Meta(description="a text")]
    add_special_tokens: Annotated[bool | None, Meta(description="false: no [CLS], no [SEP]; null: true")] = None
    return_token_strs: ReturnNames = None
    return_offsets_mapping: Annotated[
        bool | None, Meta(description="/tokenizer/encode: the characters of each token instead of its name")
    ] = None
    model: ModelName = None


class TokenizeChatBody(ChatBody, kw_only=True):
    """vLLM's: a conversation, tokenised as the checkpoint's chat template writes it."""

    add_generation_prompt: Annotated[
        bool | None, Meta(description="null: true, unless continue_final_message is true")
    ] = None
    return_token_strs: ReturnNames = None
    model: ModelName = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.add_generation_prompt is None:
            self.add_generation_prompt = not self.continue_final_message


class TokenizeAnswer(msgspec.Struct, kw_only=True):
    """RTP-LLM reads `token_ids`, vLLM's clients the rest."""

    token_ids: list[int]
    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None


class EncodeAnswer(msgspec.Struct, kw_only=True):
    """Answer of /tokenizer/encode; with offsets `tokens` is empty, and a special token covers 0 to 0."""

    token_ids: list[int]
    tokens: list[str]
    offset_mapping: list[tuple[int, int]] | msgspec.UnsetType = msgspec.UNSET
    error: str = ""


class DetokenizeBody(msgspec.Struct, kw_only=True):
    """Ids of the model's own tokenizer."""

    tokens: Annotated[list[int], Meta(description="token ids, special ones included")]
    model: ModelName = None


class DetokenizeAnswer(msgspec.Struct, kw_only=True):
    """Their text, special tokens included."""

    prompt: str


def _parts(body: TokenizeBody, engine: EngineLike, service: Service) -> Iterator[Sequence[Token]]:
    service.admission.check_text(body.prompt, "prompt")
    for part in engine.token_parts(body.prompt, add_special_tokens=body.add_special_tokens is not False):
        yield part.tokens


async def _rendered(body: TokenizeChatBody, config: ServerConfig, engine: EngineLike) -> TokenizeChatBody:
    several = [one for one in body.messages or () if isinstance(one, list)]
    if len(several) > 1 and not isinstance(body.input, (str, list)):
        raise InvalidRequest("messages: one conversation is tokenised at a time", param="messages")
    return await rendered(body, config, engine)


def _tokenize_chat(body: TokenizeChatBody, engine: EngineLike, service: Service) -> Iterator[bytes]:
    if not isinstance(body.input, list) or len(body.input) != 1:
        raise InvalidRequest("messages: one conversation is tokenised at a time", param="messages")
    text = str(body.input[0])
    service.admission.check_text(text, "messages")
    parts = engine.token_parts(text, add_special_tokens=body.adds_special_tokens)
    return _answer((part.tokens for part in parts), body.return_token_strs, engine)


def _tokenize(body: TokenizeBody, engine: EngineLike, service: Service) -> Iterator[bytes]:
    return _answer(_parts(body, engine, service), body.return_token_strs, engine)


def _answer(parts: Iterator[Sequence[Token]], with_names: bool | None, engine: EngineLike) -> Iterator[bytes]:
    ids: list[int] = []
    names: list[str] = []
    for tokens in parts:
        ids += [token.id for token in tokens]
        if with_names:
            names += [token.text for token in tokens]
        yield b""
    yield b'{"count":%d,"max_model_len":%d,"token_ids":' % (len(ids), engine.info().max_seq_len)
    yield from _array(ids)
    yield b',"tokens":'
    yield from _array(ids)
    yield b',"token_strs":'
    yield from _array(names) if with_names else (b"null",)
    yield b"}"


def _encode(body: TokenizeBody, engine: EngineLike, service: Service) -> Iterator[bytes]:
    ids: list[int] = []
    others: list[Any] = []
    for tokens in _parts(body, engine, service):
        ids += [token.id for token in tokens]
        if body.return_offsets_mapping:
            others += [(token.start or 0, token.stop or 0) for token in tokens]
        else:
            others += [token.text for token in tokens]
        yield b""
    yield b'{"error":"","token_ids":'
    yield from _array(ids)
    yield b',"tokens":[],"offset_mapping":' if body.return_offsets_mapping else b',"tokens":'
    yield from _array(others)
    yield b"}"


def _array(values: list[Any]) -> Iterator[bytes]:
    """As JSON, in pieces that take a millisecond or less."""
    for start in range(0, len(values), _PIECE):
        yield (b"," if start else b"[") + orjson.dumps(values[start : start + _PIECE])[1:-1]
    yield b"]" if values else b"[]"


def _detokenize(body: DetokenizeBody, engine: EngineLike, service: Service) -> Iterator[bytes]:
    service.admission.check_text(body.tokens, "tokens")
    yield orjson.dumps({"prompt": decoded(engine, body.tokens, "tokens", skip_special_tokens=False)})


TOKENIZE_CHAT: Lookup[TokenizeChatBody] = Lookup(
    msgspec.json.Decoder(TokenizeChatBody, strict=False), _tokenize_chat, prepare=_rendered
)
_decoder = msgspec.json.Decoder(TokenizeBody, strict=False)
ROUTES: dict[str, Route] = {
    TOKENIZE: Choice({"messages": TOKENIZE_CHAT}, Lookup(_decoder, _tokenize)),
    ENCODE: Lookup(_decoder, _encode),
    DETOKENIZE: Lookup(msgspec.json.Decoder(DetokenizeBody, strict=False), _detokenize),
}
