"""BERT's post-norm layers with rotary positions: what GTE, NomicBERT and Jina Embeddings v3 have in common."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from rtp_llm.checkpoint import Parameter, TensorSource, Weights, bind, canonical_names
from rtp_llm.core import Batch
from rtp_llm.late_interaction import beside_encoder
from rtp_llm.models import OnKeys, OnLayer, gate_first, matrix_sources
from rtp_llm.models.adapted import chosen
from rtp_llm.models.rope import Rope, RopeTables, RotaryModel
from rtp_llm.ops import Experts, Norm, Ops, Tensor, Weight, layer_norm, optional_vector

_MATRICES = ("qkv", "out", "up", "down")
IGNORED = (r"^pooler\.", r"^cls\.", r"^lm_head\.", r"^classifier\.", r"rotary_emb\.")
# Several of a layer's matrices in one tensor: our name for it, in which `up` comes before `gate`.
_PACKED_QKV, _PACKED_MLP = "self_attn.qkv_proj", "mlp.up_gate_proj"


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """Experts in the place of an MLP, in these layers; each has the MLP's sizes and activation, and no gate."""

    layers: frozenset[int]
    num_experts: int
    top_k: int


@dataclass(frozen=True, kw_only=True)
class RotaryBertConfig:
    """The keys of config.json that matter, by transformers' names.

    max_positions    the longest sequence that the checkpoint was made for
    type_vocab_size  0: there are no token types
    gated            whether the MLP has a gate
    biases           of the matrices that have one
    mixture          None: every layer has an MLP
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    type_vocab_size: int
    layer_norm_eps: float
    activation: str
    max_positions: int
    rope: Rope
    gated: bool
    mixture: MixtureConfig | None
    biases: frozenset[str] = field(default_factory=frozenset)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def matrices(self, layer: int) -> tuple[str, ...]:
        """Of a layer; experts are none of them."""
        return _MATRICES[:2] if self.mixture and layer in self.mixture.layers else _MATRICES


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """With `up` and `down`, or with `experts`."""

    qkv: Weight
    qkv_bias: Tensor | None
    out: Weight
    out_bias: Tensor | None
    attention_norm: Norm
    mlp_norm: Norm
    up: Weight | None = None
    up_bias: Tensor | None = None
    down: Weight | None = None
    down_bias: Tensor | None = None
    experts: Experts | None = None


class RotaryBert(RotaryModel):
    """The encoder up to its last hidden states; heads and poolers belong to the tasks.

    A subclass reads config.json, and says what its checkpoints call things: `prefixes` before every name of the
    encoder, `renames` from there to transformers' names.
    """

    gpu_dtype = "fp16"
    layers: list[_Layer]
    prefixes: ClassVar[tuple[str, ...]] = ()
    renames: ClassVar[tuple[tuple[str, str], ...]] = ()

    def __init__(self, config: RotaryBertConfig, weights: Weights, ops: Ops) -> None:
        self.config = config
        self.hidden_size = config.hidden_size
        self.vocab_size = config.vocab_size
        self.max_positions = config.max_positions
        self.word = ops.table(weights["word"])
        self.token_type = ops.table(weights["token_type"]) if config.type_vocab_size else None
        self.embedding_norm = layer_norm(ops, weights, "embedding_norm", config.layer_norm_eps)
        self.rope_tables = RopeTables((config.rope,), ops)
        self.layers = [_load_layer(weights, i, config, ops) for i in range(config.num_hidden_layers)]
        self.matrices = matrix_sources(weights, config.num_hidden_layers, _MATRICES)
        self.tables = {name: weights.sources(name)[0] for name in ("word", "token_type") if name in weights}
        self.reads_host = () if config.mixture is None else ("experts",)

    @classmethod
    @abstractmethod
    def read_config(cls, hf: Mapping[str, Any]) -> RotaryBertConfig:
        """config.json; CheckpointError where a key is missing or asks for what is not supported."""

    @classmethod
    def load(cls, hf: Mapping[str, Any], source: TensorSource, ops: Ops) -> "RotaryBert":
        """Strictly from the checkpoint's tensors, by transformers' names or those of the authors' code."""
        config = cls.read_config(hf)
        names = canonical_names(source, cls.prefixes, cls.renames)
        packed = {part for part in (_PACKED_QKV, _PACKED_MLP) if any(name.endswith(f"{part}.weight") for name in names)}
        needed = parameters(config, packed)
        ignored = (*IGNORED, *beside_encoder(hf))
        return cls(config, bind(source, needed, prefixes=cls.prefixes, renames=cls.renames, ignore=ignored), ops)

    def __call__(
        self, ops: Ops, batch: Batch, on_layer: OnLayer | None = None, on_keys: OnKeys | None = None
    ) -> Tensor:
        """Packed batch -> hidden_states [T, hidden_size], or of the wanted rows; `on_keys` is not called."""
        ops = chosen(ops, batch) if self.adapters else ops
        (cos_sin,) = self.rope_tables(ops, batch)
        lookups = [(self.word, batch.input_ids)]
        if self.token_type is not None:
            lookups.append((self.token_type, batch.token_type_ids))
        hidden_states = ops.embed(lookups, self.embedding_norm)
        for number, layer in enumerate(self.layers):
            if on_layer is not None:
                on_layer(number, hidden_states)
            hidden_states = self._run_layer(ops, layer, hidden_states, cos_sin, batch)
        return hidden_states

    def _run_layer(self, ops: Ops, layer: _Layer, hidden_states: Tensor, cos_sin: Tensor, batch: Batch) -> Tensor:
        config = self.config
        wanted = batch.wanted if layer is self.layers[-1] else None
        heads: dict[str, Any] = {
            "num_heads": config.num_attention_heads,
            "num_kv_heads": config.num_attention_heads,
            "head_dim": config.head_dim,
        }
        qkv = ops.rotary(ops.linear(hidden_states, layer.qkv, layer.qkv_bias), cos_sin, **heads)
        context = ops.attention(qkv, batch, **heads, scale=config.head_dim**-0.5, rows=wanted)
        hidden_states = hidden_states if wanted is None else ops.rows(hidden_states, wanted)
        attended = ops.norm(
            ops.linear(context, layer.out, layer.out_bias, residual=hidden_states), layer.attention_norm
        )
        if layer.experts is not None:
            return ops.norm(ops.experts(attended, layer.experts, attended), layer.mlp_norm)
        if config.gated:
            wide = ops.gated_linear(attended, layer.up, layer.up_bias, config.activation)
        else:
            wide = ops.linear(attended, layer.up, layer.up_bias, config.activation)
        return ops.norm(ops.linear(wide, layer.down, layer.down_bias, residual=attended), layer.mlp_norm)


def parameters(config: RotaryBertConfig, packed: set[str]) -> dict[str, Parameter]:
    """Our parameter -> the checkpoint's tensors, by transformers' names, and the shape they make together.

    `packed`: what the checkpoint has in one tensor, by our name for it.
    """
    hidden, wide = config.hidden_size, config.intermediate_size
    qkv = (_PACKED_QKV,) if _PACKED_QKV in packed else tuple(f"self_attn.{part}_proj" for part in "qkv")
    up: tuple[str, ...] = ("mlp.up_proj",)
    if config.gated:
        up = (_PACKED_MLP,) if _PACKED_MLP in packed else ("mlp.gate_proj", "mlp.up_proj")
    linears = {
        "qkv": (qkv, 3 * hidden, hidden),
        "out": (("self_attn.o_proj",), hidden, hidden),
        "up": (up, (2 if config.gated else 1) * wide, hidden),
        "down": (("mlp.down_proj",), hidden, wide),
    }
    needed = {"word": Parameter(("embeddings.word_embeddings.weight",), (config.vocab_size, hidden))}
    if config.type_vocab_size:
        shape = (config.type_vocab_size, hidden)
        needed["token_type"] = Parameter(("embeddings.token_type_embeddings.weight",), shape)
    norms = {"embedding_norm": "embeddings.LayerNorm"}
    for i in range(config.num_hidden_layers):
        prefix = f"layers.{i}."
        for name in config.matrices(i):
            parts, rows, columns = linears[name]
            needed[prefix + name] = Parameter(tuple(f"{prefix}{part}.weight" for part in parts), (rows, columns))
            if name in config.biases:
                needed[f"{prefix}{name}_bias"] = Parameter(tuple(f"{prefix}{part}.bias" for part in parts), (rows,))
        if "up" not in config.matrices(i):
            needed |= _mixture_parameters(config, prefix)
        norms[f"{prefix}attention_norm"] = f"{prefix}post_attention_layernorm"
        norms[f"{prefix}mlp_norm"] = f"{prefix}post_mlp_layernorm"
    for name, theirs in norms.items():
        for kind in ("weight", "bias"):
            needed[f"{name}.{kind}"] = Parameter((f"{theirs}.{kind}",), (hidden,))
    return needed


def _mixture_parameters(config: RotaryBertConfig, prefix: str) -> dict[str, Parameter]:
    """All experts of a layer: one below the other, the second matrix of each the other way round."""
    mixture, hidden = config.mixture, config.hidden_size
    assert mixture is not None
    rows = mixture.num_experts * config.intermediate_size
    return {
        f"{prefix}router": Parameter((f"{prefix}mlp.router.layer.weight",), (mixture.num_experts, hidden)),
        f"{prefix}experts_up": Parameter((f"{prefix}mlp.experts.mlp.w1",), (rows, hidden)),
        f"{prefix}experts_down": Parameter((f"{prefix}mlp.experts.mlp.w2",), (rows, hidden)),
        f"{prefix}experts_bias": Parameter((f"{prefix}mlp.experts.bias",), (hidden,)),
    }


def _load_layer(weights: Weights, number: int, config: RotaryBertConfig, ops: Ops) -> _Layer:
    prefix, names = f"layers.{number}.", config.matrices(number)
    matrices = {name: weights.matrix(prefix + name) for name in names}
    if config.gated and len(weights.sources(f"{prefix}up")) == 1:
        matrices["up"] = gate_first(matrices["up"])
    parts: dict[str, Any] = {name: ops.matrix(matrix) for name, matrix in matrices.items()}
    parts |= {f"{name}_bias": optional_vector(ops, weights, f"{prefix}{name}_bias") for name in names}
    for name in ("attention_norm", "mlp_norm"):
        parts[name] = layer_norm(ops, weights, prefix + name, config.layer_norm_eps)
    if "up" not in names:
        parts["experts"] = _load_experts(weights, prefix, config, ops)
    return _Layer(**parts)


def _load_experts(weights: Weights, prefix: str, config: RotaryBertConfig, ops: Ops) -> Experts:
    mixture = config.mixture
    assert mixture is not None
    return Experts(
        router=ops.vector(weights[f"{prefix}router"]),
        up=tuple(map(ops.matrix, np.split(weights[f"{prefix}experts_up"], mixture.num_experts))),
        down=tuple(ops.matrix(part.T) for part in np.split(weights[f"{prefix}experts_down"], mixture.num_experts)),
        bias=ops.vector(weights[f"{prefix}experts_bias"]),
        top_k=mixture.top_k,
        activation=config.activation,
    )
