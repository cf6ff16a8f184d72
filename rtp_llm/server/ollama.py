"""Ollama's embeddings: POST /api/embed, and /api/embeddings as its older clients send them.

What its clients ask of the models is in rtp_llm/server/ollama_models.py. As in Ollama (docs/api.md, server/routes.go),
vectors of /api/embed are normalised, those of /api/embeddings are as the model pools them, and a body without a text,
by which Ollama loads a model, is answered without a vector.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, TypeAlias

import msgspec
import orjson
from msgspec import Meta

from rtp_llm.config import ServerConfig
from rtp_llm.core import ModelInfo, Params, Request, Response, TaskType
from rtp_llm.errors import InvalidRequest
from rtp_llm.server.catalog import ModelName, one_of
from rtp_llm.server.checks import as_asked, check_count, check_dimensions, check_least
from rtp_llm.server.dialect import Dialect, Truncate
from rtp_llm.server.errors import plain_form
from rtp_llm.server.vectors import arrays, as_numbers, finite

PATH, OLD_PATH = "/api/embed", "/api/embeddings"
PREFIX = "/api/"  # of all its paths, those that are not served too
_GENERATES = "text is not generated here; /api/embed makes vectors"
_KEEPS = "models are not fetched, made or removed by requests, but chosen when the server starts; /api/tags lists them"
# What Ollama does and this server does not, with what to say of it.
REFUSED = {
    **dict.fromkeys(("/api/generate", "/api/chat"), _GENERATES),
    **dict.fromkeys(("/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete"), _KEEPS),
}
KeepAlive: TypeAlias = Annotated[Any, Meta(description="ignored: a model stays loaded")]


class OllamaOptions(msgspec.Struct, kw_only=True):
    """What is read of the options of Ollama's models; the others are of generating, or of loading."""

    num_ctx: Annotated[
        float | None,
        Meta(
            description="tokens kept of each text, at most the model's limit; null, 0: that; a fraction is passed over"
        ),
    ] = None


Options: TypeAlias = Annotated[OllamaOptions | None, Meta(description="`num_ctx` is read, others are ignored")]


class OllamaEmbedBody(msgspec.Struct, kw_only=True):
    """Of /api/embed. Unknown fields are ignored; null means absent."""

    input: Annotated[
        str | list[str] | None, Meta(description="a text or texts; null, nothing, an empty text: no vectors")
    ] = None
    model: ModelName = None
    truncate: Truncate = None
    dimensions: Annotated[
        int | None, Meta(description="leading dimensions to keep, normalised again; null, 0: all")
    ] = None
    options: Options = None
    keep_alive: KeepAlive = None


class OllamaEmbeddingsBody(msgspec.Struct, kw_only=True):
    """Of /api/embeddings. Unknown fields are ignored; null means absent."""

    prompt: Annotated[str | None, Meta(description="a text; null, an empty one: no vector")] = None
    model: ModelName = None
    options: Options = None
    keep_alive: KeepAlive = None


class OllamaEmbedAnswer(msgspec.Struct, kw_only=True):
    """A vector for each text. Durations are in nanoseconds; nothing was loaded for this request."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaEmbeddingsAnswer(msgspec.Struct, kw_only=True):
    """The vector of one text."""

    embedding: list[float]


def refusal(path: str) -> InvalidRequest | None:
    """The error of a path of Ollama's that this server has no use for; None: it is none of these."""
    reason = REFUSED.get(path)
    return None if reason is None else InvalidRequest(f"this server does not support {path}: {reason}")


def _kept(options: OllamaOptions | None, info: ModelInfo) -> int | None:
    """The tokens that are kept of a text; None: as many as the model reads."""
    num_ctx = int(options.num_ctx or 0) if options is not None else 0
    check_least(num_ctx, 0, "options.num_ctx")
    return min(num_ctx, info.max_seq_len) or None


def to_request(body: OllamaEmbedBody, info: ModelInfo, config: ServerConfig, request_id: str) -> Request:
    """What /api/embed asks of the engine; nothing, where there is no text."""
    texts: Sequence[str] = [body.input] if isinstance(body.input, str) and body.input else body.input or ()
    check_count(len(texts), config, "input")
    check_dimensions(body.dimensions or None, info)
    params = Params(
        dimensions=as_asked(body.dimensions or None, info),
        normalize=True,
        truncate=body.truncate is not False,
        max_tokens=_kept(body.options, info),
    )
    return Request(inputs=texts, params=params, request_id=request_id)


def render(body: OllamaEmbedBody, response: Response, info: ModelInfo) -> Iterator[bytes]:
    """The vectors, and what they took."""
    yield b'{"model":%b,"embeddings":' % orjson.dumps(info.name)
    yield from arrays(response.outputs.get(TaskType.DENSE, ()))
    taken = (round(response.timings.total * 1e9), response.total_tokens)
    yield b',"total_duration":%d,"load_duration":0,"prompt_eval_count":%d}' % taken


def _old_request(body: OllamaEmbeddingsBody, info: ModelInfo, config: ServerConfig, request_id: str) -> Request:
    params = Params(normalize=False, max_tokens=_kept(body.options, info))
    return Request(inputs=[body.prompt] if body.prompt else [], params=params, request_id=request_id)


def _render_old(body: OllamaEmbeddingsBody, response: Response, info: ModelInfo) -> Iterator[bytes]:
    rows = response.outputs.get(TaskType.DENSE, ())
    yield b'{"embedding":%b}' % (as_numbers(finite(rows[0], 0)) if len(rows) else b"[]")


def _place(body: OllamaEmbedBody, info: ModelInfo, index: int) -> str:
    return "input" if isinstance(body.input, str) else f"input[{index}]"


_WANTED = one_of(TaskType.DENSE)
EMBED: Dialect[OllamaEmbedBody] = Dialect(
    msgspec.json.Decoder(OllamaEmbedBody), to_request, render, _WANTED, error_form=plain_form, place=_place
)
EMBEDDINGS: Dialect[OllamaEmbeddingsBody] = Dialect(
    msgspec.json.Decoder(OllamaEmbeddingsBody),
    _old_request,
    _render_old,
    _WANTED,
    error_form=plain_form,
    place=lambda body, info, index: "prompt",
    cut="truncate to true on /api/embed",
)
