"""Jina Embeddings v5 for texts (Jina AI 2026): a Qwen3, or an EuroBERT, with an adapter for each of four tasks.

Equals transformers' Qwen3Model and EuroBertModel with one adapter, which each sequence must choose: its authors' code
has no vectors without one. With the key `lora_task` over config.json that one is added to the weights.
"""

from collections.abc import Mapping
from typing import Any

from rtp_llm.checkpoint import AdapterFolders, TensorSource
from rtp_llm.models.decoder import Decoder
from rtp_llm.models.decoder_config import DecoderConfig
from rtp_llm.models.llama import EuroBert
from rtp_llm.models.qwen import Qwen3
from rtp_llm.ops import Ops


class JinaV5(Decoder):
    """The small one is a Qwen3; the nano one an EuroBERT, which config.json tells by `is_decoder` false."""

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> DecoderConfig:
        backbone, own = _backbone(hf)
        return backbone.read_config(own)

    @classmethod
    def load(cls, hf: Mapping[str, Any], source: TensorSource, ops: Ops) -> Decoder:
        backbone, own = _backbone(hf)
        model = backbone.load(own, source, ops)
        model.merged_adapter = hf.get("lora_task") or ""
        model.needs_adapter = isinstance(source, AdapterFolders) and not model.merged_adapter
        return model


def _backbone(hf: Mapping[str, Any]) -> tuple[type[Decoder], Mapping[str, Any]]:
    """Its class, and config.json as that is to read it."""
    return (EuroBert, hf) if hf.get("is_decoder") is False else (Qwen3, {**hf, "is_causal": True})
