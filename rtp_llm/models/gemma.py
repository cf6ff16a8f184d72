"""Gemma, Gemma 2, Gemma 3's text model (gemma3_text) and EmbeddingGemma.

Equal transformers' GemmaModel, Gemma2Model and Gemma3TextModel, causal or, of Gemma 3 where config.json has
`use_bidirectional_attention`, bidirectional.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rtp_llm.config_files import activation
from rtp_llm.errors import CheckpointError
from rtp_llm.models.decoder import Decoder
from rtp_llm.models.decoder_config import FULL, SLIDING, DecoderConfig, integer, is_causal, layer_types, read
from rtp_llm.models.rope import Rope

_HEAD_DIM, _MAX_POSITIONS = 256, 131072
# Of each kind of layer: rope_theta where config.json has none, and the key of older files that has it.
_THETAS = {FULL: (1_000_000.0, "rope_theta"), SLIDING: (10_000.0, "rope_local_base_freq")}
_ACTIVATION = "gelu_pytorch_tanh"
_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")


class Gemma(Decoder):
    """Scaled embeddings, and norms whose weights lack one."""

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> DecoderConfig:
        return _read_causal(hf, _ACTIVATION if hf.get("hidden_act") in (None, "gelu") else str(hf["hidden_act"]))


class Gemma2(Decoder):
    """Norms before and after attention and MLP; scores have a cap; every other layer, from the first on, a window."""

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> DecoderConfig:
        cap, layers = hf.get("attn_logit_softcapping", 50.0), integer(hf, "num_hidden_layers")
        kinds = layer_types(hf, [FULL if i % 2 else SLIDING for i in range(layers)])
        size = _window_size(hf, kinds)
        return _read_causal(
            {"num_key_value_heads": 4, **hf},
            hf.get("hidden_activation") or _ACTIVATION,
            windows=tuple(size if kind == SLIDING else None for kind in kinds),
            attention_scale=hf.get("query_pre_attn_scalar", 256) ** -0.5,
            softcap=cap,
            output_norms=True,
        )


def _read_causal(hf: Mapping[str, Any], act: str, **own: Any) -> DecoderConfig:
    """What Gemma and Gemma 2 have in common; CheckpointError for one that looks both ways."""
    for key, served in (("use_bidirectional_attention", False), ("is_causal", True)):
        if hf.get(key) not in (None, served):
            raise CheckpointError(f"config.json: {key} {hf[key]!r}; of Gemma and Gemma 2 only {served!r} is supported")
    is_causal(hf)  # which code of the checkpoint's own may change
    bias = bool(hf.get("attention_bias", False))
    return read(
        {"hidden_act": act, **{key: value for key, value in hf.items() if key != "hidden_act"}},
        max_positions=8192,
        head_dim=_HEAD_DIM,
        qkv_bias=bias,
        out_bias=bias,
        embedding_scale=integer(hf, "hidden_size") ** 0.5,
        norm_offset=1.0,
        **own,
    )


class Gemma3(Decoder):
    """Norms before and after attention and MLP; layers with a window have a rope of their own; scaled embeddings."""

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> DecoderConfig:
        _check(hf)
        causal, bias = not hf.get("use_bidirectional_attention"), bool(hf.get("attention_bias", False))
        return read(
            {"num_key_value_heads": 4, **hf},
            max_positions=_MAX_POSITIONS,
            head_dim=_HEAD_DIM,
            activation=activation(hf, "hidden_activation", _ACTIVATION),
            rope=_rope(hf, FULL),
            local_rope=_rope(hf, SLIDING),
            windows=_windows(hf, causal),
            attention_scale=hf.get("query_pre_attn_scalar", 256) ** -0.5,
            causal=causal,
            qkv_bias=bias,
            out_bias=bias,
            head_norms=True,
            embedding_scale=integer(hf, "hidden_size") ** 0.5,
            norm_offset=1.0,
            output_norms=True,
        )


def _check(hf: Mapping[str, Any]) -> None:
    """CheckpointError for what other models of the family have."""
    for key in _CAPS:
        if hf.get(key) is not None:
            raise CheckpointError(f"config.json: {key} {hf[key]!r}; only null is supported")
    if hf.get("is_causal") is False:
        raise CheckpointError("config.json: is_causal false; a Gemma has use_bidirectional_attention for that")
    if hf.get("use_bidirectional_attention") is None:
        is_causal(hf)  # which code of the checkpoint's own may change


def _window_size(hf: Mapping[str, Any], kinds: Sequence[str]) -> int:
    """`sliding_window`, which must be there where a layer has one."""
    if SLIDING in kinds and hf.get("sliding_window", 4096) is None:
        raise CheckpointError(f"config.json: sliding_window null; layers of {SLIDING} need one")
    return integer(hf, "sliding_window", 4096)


def _windows(hf: Mapping[str, Any], causal: bool) -> tuple[int | None, ...]:
    pattern = integer(hf, "sliding_window_pattern", 6)
    kinds = layer_types(hf, [SLIDING if (i + 1) % pattern else FULL for i in range(integer(hf, "num_hidden_layers"))])
    size = _window_size(hf, kinds)
    # NOTE: of a window that looks both ways, transformers takes half to either side; it ends before `size // 2 + 1`.
    window = size if causal else size // 2 + 1
    return tuple(window if kind == SLIDING else None for kind in kinds)


def _rope(hf: Mapping[str, Any], kind: str) -> Rope:
    """Of one kind of layer; `rope_scaling` of older files is that of the layers without a window."""
    by_kind = hf.get("rope_parameters") or {}
    if not {*by_kind} <= {*_THETAS} or not all(isinstance(own, dict) for own in by_kind.values() if own is not None):
        raise CheckpointError(f"config.json: rope_parameters {by_kind}; {FULL} and {SLIDING} have their own in a Gemma")
    default, key = _THETAS[kind]
    scaling = hf.get("rope_scaling") if kind == FULL else None
    if scaling and "rope_type" not in scaling and scaling.get("type", "default") != "default":
        raise CheckpointError(
            f"config.json: rope_scaling type {scaling['type']!r}; transformers 5 does not read this word of a Gemma's, "
            "transformers 4 did: write rope_type where it is meant, else remove it"
        )
    parameters = {"rope_theta": hf.get(key) or default, **(by_kind.get(kind) or {}), **(scaling or {})}
    max_positions = integer(hf, "max_position_embeddings", _MAX_POSITIONS)
    return Rope.from_hf({"rope_parameters": parameters}, integer(hf, "head_dim", _HEAD_DIM), max_positions)
