"""Llama, EuroBERT, NVIDIA's Llama and Ministral 3 that look both ways, Mistral and Ministral 3.

Equal transformers' LlamaModel, MistralModel and Ministral3Model, causal or, where config.json has `is_causal` false,
bidirectional; and EuroBertModel.
"""

from collections.abc import Mapping
from typing import Any

from rtp_llm.checkpoint import Weights
from rtp_llm.errors import CheckpointError
from rtp_llm.models.decoder import Decoder
from rtp_llm.models.decoder_config import SLIDING, DecoderConfig, integer, is_causal, layer_types, read, window
from rtp_llm.ops import Ops

# Of Ministral 3, where config.json has none.
_YARN = {
    "rope_type": "yarn", "rope_theta": 1_000_000.0, "factor": 16.0, "original_max_position_embeddings": 16384,
    "beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0,
}  # fmt: skip


class Llama(Decoder):
    """No bias unless `attention_bias` and `mlp_bias` ask for it."""

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> DecoderConfig:
        bias = bool(hf.get("attention_bias", False))
        return read(
            hf,
            max_positions=2048,
            causal=is_causal(hf),
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
        causal = is_causal(hf)
        windows = _windows(hf, causal)
        return read({"num_key_value_heads": 8, **hf}, max_positions=131072, causal=causal, windows=windows)


class Ministral3(Decoder):
    """YaRN, and queries that grow with their place past `original_max_position_embeddings`.

    That growth is not computed: no text is longer.
    """

    learnt_positions = True

    def __init__(self, config: DecoderConfig, weights: Weights, ops: Ops) -> None:
        super().__init__(config, weights, ops)
        self.max_positions = min(config.rope.original_positions, config.rope.max_positions)

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> DecoderConfig:
        if hf.get("sliding_window") is not None:
            raise CheckpointError(
                f"config.json: sliding_window {hf['sliding_window']}; of Ministral 3 only null is supported"
            )
        own = {"num_key_value_heads": 8, "rope_parameters": _YARN, **hf}
        return read(own, max_positions=262144, head_dim=128, eps=1e-5, causal=is_causal(hf))


class Ministral3Bidirectional(Ministral3):
    """NVIDIA's ministral3_bidirec, which looks both ways, whatever config.json says."""

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> DecoderConfig:
        return super().read_config({**hf, "is_causal": False})


def _windows(hf: Mapping[str, Any], causal: bool) -> tuple[int | None, ...]:
    num_layers = integer(hf, "num_hidden_layers")
    if hf.get("sliding_window", 4096) is None:
        return (None,) * num_layers
    if {*layer_types(hf, [SLIDING] * num_layers)} != {SLIDING}:
        raise CheckpointError(
            f"config.json: layer_types {hf['layer_types']}; the sliding_window of a Mistral is every layer's"
        )
    return (window(integer(hf, "sliding_window", 4096), causal),) * num_layers
