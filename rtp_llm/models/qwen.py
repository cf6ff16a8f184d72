"""Qwen2 and Qwen3.

Equal transformers' Qwen2Model and Qwen3Model, causal or, where config.json has `is_causal` false, bidirectional.
"""

from collections.abc import Mapping
from typing import Any

from rtp_llm.errors import CheckpointError
from rtp_llm.models.decoder import Decoder
from rtp_llm.models.decoder_config import FULL, SLIDING, DecoderConfig, integer, layer_types, read, window

_MAX_POSITIONS = 32768


class Qwen2(Decoder):
    """Queries, keys and values have a bias."""

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> DecoderConfig:
        causal = bool(hf.get("is_causal", True))
        return read(hf, max_positions=_MAX_POSITIONS, causal=causal, windows=_windows(hf, causal), qkv_bias=True)


class Qwen2Embedding(Qwen2):
    """Qwen2 that looks both ways, whatever config.json says: gte-Qwen2 as the original's model type names it."""

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> DecoderConfig:
        return super().read_config({**hf, "is_causal": False})


class Qwen3(Decoder):
    """Each query and key head is normed; no bias unless `attention_bias` asks for it; head_dim stands alone."""

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> DecoderConfig:
        causal, bias = bool(hf.get("is_causal", True)), bool(hf.get("attention_bias", False))
        return read(
            hf,
            max_positions=_MAX_POSITIONS,
            head_dim=128,
            causal=causal,
            windows=_windows(hf, causal),
            qkv_bias=bias,
            out_bias=bias,
            head_norms=True,
        )


def _windows(hf: Mapping[str, Any], causal: bool) -> tuple[int | None, ...]:
    """The sliding window of each layer, as transformers' Qwen2Config chooses the layers."""
    num_layers = integer(hf, "num_hidden_layers")
    windowed = hf.get("use_sliding_window") and hf.get("sliding_window", 4096) is not None
    size = integer(hf, "sliding_window", 4096) if windowed else None
    first = 28 if hf.get("max_window_layers") is None else hf["max_window_layers"]
    kinds = layer_types(hf, [SLIDING if size is not None and i >= first else FULL for i in range(num_layers)])
    if size is None:
        if SLIDING in kinds:
            raise CheckpointError(f"config.json: layer_types has {SLIDING}, but use_sliding_window is not true")
        return (None,) * num_layers
    return tuple(window(size, causal) if kind == SLIDING else None for kind in kinds)
