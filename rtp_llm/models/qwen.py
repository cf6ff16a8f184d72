"""Qwen2, Qwen3 and Qwen3-VL for texts, and what Perplexity, Voyage AI and Jina AI have made of Qwen3.

Equal transformers' Qwen2Model, Qwen3Model and Qwen3VLTextModel, causal or, where config.json has `is_causal` false,
bidirectional; and the PPLXQwen3Model and VoyageQwen3BidirectionalEmbedModel of their authors' own code.
"""

from collections.abc import Mapping
from typing import Any

from rtp_llm.checkpoint import Parameter, TensorSource, Weights, bind
from rtp_llm.core import Batch
from rtp_llm.errors import CheckpointError
from rtp_llm.models import OnKeys, OnLayer
from rtp_llm.models.decoder import IGNORED, Decoder, parameters
from rtp_llm.models.decoder_config import FULL, SLIDING, DecoderConfig, integer, is_causal, layer_types, read, window
from rtp_llm.ops import Ops, Tensor

_MAX_POSITIONS = 32768
_VL_THETA = 500_000.0
_PROJECTION = "projection"
_CONTEXTUAL = "ContextualModel"


class Qwen2(Decoder):
    """Queries, keys and values have a bias."""

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> DecoderConfig:
        causal = is_causal(hf)
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
        causal, bias = is_causal(hf), bool(hf.get("attention_bias", False))
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


class Qwen3VL(Qwen3):
    """Qwen3-VL, of which texts are read: a Qwen3 among its tower.

    A text's tokens have the same position in time, height and width, by which its rope in three sections is a plain
    one, and images alone add to the hidden states between layers (DeepStack).
    """

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> DecoderConfig:
        """As Qwen3's, with the theta that transformers has for this one where none is said."""
        scaling = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
        return super().read_config({**hf, "rope_theta": hf.get("rope_theta") or scaling.get("rope_theta") or _VL_THETA})

    @classmethod
    def load(cls, hf: Mapping[str, Any], source: TensorSource, ops: Ops) -> Decoder:
        """As Decoder, without the tower."""
        config = cls.read_config(hf)
        prefixes, ignored = ("model.", "language_model."), (*IGNORED, r"^visual\.")
        return cls(config, bind(source, parameters(config), prefixes=prefixes, ignore=ignored), ops)


class PplxQwen3(Qwen3):
    """pplx-embed-v1: Qwen3 that looks both ways, whatever config.json says."""

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> DecoderConfig:
        code = str((hf.get("auto_map") or {}).get("AutoModel"))
        if code.endswith(_CONTEXTUAL):
            raise CheckpointError(
                f"config.json: auto_map has AutoModel {code!r}, as pplx-embed-context-v1: the chunks of a document are "
                "read as one text, and each gets a vector, which is not served. Take pplx-embed-v1; or say "
                "--json_model_override_args '{\"auto_map\": {}}', and each text is a document of one chunk"
            )
        return super().read_config({**hf, "is_causal": False})


class VoyageQwen3(PplxQwen3):
    """voyage-4-nano: Qwen3 that looks both ways; a linear layer of `num_labels` rows stands after the last norm."""

    def __init__(self, config: DecoderConfig, weights: Weights, ops: Ops) -> None:
        super().__init__(config, weights, ops)
        self.projection = ops.matrix(weights.matrix(_PROJECTION))

    @classmethod
    def load(cls, hf: Mapping[str, Any], source: TensorSource, ops: Ops) -> Decoder:
        """Strictly, with the linear layer."""
        config, rows = cls.read_config(hf), integer(hf, "num_labels")
        needed = {**parameters(config), _PROJECTION: Parameter(("linear.weight",), (rows, config.hidden_size))}
        model = cls(config, bind(source, needed, prefixes=("model.",), ignore=IGNORED), ops)
        model.hidden_size = rows
        return model

    def __call__(
        self, ops: Ops, batch: Batch, on_layer: OnLayer | None = None, on_keys: OnKeys | None = None
    ) -> Tensor:
        """Packed batch -> [T, num_labels], or of the wanted rows."""
        return ops.linear(super().__call__(ops, batch, on_layer, on_keys), self.projection)


class JinaReranker(Qwen3):
    """jina-reranker-v3: Qwen3, whose authors' code puts a projector after it, which belongs to the task."""

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> DecoderConfig:
        config = super().read_config({**hf, "is_causal": True})
        if any(config.windows):
            raise CheckpointError(
                "config.json: layers with a sliding window, as jina-reranker-v3.5 has, which is asked by another "
                "prompt; jina-reranker-v3 is served"
            )
        return config

    @classmethod
    def load(cls, hf: Mapping[str, Any], source: TensorSource, ops: Ops) -> Decoder:
        """As Decoder, without the projector."""
        config = cls.read_config(hf)
        ignored = (*IGNORED, r"^projector\.")
        return cls(config, bind(source, parameters(config), prefixes=("model.",), ignore=ignored), ops)


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
