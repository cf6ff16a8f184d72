"""Tokens as tokenizer_config.json declares them, where the tokenizer's own files lack them or have them otherwise."""

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def added_token(token: Mapping[str, Any], **flags: bool) -> AddedToken:
    """A token as JSON has it; `flags` stand over its own."""
    own = {flag: token[flag] for flag in _FLAGS if flag in token}
    return AddedToken(token["content"], **{**own, **flags})


def add_configured(tokenizer: tokenizers.Tokenizer, config: Mapping[str, Any], special: Mapping[str, Any]) -> None:
    """Those of added_tokens_decoder by their ids, of the roles, and the extra ones, each under the next free id.

    `special` is special_tokens_map.json, which is read where there is no added_tokens_decoder. How a token is found
    (`lstrip` and so on) is what added_tokens_decoder says.
    """
    known = {token.content: _flags(token) for token in tokenizer.get_added_tokens_decoder().values()}
    by_id, others = _declared(config, special)
    changed = [token for token in by_id if token.content and known.get(token.content) != _flags(token)]
    named = {*known, *(token.content for token in by_id)}
    missing = [token for token in others if token.content and token.content not in named]
    if changed or missing:
        tokenizer.add_tokens([*changed, *missing])


def _flags(token: AddedToken) -> list[bool]:
    return [getattr(token, flag) for flag in _FLAGS]


def _declared(config: Mapping[str, Any], special: Mapping[str, Any]) -> tuple[list[AddedToken], list[AddedToken]]:
    """Those of added_tokens_decoder; and others, for which it stands where it has them."""
    decoder: Mapping[str, Any] = config.get("added_tokens_decoder") or {}
    stated = config if decoder else {**config, **special}
    extra = stated.get("extra_special_tokens") or stated.get("additional_special_tokens") or []
    named = {f"{role}_token": stated.get(f"{role}_token") for role in _ROLES}
    named |= {key: token for key, token in stated.items() if key.endswith("_token") and key not in named}
    if isinstance(extra, dict):
        named |= extra
        extra = []
    roles = [token for token in named.values() if isinstance(token, (str, dict))]
    names = {token if isinstance(token, str) else token.get("content") for token in roles}
    by_id = [token for _, token in sorted(decoder.items(), key=lambda entry: int(entry[0]))]
    return (
        [added_token(token, **({"special": True} if token["content"] in names else {})) for token in by_id],
        [_special(token) for token in (*roles, *extra)],
    )


def _special(token: Any) -> AddedToken:
    return AddedToken(token, special=True) if isinstance(token, str) else added_token(token, special=True)
