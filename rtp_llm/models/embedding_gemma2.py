"""EmbeddingGemma 2 (Google 2026), as it reads texts: a Gemma 4 that looks both ways, its towers for media left aside.

Equals transformers' EmbeddingGemma2TextModel. Layers that look at all tokens have wider heads, values are normed, a
token's embedding comes back in every layer, as a gate's partner, and a linear layer stands after the last norm.

What a layer gives is multiplied there by its `layer_scalar`. Here all that goes through the layers is divided by the
product of those passed: what a norm makes of it is the same, with an eps divided by that product's square.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rtp_llm.checkpoint import Parameter, TensorSource, Weights, bind
from rtp_llm.config_files import activation
from rtp_llm.core import Batch, FloatArray
from rtp_llm.errors import CheckpointError
from rtp_llm.models import OnKeys, OnLayer, matrix_sources
from rtp_llm.models.decoder_config import FULL, SLIDING, check_groups, integer, layer_types, window
from rtp_llm.models.rope import Rope, RopeTables, RotaryModel
from rtp_llm.ops import Norm, Ops, Tensor, Weight

_MATRICES = ("query_key", "out", "gate_up", "down", "widen")
_LINEARS = {
    "query_key": ("self_attn.q_proj", "self_attn.k_proj"), "value": ("self_attn.v_proj",),
    "out": ("self_attn.o_proj",), "gate_up": ("mlp.gate_proj", "mlp.up_proj"), "down": ("mlp.down_proj",),
    "narrow": ("ple_block.per_layer_input_gate",), "widen": ("ple_block.per_layer_projection",),
}  # fmt: skip
_NORMS = {
    "input_norm": "input_layernorm", "attended_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm", "down_norm": "post_feedforward_layernorm",
    "widen_norm": "ple_block.post_per_layer_input_norm", "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm",
}  # fmt: skip
_THETAS = {FULL: 1_000_000.0, SLIDING: 10_000.0}
# Of layers that look at all tokens, where config.json has no per_layer_config.
_FULL_HEADS = {"head_dim": ("global_head_dim", 512), "num_key_value_heads": ("num_global_key_value_heads", 1)}
IGNORED = (r"^(vision|audio)_tower\.", r"^embed_(vision|audio)\.")


@dataclass(frozen=True, kw_only=True)
class EmbeddingGemma2Config:
    """The keys of `text_config` that matter.

    kinds      of each layer: full_attention, or sliding_attention
    heads      of each layer: num_key_value_heads and head_dim
    signal     hidden_size_per_layer_input: the width in which a token's embedding comes back
    dimension  embedding_dim: columns of what the model gives
    window     of layers that have one, as `Ops.attention` counts it
    """

    vocab_size: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    signal: int
    dimension: int
    rms_norm_eps: float
    activation: str
    kinds: tuple[str, ...]
    heads: tuple[tuple[int, int], ...]
    window: int
    ropes: Mapping[str, Rope]

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> "EmbeddingGemma2Config":
        """CheckpointError where a key is missing or asks for what is not supported."""
        if hf.get("attention_bias"):
            raise CheckpointError("config.json: attention_bias true; of EmbeddingGemma 2 only false is supported")
        num_layers, pattern = integer(hf, "num_hidden_layers"), integer(hf, "sliding_window_pattern", 6)
        kinds = layer_types(hf, [SLIDING if (i + 1) % pattern else FULL for i in range(num_layers)])
        kinds = (*kinds[:-1], FULL)  # as transformers forces it
        heads = tuple(_heads(hf, number, kind) for number, kind in enumerate(kinds))
        return cls(
            vocab_size=integer(hf, "vocab_size"),
            hidden_size=integer(hf, "hidden_size"),
            num_attention_heads=integer(hf, "num_attention_heads"),
            intermediate_size=integer(hf, "intermediate_size"),
            signal=integer(hf, "hidden_size_per_layer_input", 512),
            dimension=integer(hf, "embedding_dim", 768),
            rms_norm_eps=hf.get("rms_norm_eps", 1e-6),
            activation=activation(hf, "hidden_activation", "gelu_pytorch_tanh"),
            kinds=kinds,
            heads=heads,
            window=window(integer(hf, "sliding_window", 512), causal=False),
            ropes={kind: _rope(hf, kind, kinds, heads) for kind in (FULL, SLIDING) if kind in kinds},
        )


def _heads(hf: Mapping[str, Any], number: int, kind: str) -> tuple[int, int]:
    """A layer's num_key_value_heads and head_dim."""
    own = {int(key): values for key, values in (hf.get("per_layer_config") or {}).items()}.get(number, {})
    if {*own} - {*_FULL_HEADS}:
        raise CheckpointError(f"config.json: per_layer_config {number}: {own}; only {', '.join(_FULL_HEADS)} are read")
    common = {"head_dim": integer(hf, "head_dim", 256), "num_key_value_heads": integer(hf, "num_key_value_heads", 2)}
    if kind == FULL and not hf.get("per_layer_config"):
        common = {key: integer(hf, name, default) for key, (name, default) in _FULL_HEADS.items()}
    head_dim, num_kv_heads = (integer(own, key, value) for key, value in common.items())
    check_groups(integer(hf, "num_attention_heads"), num_kv_heads, f"layer {number}'s ")
    return num_kv_heads, head_dim


def _rope(hf: Mapping[str, Any], kind: str, kinds: tuple[str, ...], heads: tuple[tuple[int, int], ...]) -> Rope:
    """Of one kind of layer, whose heads must have one size."""
    sizes = {head_dim for own, (_, head_dim) in zip(kinds, heads, strict=True) if own == kind}
    if len(sizes) > 1:
        raise CheckpointError(f"config.json: per_layer_config gives layers of {kind} heads of sizes {sorted(sizes)}")
    parameters = {"rope_theta": _THETAS[kind], **((hf.get("rope_parameters") or {}).get(kind) or {})}
    (size,), positions = sizes, integer(hf, "max_position_embeddings", 262_144)
    return Rope.from_hf({"rope_parameters": parameters}, size, positions)


@dataclass(frozen=True, slots=True)
class _Layer:
    """`values` are a matrix for each head; `signal` makes of an embedding what comes back in this layer."""

    query_key: Weight
    values: tuple[Weight, ...]
    out: Weight
    gate_up: Weight
    down: Weight
    signal: Weight
    narrow: Weight
    widen: Weight
    input_norm: Norm
    attended_norm: Norm
    mlp_norm: Norm
    down_norm: Norm
    widen_norm: Norm
    q_norm: Norm
    k_norm: Norm
    v_norm: Norm


class EmbeddingGemma2(RotaryModel):
    """What goes into a layer is divided by the layers' scalars; what comes out, of `dimension` columns, is not."""

    layers: list[_Layer]

    def __init__(self, config: EmbeddingGemma2Config, weights: Weights, ops: Ops) -> None:
        self.config = config
        self.hidden_size = config.dimension
        self.vocab_size = config.vocab_size
        self.max_positions = max(rope.max_positions for rope in config.ropes.values())
        self.word = ops.table(weights["word"])
        self.rope_tables = RopeTables(tuple(config.ropes.values()), ops)
        self.signal_norm = Norm(ops.vector(weights["signal_norm"]), None, config.rms_norm_eps, "rms")
        signals = np.split(weights["signal"] * np.float32(config.hidden_size**-0.5), len(config.kinds))
        scale, self.layers = 1.0, []
        for number, signal in enumerate(signals):
            self.layers.append(_load_layer(weights, number, config, ops, signal, scale))
            scale *= _scalar(weights, number)
        self.matrices = matrix_sources(weights, len(config.kinds), _MATRICES)
        self.norm = Norm(ops.vector(weights["norm"]), None, config.rms_norm_eps / scale**2, "rms")
        self.projection = ops.matrix(weights["projection"])

    @classmethod
    def load(cls, hf: Mapping[str, Any], source: TensorSource, ops: Ops) -> "EmbeddingGemma2":
        """Strictly from the tensors of the model for texts, with or without the prefix that it has among others."""
        config = EmbeddingGemma2Config.from_hf(hf)
        prefixes = ("model.", "language_model.")
        return cls(config, bind(source, parameters(config), prefixes=prefixes, ignore=IGNORED), ops)

    def __call__(
        self, ops: Ops, batch: Batch, on_layer: OnLayer | None = None, on_keys: OnKeys | None = None
    ) -> Tensor:
        """Packed batch -> [T, embedding_dim], or of the wanted rows; `on_keys` is not called."""
        config = self.config
        cos_sin = dict(zip(config.ropes, self.rope_tables(ops, batch), strict=True))
        embedded = ops.embed([(self.word, batch.input_ids)], scale=config.hidden_size**0.5)
        hidden_states = embedded
        for number, kind in enumerate(config.kinds):
            if on_layer is not None:
                on_layer(number, hidden_states)
            hidden_states = self._run_layer(ops, number, hidden_states, embedded, cos_sin[kind], batch)
        return ops.linear(ops.norm(hidden_states, self.norm), self.projection)

    def _run_layer(
        self, ops: Ops, number: int, hidden_states: Tensor, embedded: Tensor, cos_sin: Tensor, batch: Batch
    ) -> Tensor:
        config, layer = self.config, self.layers[number]
        wanted = batch.wanted if layer is self.layers[-1] else None
        num_kv_heads, head_dim = config.heads[number]
        heads: dict[str, Any] = {
            "num_heads": config.num_attention_heads,
            "num_kv_heads": num_kv_heads,
            "head_dim": head_dim,
        }
        normed = ops.norm(hidden_states, layer.input_norm)
        values = [ops.norm(ops.linear(normed, value), layer.v_norm) for value in layer.values]
        qkv = ops.concat([ops.linear(normed, layer.query_key), *values])
        qkv = ops.rotary(qkv, cos_sin, **heads, q_norm=layer.q_norm, k_norm=layer.k_norm)
        reach = config.window if config.kinds[number] == SLIDING else None
        context = ops.attention(qkv, batch, **heads, scale=1.0, window=reach, rows=wanted)
        if wanted is not None:
            hidden_states, embedded = ops.rows(hidden_states, wanted), ops.rows(embedded, wanted)
        attended = ops.norm(ops.linear(context, layer.out), layer.attended_norm, hidden_states)
        wide = ops.gated_linear(ops.norm(attended, layer.mlp_norm), layer.gate_up, None, config.activation)
        passed = ops.norm(ops.linear(wide, layer.down), layer.down_norm, attended)
        signal = ops.norm(ops.linear(embedded, layer.signal), self.signal_norm)
        narrow = ops.gated(ops.concat([ops.linear(passed, layer.narrow), signal]), config.activation)
        return ops.norm(ops.linear(narrow, layer.widen), layer.widen_norm, passed)


def parameters(config: EmbeddingGemma2Config) -> dict[str, Parameter]:
    """Our parameter -> the checkpoint's tensors, by the names of the model for texts, and their shape together."""
    hidden, wide, signal = config.hidden_size, config.intermediate_size, config.signal
    needed = {
        "word": Parameter(("embed_tokens.weight",), (config.vocab_size, hidden)),
        "norm": Parameter(("norm.weight",), (hidden,)),
        "projection": Parameter(("embedding_projection.weight",), (config.dimension, hidden)),
        "signal": Parameter(("ple.per_layer_model_projection.weight",), (len(config.kinds) * signal, hidden)),
        "signal_norm": Parameter(("ple.per_layer_projection_norm.weight",), (signal,)),
    }
    for number, (num_kv_heads, head_dim) in enumerate(config.heads):
        prefix, queries, keys = f"layers.{number}.", config.num_attention_heads * head_dim, num_kv_heads * head_dim
        shapes = {
            "query_key": (queries + keys, hidden), "value": (keys, hidden), "out": (hidden, queries),
            "gate_up": (2 * wide, hidden), "down": (hidden, wide), "narrow": (signal, hidden),
            "widen": (hidden, signal),
        }  # fmt: skip
        for name, parts in _LINEARS.items():
            needed[prefix + name] = Parameter(tuple(f"{prefix}{part}.weight" for part in parts), shapes[name])
        for name, part in _NORMS.items():
            size = head_dim if name in ("q_norm", "k_norm") else hidden
            needed[prefix + name] = Parameter((f"{prefix}{part}.weight",), (size,))
        needed[f"{prefix}scalar"] = Parameter((f"{prefix}layer_scalar",), (1,))
    return needed


def _load_layer(
    weights: Weights, number: int, config: EmbeddingGemma2Config, ops: Ops, signal: FloatArray, scale: float
) -> _Layer:
    """`scale`: what all that goes into the layer is divided by."""
    prefix, (num_kv_heads, head_dim), eps = f"layers.{number}.", config.heads[number], config.rms_norm_eps

    def norm(name: str, scaling: float = 1.0, eps: float = eps) -> Norm:
        return Norm(ops.vector(weights[prefix + name] * np.float32(scaling)), None, eps, "rms")

    return _Layer(
        **{name: ops.matrix(weights.matrix(prefix + name)) for name in _MATRICES},
        values=tuple(map(ops.matrix, np.split(weights[f"{prefix}value"], num_kv_heads))),
        signal=ops.matrix(signal),
        narrow=ops.matrix(weights[f"{prefix}narrow"] * np.float32(scale)),
        **{name: norm(name, eps=eps / scale**2) for name in ("input_norm", "mlp_norm")},
        **{name: norm(name, 1 / scale) for name in ("attended_norm", "down_norm", "widen_norm")},
        **{name: norm(name) for name in ("q_norm", "k_norm")},
        v_norm=Norm(ops.vector(np.ones(head_dim, np.float32)), None, eps, "rms"),
    )


def _scalar(weights: Weights, number: int) -> float:
    scalar = float(weights[f"layers.{number}.scalar"][0])
    if scalar <= 0:
        (name,) = weights.sources(f"layers.{number}.scalar")
        raise CheckpointError(f"the tensor {name} is {scalar}; a positive number is needed, download it again")
    return scalar
