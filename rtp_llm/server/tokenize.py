"""Token ids of a text and back, as RTP-LLM's and vLLM's clients ask: /tokenize, /tokenizer/encode and /detokenize.

RTP-LLM's and vLLM's /tokenize both send `prompt`; one answer has the fields of both.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import orjson
from msgspec import Meta

from rtp_llm.server.catalog import ModelName, Service
from rtp_llm.server.dialect import Lookup, Route
from rtp_llm.server.service import EngineLike, Token

TOKENIZE, ENCODE, DETOKENIZE = "/tokenize", "/tokenizer/encode", "/detokenize"


class TokenizeBody(msgspec.Struct, kw_only=True):
    """A text, tokenised as the model reads it: no prompt, no limit."""

    prompt: Annotated[str, Meta(description="a text")]
    add_special_tokens: Annotated[bool | None, Meta(description="false: no [CLS], no [SEP]; null: true")] = None
    return_token_strs: Annotated[bool | None, Meta(description="/tokenize: the tokens' names too; null: false")] = None
    return_offsets_mapping: Annotated[
        bool | None, Meta(description="/tokenizer/encode: the characters of each token instead of its name")
    ] = None
    model: ModelName = None


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


def _tokens(body: TokenizeBody, engine: EngineLike, service: Service) -> Sequence[Token]:
    service.admission.check_text(body.prompt, "prompt")
    return engine.tokens(body.prompt, add_special_tokens=body.add_special_tokens is not False)


def _tokenize(body: TokenizeBody, engine: EngineLike, service: Service) -> bytes:
    tokens = _tokens(body, engine, service)
    ids = [token.id for token in tokens]
    answer = {
        "token_ids": ids,
        "tokens": ids,
        "count": len(ids),
        "max_model_len": engine.info().max_seq_len,
        "token_strs": [token.text for token in tokens] if body.return_token_strs else None,
    }
    return orjson.dumps(answer)


def _encode(body: TokenizeBody, engine: EngineLike, service: Service) -> bytes:
    tokens = _tokens(body, engine, service)
    answer: dict[str, Any] = {"token_ids": [token.id for token in tokens], "error": ""}
    if body.return_offsets_mapping:
        answer["offset_mapping"] = [(token.start or 0, token.stop or 0) for token in tokens]
        answer["tokens"] = []
    else:
        answer["tokens"] = [token.text for token in tokens]
    return orjson.dumps(answer)


def _detokenize(body: DetokenizeBody, engine: EngineLike, service: Service) -> bytes:
    return orjson.dumps({"prompt": engine.decode(body.tokens, skip_special_tokens=False)})


_decoder = msgspec.json.Decoder(TokenizeBody)
ROUTES: dict[str, Route] = {
    TOKENIZE: Lookup(_decoder, _tokenize),
    ENCODE: Lookup(_decoder, _encode),
    DETOKENIZE: Lookup(msgspec.json.Decoder(DetokenizeBody), _detokenize),
}
