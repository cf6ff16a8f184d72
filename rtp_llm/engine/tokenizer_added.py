"""Tokens as tokenizer_config.json declares them, where the tokenizer's own files lack them or have them otherwise."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, processors

from rtp_llm.checkpoint import read_json
from rtp_llm.errors import CheckpointError

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_ENDS = ("bos", "eos")
# Of these classes, transformers before 5 took the tokens at both ends from tokenizer_config.json alone.
_ENDED_CLASSES = ("LlamaTokenizer", "GemmaTokenizer")


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


def declared_tokens(folder: Path, config: Mapping[str, Any]) -> dict[int, AddedToken]:
    """Id -> token beside the vocabulary: added_tokens_decoder of tokenizer_config.json, else added_tokens.json."""
    decoder = config.get("added_tokens_decoder")
    extra = config.get("additional_special_tokens") or ()
    named = (token["content"] if isinstance(token, dict) else token for token in extra)
    special = {*config["special_tokens"].values(), *named}
    try:
        if decoder is not None:
            return {int(token_id): added_token(token) for token_id, token in decoder.items()}
        return {
            int(token_id): AddedToken(content, normalized=content not in special, special=content in special)
            for content, token_id in read_json(folder, "added_tokens.json", required=False).items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: added tokens of tokenizer_config.json or added_tokens.json: {error!r}"
        ) from None


def add_ends(tokenizer: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """Honour `add_bos_token`, `add_eos_token` of tokenizer_config.json where tokenizer.json itself adds no token.

    gte-Qwen2 depends on it. Of _ENDED_CLASSES, EOS is added beside BOS too, on which e5-mistral depends. The template
    is that of transformers' update_post_processor.
    """
    special = config["special_tokens"]
    asked = {end: config.get(f"add_{end}_token") for end in _ENDS}
    own = tokenizer.post_processor
    if tokenizer.num_special_tokens_to_add(False):
        eos_id = tokenizer.token_to_id(special.get("eos", ""))
        is_ended = not asked["eos"] or tokenizer.encode("").ids[-1:] == [eos_id]
        if is_ended or config["tokenizer_class"] not in _ENDED_CLASSES:
            return
        asked["bos"], own = asked["bos"] is not False, None
    bos, eos = ([special[end]] if asked[end] is True and end in special else [] for end in _ENDS)
    ids = {token: tokenizer.token_to_id(token) for token in (*bos, *eos)}
    if not ids or None in ids.values():
        return
    single = [*bos, "$A", *eos]
    template = processors.TemplateProcessing(
        single=single,
        pair=[*single, *(f"{token}:1" for token in bos), "$B:1", *(f"{token}:1" for token in eos)],
        special_tokens=list(ids.items()),
    )
    tokenizer.post_processor = template if own is None else processors.Sequence([own, template])


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
