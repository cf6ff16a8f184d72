"""DistilBERT (Sanh et al. 2019): BERT's layers, six of them and by other names, without token types.

Equals transformers' DistilBertModel.
"""

from collections.abc import Mapping
from typing import Any

from rtp_llm.models.bert import IGNORED, Bert, BertConfig, LayerNames

# BERT's key of config.json -> DistilBERT's. `sinusoidal_pos_embds` says how the table of positions once began; it is
# read from the checkpoint as any other.
_KEYS = {
    "hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim", "hidden_act": "activation",
}  # fmt: skip


class DistilBert(Bert):
    """The encoder up to its last hidden states."""

    prefix = "distilbert."
    names = LayerNames(
        "transformer.layer.{}.",
        {
            "qkv": ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
            "out": ("attention.out_lin",),
            "up": ("ffn.lin1",),
            "down": ("ffn.lin2",),
        },
        {"attention_norm": "sa_layer_norm", "mlp_norm": "output_layer_norm"},
    )
    ignored = (*IGNORED, r"^pre_classifier\.", r"^vocab_(transform|layer_norm|projector)\.")

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> BertConfig:
        """By DistilBERT's keys; CheckpointError as `BertConfig.from_hf`."""
        return BertConfig.from_hf({**hf, "type_vocab_size": 0, "layer_norm_eps": 1e-12, "is_decoder": False}, _KEYS)
