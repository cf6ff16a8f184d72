"""CLIP's tower for texts (Radford et al. 2021): pre-norm layers, of which a token sees those before it only.

Equals transformers' CLIPTextModel; with `text_projection`, as CLIPModel and CLIPTextModelWithProjection have it, that
follows the last norm.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from rtp_llm.architectures import architecture_of
from rtp_llm.checkpoint import Parameter, TensorSource, Weights
from rtp_llm.core import Batch, FloatArray, QuantizedWeight
from rtp_llm.models import OnKeys, OnLayer
from rtp_llm.models.bert import BertConfig, EncoderLayer, LayerNames, layer_parts
from rtp_llm.models.prenorm_bert import PreNormBert
from rtp_llm.ops import Norm, Ops, Tensor

# transformers' CLIPTextConfig: real checkpoints leave most keys out.
_DEFAULTS = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    "projection_dim": 512,
}  # fmt: skip
# quick_gelu(x) = x * sigmoid(1.702 * x) = silu(1.702 * x) / 1.702.
_QUICK_GELU, _QUICK_GELU_SCALE = "quick_gelu", np.float32(1.702)
_PROJECTION = "text_projection.weight"


@dataclass(frozen=True, kw_only=True)
class ClipConfig(BertConfig):
    """The keys of a text_config that matter.

    projection_dim    columns of what the model gives; 0: nothing projects it
    activation_scale  what goes into the activation is multiplied by it, and what comes out divided
    """

    projection_dim: int
    activation_scale: np.float32

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], names: Mapping[str, str] | None = None) -> "ClipConfig":
        """By default as transformers' CLIPTextConfig; CheckpointError as `BertConfig.from_hf`."""
        hf = {**_DEFAULTS, **hf, "is_decoder": True, "type_vocab_size": 0}
        is_quick = hf["hidden_act"] == _QUICK_GELU
        base = BertConfig.from_hf({**hf, "hidden_act": "silu"} if is_quick else hf, names)
        return cls(
            **asdict(base),
            projection_dim=hf["projection_dim"] or 0,
            activation_scale=_QUICK_GELU_SCALE if is_quick else np.float32(1),
        )


class ClipText(PreNormBert):
    """The tower up to its last hidden states, projected where the checkpoint projects them."""

    config: ClipConfig
    prefix = "text_model."
    names = LayerNames(
        "encoder.layers.{}.",
        {
            "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "out": ("self_attn.out_proj",),
            "up": ("mlp.fc1",),
            "down": ("mlp.fc2",),
        },
        {"attention_norm": "layer_norm1", "mlp_norm": "layer_norm2"},
    )
    final_norm_name = "final_layer_norm"
    renames = ((r"^embeddings\.token_embedding\.", "embeddings.word_embeddings."),
               (r"^embeddings\.position_embedding\.", "embeddings.position_embeddings."))  # fmt: skip
    ignored = (
        r"^vision_model\.", r"^visual_projection\.", r"^logit_scale$", r"^embeddings\.position_ids$",
        rf"^{_PROJECTION}$",
    )  # fmt: skip

    def __init__(self, config: ClipConfig, weights: Weights, ops: Ops) -> None:
        super().__init__(config, weights, ops)
        self.projection = None
        if "projection" in weights:
            self.projection = ops.matrix(weights.matrix("projection"))
            self.hidden_size = config.projection_dim

    @classmethod
    def load(cls, hf: Mapping[str, Any], source: TensorSource, ops: Ops) -> "ClipText":
        """As BERT; a CLIPTextModel has no projection, and where config.json names no class the tensors say."""
        named = architecture_of(hf)
        is_projected = named != "CLIPTextModel" if named else _PROJECTION in source.tensors
        model = super().load(hf if is_projected else {**hf, "projection_dim": 0}, source, ops)
        assert isinstance(model, ClipText)
        return model

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> ClipConfig:
        """As `ClipConfig.from_hf`."""
        return ClipConfig.from_hf(hf)

    @classmethod
    def parameters(cls, config: BertConfig) -> dict[str, Parameter]:
        """Those of BERT with pre-norm, and the projection."""
        needed = super().parameters(config)
        assert isinstance(config, ClipConfig)
        if config.projection_dim:
            needed["projection"] = Parameter((_PROJECTION,), (config.projection_dim, config.hidden_size))
        return needed

    def _load_layer(self, weights: Weights, prefix: str, ops: Ops) -> EncoderLayer:
        """The activation's scale is in the norm before the MLP and the bias of `up`, and is taken out of `down`."""
        scale = self.config.activation_scale
        if scale == 1:
            return super()._load_layer(weights, prefix, ops)
        qkv, qkv_bias = self._read_qkv(weights, prefix)
        eps = self.config.layer_norm_eps
        mlp_norm = [ops.vector(weights[f"{prefix}mlp_norm.{part}"] * scale) for part in ("weight", "bias")]
        return EncoderLayer(
            qkv=ops.matrix(qkv),
            qkv_bias=ops.vector(qkv_bias),
            **layer_parts(weights, prefix, eps, ops, ("out",), ("attention_norm",)),
            mlp_norm=Norm(mlp_norm[0], mlp_norm[1], eps),
            up=ops.matrix(weights.matrix(f"{prefix}up.weight")),
            up_bias=ops.vector(weights[f"{prefix}up.bias"] * scale),
            down=ops.matrix(_divided(weights.matrix(f"{prefix}down.weight"), scale)),
            down_bias=ops.vector(weights[f"{prefix}down.bias"]),
        )

    def __call__(
        self, ops: Ops, batch: Batch, on_layer: OnLayer | None = None, on_keys: OnKeys | None = None
    ) -> Tensor:
        """Packed batch -> [T, projection_dim or hidden_size], or of the wanted rows; `on_keys` is not called."""
        hidden_states = super().__call__(ops, batch, on_layer, on_keys)
        return hidden_states if self.projection is None else ops.linear(hidden_states, self.projection)


def _divided(weight: FloatArray | QuantizedWeight, scale: np.float32) -> FloatArray | QuantizedWeight:
    if isinstance(weight, QuantizedWeight):
        return replace(weight, scales=np.asarray(weight.scales / scale, np.float32))
    return np.asarray(weight / scale, np.float32)
