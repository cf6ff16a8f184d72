"""The first DeBERTa (He et al. 2021): DeBERTa-v2 with one projection for queries, keys and values, head by head.

Equals transformers' DebertaModel. Each distance has vectors of its own, which weights of their own project.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rtp_llm.checkpoint import Parameter, Weights
from rtp_llm.core import FloatArray, QuantizedWeight
from rtp_llm.errors import CheckpointError
from rtp_llm.models.bert import NAMES, BertConfig, LayerNames
from rtp_llm.models.deberta import Deberta, DebertaConfig

# What its attention has not, whatever config.json says.
_FIXED = {"position_buckets": 0, "norm_rel_ebd": None, "conv_kernel_size": 0, "attention_head_size": None}


class DebertaV1(Deberta):
    """The encoder up to its last hidden states."""

    names = LayerNames(
        NAMES.prefix,
        {"qkv": ("attention.self.in_proj",), **{name: NAMES.linears[name] for name in ("out", "up", "down")}},
        NAMES.norms,
    )
    ignored = (*Deberta.ignored, r"attention\.self\.pos_(q_)?proj\.")

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> DebertaConfig:
        """What config.json says; CheckpointError as `DebertaConfig.from_hf`, and where heads are mixed."""
        if hf.get("talking_head"):
            raise CheckpointError("config.json: talking_head is true; a DeBERTa is served whose heads are not mixed")
        return DebertaConfig.from_hf({**hf, **_FIXED, "share_att_key": False})

    @classmethod
    def parameters(cls, config: BertConfig) -> dict[str, Parameter]:
        """Those of DeBERTa-v2, with biases of queries and values alone."""
        needed, shape = super().parameters(config), (config.hidden_size,)
        for i in range(config.num_hidden_layers):
            ours, theirs = f"layers.{i}.", f"{cls.names.prefix.format(i)}attention.self."
            del needed[f"{ours}qkv.bias"]
            for part in "qv":
                needed[f"{ours}{part}_bias"] = Parameter((f"{theirs}{part}_bias",), shape)
        return needed

    @classmethod
    def distance_projection(cls, config: DebertaConfig, kind: str) -> tuple[str, bool]:
        """Of distances that are keys without a bias."""
        return ("pos_proj", False) if kind == "c2p" else ("pos_q_proj", True)

    def _read_qkv(self, weights: Weights, prefix: str) -> tuple[FloatArray | QuantizedWeight, FloatArray]:
        """With the heads' queries together, and so their keys and values: a head's three stand side by side there."""
        config, weight = self.config, weights.matrix(f"{prefix}qkv.weight")
        rows = np.arange(3 * config.hidden_size).reshape(config.num_attention_heads, 3, config.head_dim)
        order = rows.transpose(1, 0, 2).ravel()
        queries, values = weights[f"{prefix}q_bias"], weights[f"{prefix}v_bias"]
        bias = np.concatenate([queries, np.zeros_like(queries), values])
        if isinstance(weight, QuantizedWeight):
            return QuantizedWeight(weight.values[order], weight.scales[order]), bias
        return weight[order], bias
