"""RTP-LLM's tokenizer routes: POST /tokenize and /tokenizer/encode, for one `prompt` each."""

import asyncio
from typing import Annotated, Any

import msgspec
import orjson
from msgspec import Meta
from starlette.responses import Response as HttpResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from rtp_llm.config import ServerConfig
from rtp_llm.server.admission import Admission
from rtp_llm.server.body import decode, read_body
from rtp_llm.server.dialect import EngineLike
from rtp_llm.server.exchange import Exchange

TOKENIZE, ENCODE = "/tokenize", "/tokenizer/encode"
# Longer texts are tokenised on a thread: the event loop has others to serve.
_SMALL_CHARACTERS = 2000


class TokenizeBody(msgspec.Struct, kw_only=True):
    """A text, tokenised as the model reads it: special tokens included, no prompt, no limit."""

    prompt: str
    return_offsets_mapping: Annotated[
        bool | None, Meta(description="/tokenizer/encode: the characters of each token instead of its name")
    ] = None


class TokenizeAnswer(msgspec.Struct, kw_only=True):
    """Answer of /tokenize."""

    token_ids: list[int]


class EncodeAnswer(msgspec.Struct, kw_only=True):
    """Answer of /tokenizer/encode; with offsets `tokens` is empty, and a special token covers 0 to 0."""

    token_ids: list[int]
    tokens: list[str]
    offset_mapping: list[tuple[int, int]] | msgspec.UnsetType = msgspec.UNSET
    error: str = ""


def routes(engine: EngineLike, config: ServerConfig, admission: Admission) -> list[Route]:
    """Both routes."""
    return [Route(path, _Tokenizer(engine, config, admission, path), methods=["POST"]) for path in (TOKENIZE, ENCODE)]


class _Tokenizer:
    """One of the routes, as an ASGI application: it reads its body under the server's own limit."""

    def __init__(self, engine: EngineLike, config: ServerConfig, admission: Admission, path: str) -> None:
        self._engine = engine
        self._admission = admission
        self._config = config
        self._path = path
        self._decoder = msgspec.json.Decoder(TokenizeBody)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        content = await read_body(exchange, self._config.max_body_bytes, self._config.body_timeout)
        body = decode(self._decoder, content)
        self._admission.check_text(body.prompt, "prompt")
        if len(body.prompt) <= _SMALL_CHARACTERS:
            answer = self._answer(body)
        else:
            answer = await asyncio.to_thread(self._answer, body)
        await HttpResponse(answer, media_type="application/json")(scope, receive, send)

    def _answer(self, body: TokenizeBody) -> bytes:
        tokens = self._engine.tokens(body.prompt)
        ids = [token.id for token in tokens]
        answer: dict[str, Any] = {"token_ids": ids}
        if self._path == ENCODE and body.return_offsets_mapping:
            spans = [(token.start or 0, token.stop or 0) for token in tokens]
            answer = {"offset_mapping": spans, "token_ids": ids, "tokens": [], "error": ""}
        elif self._path == ENCODE:
            answer = {"token_ids": ids, "tokens": [token.text for token in tokens], "error": ""}
        return orjson.dumps(answer)
