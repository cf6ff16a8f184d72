"""MiniCPM (Hu et al. 2024) up to one of its layers, as bge-reranker-v2-minicpm-layerwise is read.

Equals FlagEmbedding's LayerWiseMiniCPMModel, whose `cutoff_layers` is here a key of config.json, or over it: so many
layers are computed, and then the final norm; without it, all.

What a layer adds is scaled there, by scale_depth / sqrt(num_hidden_layers). Here all that it is added to is divided by
that number instead: what a norm makes of it is the same, with an eps divided by its square.
"""

import logging
from collections.abc import Mapping
from typing import Any

from rtp_llm.checkpoint import TensorSource, bind
from rtp_llm.errors import CheckpointError
from rtp_llm.models.decoder import IGNORED, Decoder, parameters
from rtp_llm.models.decoder_config import DecoderConfig, integer, read
from rtp_llm.ops import Ops

logger = logging.getLogger(__name__)


class MiniCpm(Decoder):
    """Layers past the last that is computed are not read. What goes into a layer is divided by the scale of layers."""

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> DecoderConfig:
        if hf.get("is_causal") is False:
            raise CheckpointError("config.json: is_causal false; of MiniCPM only true is supported")
        num_layers, bias = integer(hf, "num_hidden_layers"), bool(hf.get("attention_bias", False))
        scale = hf.get("scale_depth", 1) / num_layers**0.5
        return read(
            {**hf, "num_hidden_layers": cutoff_layer(hf)},
            max_positions=2048,
            rms_norm_eps=hf.get("rms_norm_eps", 1e-6) / scale**2,
            embedding_scale=hf.get("scale_emb", 1) / scale,
            qkv_bias=bias,
            out_bias=bias,
        )

    @classmethod
    def load(cls, hf: Mapping[str, Any], source: TensorSource, ops: Ops) -> Decoder:
        """As Decoder, strictly up to the last layer that is computed."""
        config = cls.read_config(hf)
        unread = range(config.num_hidden_layers, integer(hf, "num_hidden_layers"))
        if unread:
            logger.info("layers up to %d of %d are computed", unread.start, unread.stop)
        ignored = (*IGNORED, *(rf"^layers\.{number}\." for number in unread))
        return cls(config, bind(source, parameters(config), prefixes=("model.",), ignore=ignored), ops)


def cutoff_layer(hf: Mapping[str, Any]) -> int:
    """After how many layers the model ends: `cutoff_layers`, one number or a list of one; all where it is not there.

    CheckpointError for a number that no head of the checkpoint is for.
    """
    num_layers, asked = integer(hf, "num_hidden_layers"), hf.get("cutoff_layers")
    numbers = asked if isinstance(asked, list) else [num_layers if asked is None else asked]
    least = integer(hf, "start_layer")
    if len(numbers) != 1 or type(numbers[0]) is not int or not least <= numbers[0] <= num_layers:
        raise CheckpointError(
            f"config.json: cutoff_layers {asked!r}; one number from {least} to {num_layers} is served"
        )
    number: int = numbers[0]
    return number
