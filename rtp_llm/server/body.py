"""Request bodies: bytes within the limit, then a typed value, or an error that says where and why."""

import asyncio
import re
from codecs import BOM_UTF8
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from rtp_llm.errors import InvalidRequest, RequestTooLarge
from rtp_llm.server.errors import BodyTimeout, ClientLeft, UnsupportedEncoding
from rtp_llm.server.exchange import Exchange

Body = TypeVar("Body")

_PLACE = " - at `$"
_MOST_SHOWN = 300  # characters of a message, which may hold all of a value
_MISSING = re.compile(r"^Object missing required field `(?P<field>[^`]*)`(?: - at `\$\.?(?P<place>.*)`)?$")
# A high surrogate without a low one; near the body's end msgspec calls the body truncated.
_LONE_SURROGATE = re.compile(rb"(?<!\\)\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\|\Z)")


async def read_body(exchange: Exchange, max_bytes: int, timeout: float) -> bytes:
    """The whole body, but for a byte order mark before it.

    RequestTooLarge as soon as it is known to be over `max_bytes`, without reading the rest.
    BodyTimeout when it has not arrived after `timeout` seconds.
    """
    task, expired = asyncio.current_task(), False

    def expire() -> None:
        nonlocal expired
        expired = True
        assert task is not None
        task.cancel()

    timer = asyncio.get_running_loop().call_later(timeout, expire)
    try:
        body = await _read(exchange, max_bytes)
    except asyncio.CancelledError:
        if not expired:
            raise
        raise BodyTimeout(f"the body did not arrive within {timeout:g} seconds (body_timeout)") from None
    finally:
        timer.cancel()
    # RFC 8259, 8.1: a parser may ignore it; PowerShell and .NET send one.
    return body[len(BOM_UTF8) :] if body.startswith(BOM_UTF8) else body


async def _read(exchange: Exchange, max_bytes: int) -> bytes:
    encoding = exchange.headers.get(b"content-encoding", b"identity")
    if encoding.lower() != b"identity":
        name = encoding.decode("latin-1")
        raise UnsupportedEncoding(f"Content-Encoding {name!r:.100} is not supported: send the JSON body uncompressed")
    if int(exchange.headers.get(b"content-length", b"0")) > max_bytes:
        raise _too_large(max_bytes)
    message = await exchange.receive()
    body: bytes = message.get("body", b"")
    if message["type"] == "http.request" and not message.get("more_body", False) and len(body) <= max_bytes:
        return body
    parts, size = [body], len(body)
    while message["type"] == "http.request" and message.get("more_body", False) and size <= max_bytes:
        message = await exchange.receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
    if message["type"] != "http.request":
        raise ClientLeft
    if size > max_bytes:
        raise _too_large(max_bytes)
    return b"".join(parts)


def decode(decoder: msgspec.json.Decoder[Body], body: bytes) -> Body:
    """`body` as the decoder's type; InvalidRequest names the place (`param`, or the byte) and what belongs there."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        # A key that is not UTF-8 is to msgspec one that it does not know.
        _check_utf8(body)
        raise _unexpected(decoder, str(error)) from None
    except UnicodeDecodeError:  # of msgspec before 0.23
        _check_utf8(body)
        raise InvalidRequest("the body is not valid UTF-8") from None
    except RecursionError:
        raise InvalidRequest("the body's JSON is nested too deeply") from None
    except msgspec.DecodeError as error:
        if "UTF-8" in str(error):  # of msgspec since 0.23
            _check_utf8(body)
        raise InvalidRequest(_malformed(body, str(error))) from None


def _too_large(max_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(f"the body is over {max_bytes} bytes: send fewer inputs at a time, or raise max_body_bytes")


def _unexpected(decoder: msgspec.json.Decoder[Body], text: str) -> InvalidRequest:
    """A value of the wrong type: msgspec's sentence with the path in front, as `input[3]: expected …`."""
    missing = _MISSING.match(text)
    if missing:
        field, place = missing["field"], missing["place"]
        param, whole = (f"{place}.{field}", place) if place else (field, "the body")
        return InvalidRequest(f"{param} is missing: {whole} must be a JSON object with {field!r}", param=param)
    before, found, place = text.rpartition(_PLACE)
    detail, param = (before, place.lstrip(".").removesuffix("`")) if found else (text, "")
    detail = (detail if len(detail) <= _MOST_SHOWN else f"{detail[:_MOST_SHOWN]}…").replace("`", "")
    if not param:
        return InvalidRequest(f"the body must be a JSON object: {_lower(detail)}")
    if detail.startswith("Invalid enum value"):
        allowed = _choices(decoder.type, param)
        detail += f", allowed: {', '.join(map(repr, allowed))}" if allowed else ""
    elif "str" in detail and detail.endswith("got object"):
        detail += "; texts are strings, or objects with `text`; chat messages go into `messages`"
    return InvalidRequest(f"{param}: {_lower(detail)}", param=param)


def _choices(kind: Any, path: str) -> list[Any]:
    """What the field at `a.b` may be; nothing where the path leads through lists, or is not known."""
    name, _, rest = path.partition(".")
    hints = next((get_type_hints(one) for one in _members(kind) if hasattr(one, "__struct_fields__")), {})
    if name not in hints:
        return []
    if rest:
        return _choices(hints[name], rest)
    literals = [one for one in _members(hints[name]) if get_origin(one) is Literal]
    return [value for literal in literals for value in get_args(literal)]


def _members(kind: Any) -> list[Any]:
    """A type alone, or those of a union."""
    return [*get_args(kind)] if get_origin(kind) in (Union, UnionType) else [kind]


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _check_utf8(body: bytes) -> None:
    """InvalidRequest with the first byte of the body that is not UTF-8; msgspec counts from the start of its string."""
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not valid UTF-8 (byte {error.start})") from None


def _malformed(body: bytes, reason: str) -> str:
    lone = _LONE_SURROGATE.search(body)
    if "surrogate" in reason or lone:
        place = f"byte {lone.start()}" if lone else reason.partition("(")[2].rstrip(")")
        return f"the body has half of a surrogate pair ({place}), which is no character"
    if not body.strip():
        return "the body is empty: a JSON object is expected"
    if "truncated" in reason:
        return f"the body is not valid JSON: it ends too early (byte {len(body)})"
    return f"the body is not valid JSON: {reason.removeprefix('JSON is malformed: ')}"
