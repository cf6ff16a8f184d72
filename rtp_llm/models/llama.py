"""Llama, EuroBERT, NVIDIA's Llama that looks both ways, and Mistral.

Equal transformers' LlamaModel and MistralModel, causal or, where config.json has `is_causal` false, bidirectional; and
EuroBertModel.
"""

from collections.abc import Mapping
from typing import Any

from rtp_llm.errors import CheckpointError
from rtp_llm.models.decoder import Decoder
from rtp_llm.models.decoder_config import SLIDING, DecoderConfig, integer, layer_types, read, window


class Llama(Decoder):
    """No bias unless `attention_bias` and `mlp_bias` ask for it."""

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> DecoderConfig:
        bias = bool(hf.get("attention_bias", False))
        return read(
            hf,
            max_positions=2048,
            causal=bool(hf.get("is_causal", True)),
            qkv_bias=bias,
            out_bias=bias,
            mlp_bias=bool(hf.get("mlp_bias", False)),
        )


class EuroBert(Llama):
    """Llama that looks both ways."""

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> DecoderConfig:
        if hf.get("is_causal"):
            raise CheckpointError("config.json: is_causal true; of EuroBERT only false is supported")
        defaults = {"max_position_embeddings": 8192, "rms_norm_eps": 1e-5}
        return super().read_config({**defaults, **hf, "is_causal": False})


class LlamaBidirectional(Llama):
    """NVIDIA's llama_bidirec: Llama that looks both ways, whatever config.json says."""

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> DecoderConfig:
        return super().read_config({**hf, "is_causal": False})


class Mistral(Decoder):
    """No bias; where there is a sliding window, every layer has it."""

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> DecoderConfig:
        causal = bool(hf.get("is_causal", True))
        windows = _windows(hf, causal)
        return read({"num_key_value_heads": 8, **hf}, max_positions=131072, causal=causal, windows=windows)


def _windows(hf: Mapping[str, Any], causal: bool) -> tuple[int | None, ...]:
    num_layers = integer(hf, "num_hidden_layers")
    if hf.get("sliding_window", 4096) is None:
        return (None,) * num_layers
    if {*layer_types(hf, [SLIDING] * num_layers)} != {SLIDING}:
        raise CheckpointError(
            f"config.json: layer_types {hf['layer_types']}; the sliding_window of a Mistral is every layer's"
        )
    return (window(integer(hf, "sliding_window", 4096), causal),) * num_layers
