"""BERT with its norms before attention and MLP, and one after the last layer instead of one on the embeddings.

Equal transformers' MegatronBertModel (Shoeybi et al. 2019) and XLMRobertaXLModel (Goyal et al. 2021).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from rtp_llm.checkpoint import Parameter, Weights
from rtp_llm.core import Batch, Int32Array
from rtp_llm.models import OnKeys, OnLayer
from rtp_llm.models.bert import NAMES, Bert, BertConfig, EncoderLayer, Roberta
from rtp_llm.ops import Ops, Tensor, layer_norm


class PreNormBert(Bert):
    """`final_norm_name` is where the checkpoint has the last norm."""

    takes_adapters = False
    gpu_dtype = "bf16"  # what layers add up is normed at the end alone
    final_norm_name: ClassVar[str]

    def __init__(self, config: BertConfig, weights: Weights, ops: Ops) -> None:
        super().__init__(config, weights, ops)
        self.final_norm = layer_norm(ops, weights, "final_norm", config.layer_norm_eps)

    @classmethod
    def parameters(cls, config: BertConfig) -> dict[str, Parameter]:
        """Those of BERT, with the last norm instead of the first."""
        needed = super().parameters(config)
        for part in ("weight", "bias"):
            del needed[f"embedding_norm.{part}"]
            needed[f"final_norm.{part}"] = Parameter((f"{cls.final_norm_name}.{part}",), (config.hidden_size,))
        return needed

    def __call__(
        self, ops: Ops, batch: Batch, on_layer: OnLayer | None = None, on_keys: OnKeys | None = None
    ) -> Tensor:
        """Packed batch -> hidden_states [T, hidden_size], or of the wanted rows; `on_keys` is not called."""
        return ops.norm(super().__call__(ops, batch, on_layer, on_keys), self.final_norm)

    def _run_layer(
        self, ops: Ops, layer: EncoderLayer, hidden_states: Tensor, batch: Batch, wanted: Int32Array | None
    ) -> Tensor:
        context = self._attend(ops, layer, ops.norm(hidden_states, layer.attention_norm), batch, wanted)
        hidden_states = hidden_states if wanted is None else ops.rows(hidden_states, wanted)
        attended = ops.linear(context, layer.out, layer.out_bias, residual=hidden_states)
        normed = ops.norm(attended, layer.mlp_norm)
        wide = ops.linear(normed, layer.up, layer.up_bias, activation=self.config.activation)
        return ops.linear(wide, layer.down, layer.down_bias, residual=attended)


class MegatronBert(PreNormBert):
    """Megatron-LM's BERT."""

    names = replace(NAMES, norms={"attention_norm": "attention.ln", "mlp_norm": "ln"})
    final_norm_name = "encoder.ln"


class XlmRobertaXl(PreNormBert, Roberta):
    """XLM-RoBERTa-XL and -XXL."""

    names = replace(NAMES, norms={"attention_norm": "attention.self_attn_layer_norm", "mlp_norm": "LayerNorm"})
    final_norm_name = "encoder.LayerNorm"

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> BertConfig:
        """By default as transformers' XLMRobertaXLConfig."""
        return super().read_config({"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5, **hf})
