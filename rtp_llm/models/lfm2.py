"""LFM2 (Liquid AI 2025): layers of gated short convolutions, and some of attention among them.

Equal transformers' Lfm2Model, and the Lfm2BidirectionalModel of LFM2.5's authors' own code, in which tokens see those
after them too and convolutions reach as far to either side.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rtp_llm.architectures import architecture_of
from rtp_llm.checkpoint import Parameter, TensorSource, Weights, bind
from rtp_llm.core import Batch
from rtp_llm.errors import CheckpointError
from rtp_llm.models import OnKeys, OnLayer, matrix_sources
from rtp_llm.models.decoder import IGNORED
from rtp_llm.models.decoder_config import FULL, check_groups, integer, is_causal
from rtp_llm.models.rope import Rope, RopeTables, RotaryModel
from rtp_llm.ops import Norm, Ops, Tensor, Weight

CONV = "conv"
_THETA = 1_000_000.0
_MAX_POSITIONS = 128_000
_MATRICES = ("inner", "out", "gate_up", "down")
_MLP = {"gate_up": ("feed_forward.w1", "feed_forward.w3"), "down": ("feed_forward.w2",)}
_LINEARS = {
    FULL: {"inner": tuple(f"self_attn.{part}_proj" for part in "qkv"), "out": ("self_attn.out_proj",), **_MLP},
    CONV: {"inner": ("conv.in_proj",), "out": ("conv.out_proj",), **_MLP},
}
_HEAD_NORMS = {"q_norm": "self_attn.q_layernorm", "k_norm": "self_attn.k_layernorm"}
_CLASSES = "Lfm2BidirectionalModel and Lfm2BidirectionalForMaskedLM"


@dataclass(frozen=True, kw_only=True)
class Lfm2Config:
    """The keys of config.json that matter.

    kinds    of each layer: full_attention, or conv
    kernel   conv_L_cache: how many tokens a convolution reads
    centred  a convolution reads tokens to either side, not those up to its own
    """

    vocab_size: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    norm_eps: float
    kinds: tuple[str, ...]
    kernel: int
    rope: Rope
    causal: bool
    centred: bool

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], *, causal: bool, centred: bool) -> "Lfm2Config":
        """CheckpointError where a key is missing or asks for what is not supported."""
        if hf.get("conv_bias"):
            raise CheckpointError("config.json: conv_bias true; of LFM2 only false is supported")
        hidden, num_heads = integer(hf, "hidden_size"), integer(hf, "num_attention_heads")
        num_kv_heads = integer(hf, "num_key_value_heads", 8)
        check_groups(num_heads, num_kv_heads)
        head_dim = integer(hf, "head_dim", hidden // num_heads)
        positions = integer(hf, "max_position_embeddings", _MAX_POSITIONS)
        return cls(
            vocab_size=integer(hf, "vocab_size"),
            hidden_size=hidden,
            num_attention_heads=num_heads,
            num_key_value_heads=num_kv_heads,
            head_dim=head_dim,
            intermediate_size=_intermediate_size(hf),
            norm_eps=hf.get("norm_eps", 1e-5),
            kinds=_kinds(hf),
            kernel=integer(hf, "conv_L_cache", 3),
            rope=Rope.from_hf({"rope_theta": _THETA, **hf}, head_dim, positions),
            causal=causal,
            centred=centred,
        )


def _intermediate_size(hf: Mapping[str, Any]) -> int:
    """Of the MLP as it is: two thirds of what config.json says, rounded up, unless it says that this is done."""
    size = integer(hf, "block_ff_dim" if "block_ff_dim" in hf else "intermediate_size")
    if not hf.get("block_auto_adjust_ff_dim", True):
        return size
    size, multiplier = int(2 * size / 3), hf.get("block_ffn_dim_multiplier", 1.0)
    if multiplier is None:
        return size
    multiple = integer(hf, "block_multiple_of", 256)
    return -(-int(multiplier * size) // multiple) * multiple


def _kinds(hf: Mapping[str, Any]) -> tuple[str, ...]:
    """Of each layer, by `layer_types`, else by `full_attn_idxs`; without either all have attention."""
    num_layers, kinds = integer(hf, "num_hidden_layers"), hf.get("layer_types")
    if kinds is None:
        attended = hf.get("full_attn_idxs")
        kinds = [FULL if attended is None or number in attended else CONV for number in range(num_layers)]
    if len(kinds) != num_layers or not {*kinds} <= {FULL, CONV}:
        raise CheckpointError(f"config.json: layer_types {kinds}; {num_layers} of {FULL}, {CONV} are needed")
    return tuple(kinds)


def parameters(config: Lfm2Config) -> dict[str, Parameter]:
    """Our parameter -> the checkpoint's tensors and the shape they make together."""
    hidden, wide, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    queries = config.num_attention_heads * head_dim
    needed = {
        "word": Parameter(("embed_tokens.weight",), (config.vocab_size, hidden)),
        "norm": Parameter(("embedding_norm.weight",), (hidden,)),
    }
    mlp = {"gate_up": (2 * wide, hidden), "down": (hidden, wide)}
    shapes = {
        FULL: {"inner": (queries + 2 * config.num_key_value_heads * head_dim, hidden), "out": (hidden, queries), **mlp},
        CONV: {"inner": (3 * hidden, hidden), "out": (hidden, hidden), **mlp},
    }
    for number, kind in enumerate(config.kinds):
        prefix = f"layers.{number}."
        for name, parts in _LINEARS[kind].items():
            needed[prefix + name] = Parameter(tuple(f"{prefix}{part}.weight" for part in parts), shapes[kind][name])
        for name in ("operator_norm", "ffn_norm"):
            needed[prefix + name] = Parameter((f"{prefix}{name}.weight",), (hidden,))
        if kind == CONV:
            needed[f"{prefix}taps"] = Parameter((f"{prefix}conv.conv.weight",), (hidden, 1, config.kernel))
        else:
            for name, part in _HEAD_NORMS.items():
                needed[prefix + name] = Parameter((f"{prefix}{part}.weight",), (head_dim,))
    return needed


@dataclass(frozen=True, slots=True)
class _Layer:
    """`inner` makes queries, keys and values; or, where there are `taps`, what the convolution reads of a token."""

    operator_norm: Norm
    inner: Weight
    q_norm: Norm | None
    k_norm: Norm | None
    taps: Tensor | None
    out: Weight
    ffn_norm: Norm
    gate_up: Weight
    down: Weight


class Lfm2(RotaryModel):
    """The model up to its last hidden states, after the final norm.

    A prefix is not shared: a convolution behind it would need its last tokens' products, which nobody keeps.
    """

    layers: list[_Layer]

    def __init__(self, config: Lfm2Config, weights: Weights, ops: Ops) -> None:
        self.config = config
        self.hidden_size = config.hidden_size
        self.vocab_size = config.vocab_size
        self.max_positions = config.rope.max_positions
        self.causal = config.causal
        self.word = ops.table(weights["word"])
        self.rope_tables = RopeTables((config.rope,), ops)
        self.layers = [_load_layer(weights, f"layers.{i}.", config, ops) for i in range(len(config.kinds))]
        self.matrices = matrix_sources(weights, len(config.kinds), _MATRICES)
        self.norm = _norm(weights, "norm", config, ops)

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> Lfm2Config:
        """Read config.json; CheckpointError where a key is missing or asks for what is not supported."""
        named = architecture_of(hf)
        if named.startswith("Lfm2Bidir"):
            raise CheckpointError(
                f"config.json: {named} looks both ways and has a head of its authors' own, which is not served; "
                f"{_CLASSES} are"
            )
        return Lfm2Config.from_hf(hf, causal=is_causal(hf), centred=False)

    @classmethod
    def load(cls, hf: Mapping[str, Any], source: TensorSource, ops: Ops) -> "Lfm2":
        """Strictly from the checkpoint's tensors, with or without the prefix that they have beside a head."""
        config = cls.read_config(hf)
        needed = parameters(config)
        return cls(config, bind(source, needed, prefixes=("model.", "lfm2."), ignore=IGNORED), ops)

    def __call__(
        self, ops: Ops, batch: Batch, on_layer: OnLayer | None = None, on_keys: OnKeys | None = None
    ) -> Tensor:
        """Packed batch -> hidden_states [T, hidden_size], or of the wanted rows; `on_keys` is not called."""
        (cos_sin,) = self.rope_tables(ops, batch)
        hidden_states = ops.embed([(self.word, batch.input_ids)])
        for number, layer in enumerate(self.layers):
            if on_layer is not None:
                on_layer(number, hidden_states)
            wanted = batch.wanted if number == len(self.layers) - 1 else None
            inner = ops.linear(ops.norm(hidden_states, layer.operator_norm), layer.inner)
            mixed = self._mix(ops, layer, inner, cos_sin, batch, wanted)
            hidden_states = hidden_states if wanted is None else ops.rows(hidden_states, wanted)
            hidden_states = ops.linear(mixed, layer.out, residual=hidden_states)
            wide = ops.gated_linear(ops.norm(hidden_states, layer.ffn_norm), layer.gate_up, None, "silu")
            hidden_states = ops.linear(wide, layer.down, residual=hidden_states)
        return ops.norm(hidden_states, self.norm)

    def _mix(self, ops: Ops, layer: _Layer, inner: Tensor, cos_sin: Tensor, batch: Batch, wanted: Any) -> Tensor:
        """What a token takes of the others -> [T, ·], or of the wanted rows."""
        config = self.config
        if layer.taps is not None:
            # Tokens that are not seen: transformers masks them here too, the authors of LFM2.5 do not.
            mixed = ops.short_conv(inner, layer.taps, batch, causal=not config.centred, masked=not config.centred)
            return mixed if wanted is None else ops.rows(mixed, wanted)
        heads: dict[str, Any] = {
            "num_heads": config.num_attention_heads,
            "num_kv_heads": config.num_key_value_heads,
            "head_dim": config.head_dim,
        }
        qkv = ops.rotary(inner, cos_sin, **heads, q_norm=layer.q_norm, k_norm=layer.k_norm)
        return ops.attention(qkv, batch, **heads, scale=config.head_dim**-0.5, causal=config.causal, rows=wanted)


class Lfm2Bidirectional(Lfm2):
    """LFM2.5's embedders and encoders, which look both ways, whatever config.json says."""

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> Lfm2Config:
        return Lfm2Config.from_hf(hf, causal=False, centred=True)


def _load_layer(weights: Weights, prefix: str, config: Lfm2Config, ops: Ops) -> _Layer:
    taps = f"{prefix}taps"
    norms: dict[str, Any] = {
        name: _norm(weights, prefix + name, config, ops) if prefix + name in weights else None
        for name in ("operator_norm", "ffn_norm", *_HEAD_NORMS)
    }
    return _Layer(
        **{name: ops.matrix(weights.matrix(prefix + name)) for name in _MATRICES},
        **norms,
        taps=ops.vector(np.ascontiguousarray(weights[taps][:, 0].T)) if taps in weights else None,
    )


def _norm(weights: Weights, name: str, config: Lfm2Config, ops: Ops) -> Norm:
    return Norm(ops.vector(weights[name]), None, config.norm_eps, "rms")
