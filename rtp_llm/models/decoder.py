"""A decoder of the Llama kind: pre-norm layers, rotary positions, grouped key heads, a gated MLP.

Its families are in qwen.py, llama.py and gemma.py, and differ in their configs alone.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rtp_llm.checkpoint import Parameter, TensorSource, Weights, bind
from rtp_llm.core import Batch
from rtp_llm.models import OnKeys, OnLayer, matrix_sources
from rtp_llm.models.adapted import chosen
from rtp_llm.models.decoder_config import DecoderConfig
from rtp_llm.models.rope import RopeTables, RotaryModel
from rtp_llm.ops import Norm, Ops, Tensor, Weight

_MATRICES = ("qkv", "out", "gate_up", "down")
_NORMS = ("input_norm", "attended_norm", "mlp_norm", "down_norm", "q_norm", "k_norm")
IGNORED = (r"^lm_head\.", r"^score\.", r"^dense\.", r"^classifier\.", r"rotary_emb\.inv_freq$")


def parameters(config: DecoderConfig) -> dict[str, Parameter]:
    """Our parameter -> the checkpoint's tensors and the shape they make together."""
    hidden, wide = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    all_heads = queries + 2 * config.num_key_value_heads * config.head_dim
    needed = {
        "word": Parameter(("embed_tokens.weight",), (config.vocab_size, hidden)),
        "norm": Parameter(("norm.weight",), (hidden,)),
    }
    linears = {
        "qkv": (tuple(f"self_attn.{part}_proj" for part in "qkv"), all_heads, hidden, config.qkv_bias),
        "out": (("self_attn.o_proj",), hidden, queries, config.out_bias),
        "gate_up": (("mlp.gate_proj", "mlp.up_proj"), 2 * wide, hidden, config.mlp_bias),
        "down": (("mlp.down_proj",), hidden, wide, config.mlp_bias),
    }
    norms = _norm_names(config)
    for prefix in (f"layers.{i}." for i in range(config.num_hidden_layers)):
        for name, (parts, rows, columns, bias) in linears.items():
            needed[prefix + name] = Parameter(tuple(f"{prefix}{part}.weight" for part in parts), (rows, columns))
            if bias:
                needed[f"{prefix}{name}_bias"] = Parameter(tuple(f"{prefix}{part}.bias" for part in parts), (rows,))
        for name, (part, size) in norms.items():
            needed[prefix + name] = Parameter((f"{prefix}{part}.weight",), (size,))
    return needed


def _norm_names(config: DecoderConfig) -> dict[str, tuple[str, int]]:
    """Our norm of a layer -> its name in the checkpoint and its size."""
    hidden = config.hidden_size
    names = {"input_norm": ("input_layernorm", hidden)}
    if config.output_norms:
        names["attended_norm"] = ("post_attention_layernorm", hidden)
        names["mlp_norm"] = ("pre_feedforward_layernorm", hidden)
        names["down_norm"] = ("post_feedforward_layernorm", hidden)
    else:
        names["mlp_norm"] = ("post_attention_layernorm", hidden)
    if config.head_norms:
        names |= {"q_norm": ("self_attn.q_norm", config.head_dim), "k_norm": ("self_attn.k_norm", config.head_dim)}
    return names


@dataclass(frozen=True, slots=True)
class _Layer:
    input_norm: Norm
    qkv: Weight
    qkv_bias: Tensor | None
    q_norm: Norm | None
    k_norm: Norm | None
    out: Weight
    out_bias: Tensor | None
    attended_norm: Norm | None
    mlp_norm: Norm
    gate_up: Weight
    gate_up_bias: Tensor | None
    down: Weight
    down_bias: Tensor | None
    down_norm: Norm | None


class Decoder(RotaryModel):
    """The decoder up to its last hidden states, after the final norm; heads belong to the tasks."""

    layers: list[_Layer]
    takes_adapters = True

    def __init__(self, config: DecoderConfig, weights: Weights, ops: Ops) -> None:
        self.config = config
        self.hidden_size = config.hidden_size
        self.vocab_size = config.vocab_size
        self.max_positions = config.rope.max_positions
        self.causal = config.causal
        # With dynamic NTK the angles of the first tokens depend on the length of the whole.
        self.shares_prefixes = config.causal and all(rope.rope_type != "dynamic" for rope in config.ropes)
        self.kv_size = 2 * config.num_key_value_heads * config.head_dim
        self.word = ops.table(weights["word"])
        self.rope_tables = RopeTables(config.ropes, ops)
        self.layers = [_load_layer(weights, f"layers.{i}.", config, ops) for i in range(config.num_hidden_layers)]
        self.matrices = matrix_sources(weights, config.num_hidden_layers, _MATRICES)
        self.tables = {"word": weights.sources("word")[0]}
        self.norm = _norm(weights, "norm", config, ops)

    @classmethod
    @abstractmethod
    def read_config(cls, hf: Mapping[str, Any]) -> DecoderConfig:
        """Read config.json; CheckpointError where a key is missing or asks for what is not supported."""

    @classmethod
    def load(cls, hf: Mapping[str, Any], source: TensorSource, ops: Ops) -> "Decoder":
        """Strictly from the checkpoint's tensors, with or without the `model.` prefix."""
        config = cls.read_config(hf)
        return cls(config, bind(source, parameters(config), prefixes=("model.",), ignore=IGNORED), ops)

    def __call__(
        self, ops: Ops, batch: Batch, on_layer: OnLayer | None = None, on_keys: OnKeys | None = None
    ) -> Tensor:
        """Packed batch -> hidden_states [T, hidden_size], or of the wanted rows."""
        ops = chosen(ops, batch) if self.adapters else ops
        angles = self.rope_tables(ops, batch)
        hidden_states = ops.embed([(self.word, batch.input_ids)], scale=self.config.embedding_scale)
        for number, layer in enumerate(self.layers):
            if on_layer is not None:
                on_layer(number, hidden_states)
            qkv = self._qkv(ops, layer, hidden_states, angles[self.config.rope_number(number)])
            if on_keys is not None:
                on_keys(number, qkv)
            hidden_states = self._run_layer(ops, number, hidden_states, qkv, batch)
        return ops.norm(hidden_states, self.norm)

    def _qkv(self, ops: Ops, layer: _Layer, hidden_states: Tensor, cos_sin: Tensor) -> Tensor:
        qkv = ops.linear(ops.norm(hidden_states, layer.input_norm), layer.qkv, layer.qkv_bias)
        return ops.rotary(qkv, cos_sin, **self._heads, q_norm=layer.q_norm, k_norm=layer.k_norm)

    def _run_layer(self, ops: Ops, number: int, hidden_states: Tensor, qkv: Tensor, batch: Batch) -> Tensor:
        config, layer = self.config, self.layers[number]
        wanted = batch.wanted if layer is self.layers[-1] else None
        context = ops.attention(
            qkv,
            batch,
            **self._heads,
            scale=config.attention_scale,
            causal=config.causal,
            window=config.windows[number],
            softcap=config.softcap,
            rows=wanted,
            kept=[prefix.layers[number] for prefix in batch.kept],
        )
        hidden_states = hidden_states if wanted is None else ops.rows(hidden_states, wanted)
        attended = _added(ops, context, layer.out, layer.out_bias, layer.attended_norm, hidden_states)
        normed = ops.norm(attended, layer.mlp_norm)
        wide = ops.gated_linear(normed, layer.gate_up, layer.gate_up_bias, config.activation)
        return _added(ops, wide, layer.down, layer.down_bias, layer.down_norm, attended)

    @property
    def _heads(self) -> dict[str, Any]:
        config = self.config
        return {
            "num_heads": config.num_attention_heads,
            "num_kv_heads": config.num_key_value_heads,
            "head_dim": config.head_dim,
        }


def _added(ops: Ops, x: Tensor, weight: Weight, bias: Tensor | None, norm: Norm | None, residual: Tensor) -> Tensor:
    """The linear layer's result, normed where there is a norm, and the residual."""
    if norm is None:
        return ops.linear(x, weight, bias, residual=residual)
    return ops.norm(ops.linear(x, weight, bias), norm, residual)


def _load_layer(weights: Weights, prefix: str, config: DecoderConfig, ops: Ops) -> _Layer:
    matrices = {name: ops.matrix(weights.matrix(prefix + name)) for name in _MATRICES}
    biases: dict[str, Any] = {
        f"{name}_bias": ops.vector(weights[f"{prefix}{name}_bias"]) if f"{prefix}{name}_bias" in weights else None
        for name in _MATRICES
    }
    norms: dict[str, Any] = {
        name: _norm(weights, prefix + name, config, ops) if prefix + name in weights else None for name in _NORMS
    }
    return _Layer(**matrices, **biases, **norms)


def _norm(weights: Weights, name: str, config: DecoderConfig, ops: Ops) -> Norm:
    weight = weights[name]
    weight = weight + np.float32(config.norm_offset) if config.norm_offset else weight
    return Norm(ops.vector(weight), None, config.rms_norm_eps, "rms")
