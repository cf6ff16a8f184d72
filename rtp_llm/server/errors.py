"""Errors on the wire: what only HTTP can get wrong, and the one translation of any exception into an answer.

RtpError (rtp_llm.errors)
└── InvalidRequest
    ├── UnknownPath           404
    ├── MethodNotAllowed      405   with Allow
    ├── BodyTimeout           408   a body that does not arrive
    ├── UriTooLong            414   a request line over the limit
    ├── UnsupportedEncoding   415   a compressed body
    └── HeadTooLarge          431   a request line and headers over the limit
"""

import logging
from collections.abc import Callable

import msgspec
import orjson

from rtp_llm.errors import (
    ContextLengthExceeded,
    EngineFailure,
    InvalidRequest,
    NotReady,
    Overloaded,
    RtpError,
    Unauthorized,
    whole_seconds,
)

logger = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]
# An error as one dialect tells it: status and body.
ErrorForm = Callable[[RtpError], tuple[int, bytes]]


class ErrorObject(msgspec.Struct, kw_only=True):
    """What went wrong: `message` for people, `type`, `param` and `code` for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(msgspec.Struct, kw_only=True):
    """The body of every answer whose status is not 2xx."""

    error: ErrorObject


class SharedErrorAnswer(ErrorAnswer, kw_only=True):
    """Of paths that several clients share: `message` is Cohere's, `detail` Voyage's."""

    message: str
    detail: str


class TeiError(msgspec.Struct, kw_only=True):
    """text-embeddings-inference's form."""

    error: str
    error_type: str


class MessageError(msgspec.Struct, kw_only=True):
    """Cohere's form."""

    message: str


class PlainError(msgspec.Struct, kw_only=True):
    """Ollama's and Weaviate's form."""

    error: str


class UnknownPath(InvalidRequest):
    """No route has this path."""

    status = 404
    code = "unknown_path"


class MethodNotAllowed(InvalidRequest):
    """The path exists, under the methods in `allow`."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class BodyTimeout(InvalidRequest):
    """The body was announced and did not arrive in time."""

    status = 408
    code = "body_timeout"


class UriTooLong(InvalidRequest):
    """The request line alone is over the limit of a head."""

    status = 414
    code = "uri_too_long"


class HeadTooLarge(InvalidRequest):
    """The request line and headers are over the limit."""

    status = 431
    code = "head_too_large"


class UnsupportedEncoding(InvalidRequest):
    """The body is compressed."""

    status = 415
    code = "unsupported_encoding"


# What is asked of a server that ends, and has no answer yet.
SHUTTING_DOWN = "the server is shutting down: try another one, or later"


class ClientLeft(Exception):
    """The connection closed before the answer: there is nobody to tell."""


def as_rtp_error(error: Exception, method: str, path: str, request_id: str) -> RtpError:
    """`error` as one that a user may see; the unforeseen is logged under `request_id` and shown without internals."""
    if isinstance(error, RtpError):
        return error
    logger.error("request %s: %s %s failed", request_id, method, path, exc_info=error)
    return unforeseen(request_id)


def unforeseen(request_id: str | None) -> EngineFailure:
    """What is shown of an error that the log has under `request_id`."""
    return EngineFailure(f"the server failed on this request; its log tells why under {request_id}")


def error_fields(error: RtpError) -> dict[str, str | None]:
    """OpenAI's error object."""
    return {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}


def openai_form(error: RtpError) -> tuple[int, bytes]:
    """OpenAI's and vLLM's: {"error": {"message", "type", "param", "code"}}."""
    return error.status, orjson.dumps({"error": error_fields(error)})


def shared_form(error: RtpError) -> tuple[int, bytes]:
    """Of paths that several clients share: OpenAI's, with Cohere's `message` and Voyage's `detail` beside it."""
    told = {"error": error_fields(error), "message": error.message, "detail": error.message}
    return error.status, orjson.dumps(told)


def plain_form(error: RtpError) -> tuple[int, bytes]:
    """Ollama's and Weaviate's: {"error": message}. By Ollama's own words its clients know what may be cut."""
    too_long = "the input length exceeds the context length: " if isinstance(error, ContextLengthExceeded) else ""
    return error.status, orjson.dumps({"error": too_long + error.message})


def error_headers(error: RtpError) -> Headers:
    """The headers by which a client knows what to do next."""
    if isinstance(error, Overloaded):
        return [(b"retry-after", b"%d" % whole_seconds(error.retry_after))]
    if isinstance(error, NotReady):
        return [(b"retry-after", b"1")]
    if isinstance(error, Unauthorized):
        return [(b"www-authenticate", b'Bearer realm="rtp-llm"')]
    if isinstance(error, MethodNotAllowed):
        return [(b"allow", error.allow.encode("latin-1"))]
    if error.status in (408, 413, 415):
        # Whatever is left of the body must not be read as the next request, nor be read at all.
        return [(b"connection", b"close")]
    return []
