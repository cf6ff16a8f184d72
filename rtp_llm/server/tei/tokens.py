"""TEI's /tokenize and /decode; the places of a token are bytes of the text's UTF-8."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Annotated, Any

import msgspec
import orjson
from msgspec import Meta

from rtp_llm.errors import InvalidRequest
from rtp_llm.server.catalog import ModelName
from rtp_llm.server.checks import check_prompt_name
from rtp_llm.server.dialect import Lookup
from rtp_llm.server.engine_like import EngineLike, Token
from rtp_llm.server.service import Service
from rtp_llm.server.tei import frame
from rtp_llm.server.tei.frame import PromptName
from rtp_llm.server.token_ids import decoded


class TokensBody(msgspec.Struct, kw_only=True):
    """Of /tokenize."""

    inputs: Annotated[str | list[str], Meta(description="a text, or texts")]
    add_special_tokens: Annotated[bool | None, Meta(description="null: true")] = None
    prompt_name: PromptName = None
    model: ModelName = None


class SimpleToken(msgspec.Struct, kw_only=True):
    """A token and the bytes that it covers; special ones cover none."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class DecodeBody(msgspec.Struct, kw_only=True):
    """Of /decode."""

    ids: Annotated[list[int | list[int]], Meta(description="one sequence of token ids, or a list of sequences")]
    skip_special_tokens: Annotated[bool | None, Meta(description="null: true")] = None
    model: ModelName = None


def _tokenize(body: TokensBody, engine: EngineLike, service: Service) -> Iterator[bytes]:
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    frame.check_inputs(texts, service.config)
    for place, text in enumerate(texts):
        service.admission.check_text(text, f"inputs[{place}]")
    service.admission.check_together(texts, "inputs")
    check_prompt_name(body.prompt_name, engine.info())
    prompt = engine.prompt(body.prompt_name) if body.prompt_name else ""
    special = body.add_special_tokens is not False
    for place, text in enumerate(texts):
        yield b",[" if place else b"[["
        separator = b""
        for part in _parts(prompt + text, engine, special):
            yield separator + orjson.dumps(part)[1:-1] if part else b""  # each part ends a turn, an empty one too
            separator = b"," if part else separator
        yield b"]"
    yield b"]"


def _parts(text: str, engine: EngineLike, add_special_tokens: bool) -> Iterator[list[dict[str, Any]]]:
    begins = 0  # the byte of a part's first character
    for part in engine.token_parts(text, add_special_tokens=add_special_tokens):
        own = text[part.start : part.stop]
        places = list(accumulate((len(letter.encode()) for letter in own), initial=begins))
        yield _tokens(part.tokens, text, places, part.start)
        begins = places[-1]


def _tokens(found: Sequence[Token], text: str, places: Sequence[int], first: int) -> list[dict[str, Any]]:
    """`places` are the bytes of the characters from `first` on."""
    tokens = []
    for token in found:
        if token.special or token.start is None or token.stop is None:
            tokens.append({"id": token.id, "text": token.text, "special": True, "start": None, "stop": None})
            continue
        start, stop = places[token.start - first], places[token.stop - first]
        covered = text[token.start : token.stop]
        tokens.append({"id": token.id, "text": covered, "special": False, "start": start, "stop": stop})
    return tokens


def _decode(body: DecodeBody, engine: EngineLike, service: Service) -> Iterator[bytes]:
    frame.check_inputs(body.ids, service.config, "ids")
    given: Any = body.ids if isinstance(body.ids[0], list) else [body.ids]
    alone = given is not body.ids
    named = [("ids" if alone else f"ids[{place}]", _sequence(ids, place)) for place, ids in enumerate(given)]
    for name, ids in named:
        service.admission.check_text(ids, name)
    service.admission.check_together([ids for _, ids in named], "ids")
    opening = b"["
    for name, ids in named:
        text = decoded(engine, ids, name, skip_special_tokens=body.skip_special_tokens is not False)
        yield opening + orjson.dumps(text)
        opening = b","
    yield b"]"


def _sequence(ids: Any, place: int) -> list[int]:
    if isinstance(ids, list) and all(isinstance(value, int) for value in ids):
        return ids
    message = f"ids[{place}]: expected a list of token ids; send one sequence, or a list of sequences"
    raise InvalidRequest(message, param=f"ids[{place}]")


TOKENIZE: Lookup[TokensBody] = Lookup(msgspec.json.Decoder(TokensBody), _tokenize, error_form=frame.error_form)
DECODE: Lookup[DecodeBody] = Lookup(msgspec.json.Decoder(DecodeBody), _decode, error_form=frame.error_form)
