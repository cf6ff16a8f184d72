"""The sizes of an encoder that config.json gives by BERT's keys."""

from collections.abc import Mapping
from typing import Any

from rtp_llm.errors import CheckpointError

# Of transformers' configurations, whatever else they call these.
_COMMON = ("hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim")
_NEEDED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def read_sizes(hf: Mapping[str, Any], names: Mapping[str, str] | None = None) -> dict[str, int]:
    """Returns them by BERT's keys; CheckpointError where one is missing, or where heads do not divide hidden_size.

    Also where `is_causal` is true, by which transformers 5 lets any encoder look back alone.

    names  BERT's key -> the one that a message has instead
    """
    if hf.get("is_causal"):
        raise CheckpointError("config.json: is_causal true; an encoder is served that looks both ways")
    missing = next((key for key in _NEEDED if key not in hf), None)
    if missing is not None:
        raise CheckpointError(f"config.json: {(names or {}).get(missing, missing)} is missing")
    hidden, num_heads = hf["hidden_size"], hf["num_attention_heads"]
    if hidden % num_heads:
        raise CheckpointError(f"config.json: hidden_size {hidden} is not a multiple of num_attention_heads {num_heads}")
    return {key: hf[key] for key in _NEEDED}


def check_names(hf: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """CheckpointError where config.json has a size by two names, of which transformers takes the other than we do.

    names  BERT's key -> the one that this architecture has instead
    """
    for common in _COMMON:
        own = names.get(common, common)
        if None not in (hf.get(own), hf.get(common)) and hf[own] != hf[common]:
            raise CheckpointError(f"config.json: {own} is {hf[own]!r}, but {common} is {hf[common]!r}; remove one")
