"""MPNet (Song et al. 2020): RoBERTa without token types, its scores biased by the distance from query to key.

Equals transformers' MPNetModel.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rtp_llm.checkpoint import Parameter, Weights
from rtp_llm.errors import CheckpointError
from rtp_llm.models.bert import NAMES, BertConfig, LayerNames, Roberta
from rtp_llm.models.distance import distance_bias
from rtp_llm.ops import Ops

# What MPNetModel computes with, whatever config.json says.
_BUCKETS, _MAX_DISTANCE, _PADDING = 32, 128, 1


class MPNet(Roberta):
    """The encoder up to its last hidden states; all layers share one bias."""

    prefix = "mpnet."
    names = LayerNames(
        NAMES.prefix,
        {
            "qkv": ("attention.attn.q", "attention.attn.k", "attention.attn.v"),
            "out": ("attention.attn.o",),
            "up": NAMES.linears["up"],
            "down": NAMES.linears["down"],
        },
        {"attention_norm": "attention.LayerNorm", "mlp_norm": NAMES.norms["mlp_norm"]},
    )

    def __init__(self, config: BertConfig, weights: Weights, ops: Ops) -> None:
        super().__init__(config, weights, ops)
        self.distance_bias = ops.vector(distance_bias(weights["distance_bias"], _MAX_DISTANCE))

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> BertConfig:
        """As BERT's, positions counted from where MPNet's are; CheckpointError for buckets that it does not have."""
        buckets = hf.get("relative_attention_num_buckets", _BUCKETS)
        if buckets != _BUCKETS:
            raise CheckpointError(
                f"config.json: relative_attention_num_buckets {buckets}; MPNet computes with {_BUCKETS} of them"
            )
        config = BertConfig.from_hf({**hf, "type_vocab_size": 0, "is_decoder": False})
        return replace(config, pad_token_id=_PADDING)

    @classmethod
    def parameters(cls, config: BertConfig) -> dict[str, Parameter]:
        """Those of BERT, and a row of biases for each bucket."""
        bias = Parameter(("encoder.relative_attention_bias.weight",), (_BUCKETS, config.num_attention_heads))
        return {**super().parameters(config), "distance_bias": bias}
