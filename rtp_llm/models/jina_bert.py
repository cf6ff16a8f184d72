"""JinaBERT v2 (Günther et al. 2023): BERT without positions, its scores falling with distance (ALiBi), a gated MLP.

Equals the JinaBertModel of its authors' own code: jina-bert-implementation, of jina-embeddings-v2 and
jina-reranker-v1, and jina-bert-v2-qk-post-norm, of jina-embeddings-v2-base-code, which norms queries and keys, and adds
a layer's input once more before the MLP. Their config.json says model_type "bert".
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rtp_llm.checkpoint import Parameter, TensorSource, Weights, bind
from rtp_llm.core import Batch
from rtp_llm.errors import CheckpointError
from rtp_llm.late_interaction import beside_encoder
from rtp_llm.models import Model, OnKeys, OnLayer, gate_first, matrix_sources
from rtp_llm.models.bert import IGNORED
from rtp_llm.models.distance import alibi_bias, alibi_slopes
from rtp_llm.models.sizes import read_sizes
from rtp_llm.ops import Norm, Ops, Tensor, Weight, layer_norm

logger = logging.getLogger(__name__)

# `feed_forward_type` -> the activation of the gate.
_GATES = {"geglu": "gelu", "reglu": "relu"}
_ONLY = {"position_embedding_type": "alibi", "is_decoder": False, "add_cross_attention": False}
_QKV = ("query", "key", "value")
_NORMED_QK = "attention.self.layer_norm_q.weight"


@dataclass(frozen=True, kw_only=True)
class JinaBertConfig:
    """The keys of config.json that matter, by their own names.

    halved_slopes  those past the largest power of two are half of what ALiBi has there
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    activation: str
    halved_slopes: bool

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> "JinaBertConfig":
        """Read config.json; CheckpointError where a key is missing or asks for what is not supported."""
        for key, served in _ONLY.items():
            if hf.get(key, served) != served:
                raise CheckpointError(f"config.json: {key} {hf[key]!r}; of JinaBERT only {served!r} is supported")
        gate = hf.get("feed_forward_type")
        if gate not in _GATES:
            raise CheckpointError(f"config.json: feed_forward_type {gate!r} is not one of {', '.join(_GATES)}")
        return cls(
            **read_sizes(hf),
            max_position_embeddings=hf.get("max_position_embeddings") or 512,
            type_vocab_size=2 if hf.get("type_vocab_size") is None else hf["type_vocab_size"],
            layer_norm_eps=hf.get("layer_norm_eps", 1e-12),
            activation=_GATES[gate],
            halved_slopes=_has_code_of_its_own(hf) and "JinaBertForSequenceClassification" in hf["architectures"],
        )


def _has_code_of_its_own(hf: Mapping[str, Any]) -> bool:
    """Whether the code that goes with the checkpoint is in its folder, not in a repository that others share."""
    places = [place for place in (hf.get("auto_map") or {}).values() if isinstance(place, str)]
    return bool(places) and bool(hf.get("architectures")) and not any("--" in place for place in places)


@dataclass(frozen=True, slots=True)
class _Layer:
    """`qkv`, or of the layers that norm queries and keys `query`, `key` and `value`."""

    out: Weight
    out_bias: Tensor
    attention_norm: Norm
    up: Weight
    down: Weight
    down_bias: Tensor
    mlp_norm: Norm
    qkv: Weight | None = None
    qkv_bias: Tensor | None = None
    query: Weight | None = None
    query_bias: Tensor | None = None
    key: Weight | None = None
    key_bias: Tensor | None = None
    value: Weight | None = None
    value_bias: Tensor | None = None
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    again_norm: Norm | None = None


class JinaBert(Model):
    """The encoder up to its last hidden states; heads and poolers belong to the tasks.

    No sequence is longer than `max_positions`: the bias is a table of distances, which ends there.
    """

    learnt_positions = True
    gpu_dtype = "fp16"
    layers: list[_Layer]

    def __init__(self, config: JinaBertConfig, weights: Weights, ops: Ops, linears: tuple[str, ...]) -> None:
        self.config = config
        self.hidden_size = config.hidden_size
        self.vocab_size = config.vocab_size
        self.max_positions = config.max_position_embeddings
        slopes = alibi_slopes(config.num_attention_heads, halved=config.halved_slopes)
        self.distance_bias = ops.vector(alibi_bias(slopes, config.max_position_embeddings))
        self.word = ops.table(weights["word"])
        self.token_type = ops.table(weights["token_type"]) if config.type_vocab_size else None
        self.embedding_norm = layer_norm(ops, weights, "embedding_norm", config.layer_norm_eps)
        self.layers = [
            _load_layer(weights, f"layers.{i}.", linears, config, ops) for i in range(config.num_hidden_layers)
        ]
        self.matrices = matrix_sources(weights, config.num_hidden_layers, linears, ".weight")

    @classmethod
    def load(cls, hf: Mapping[str, Any], source: TensorSource, ops: Ops) -> "JinaBert":
        """Strictly from the checkpoint's tensors, with or without the prefix of a checkpoint with a head."""
        config = JinaBertConfig.from_hf(hf)
        linears, norms = layer_names(any(name.endswith(_NORMED_QK) for name in source.tensors))
        if config.halved_slopes:
            logger.info("ALiBi slopes past the largest power of two are halved, as by jina-reranker-v1's own code")
        needed = parameters(config, linears, norms)
        ignored = (*IGNORED, *beside_encoder(hf))
        return cls(config, bind(source, needed, prefixes=("bert.",), ignore=ignored), ops, tuple(linears))

    def __call__(
        self, ops: Ops, batch: Batch, on_layer: OnLayer | None = None, on_keys: OnKeys | None = None
    ) -> Tensor:
        """Packed batch -> hidden_states [T, hidden_size], or of the wanted rows; `on_keys` is not called."""
        lookups = [(self.word, batch.input_ids)]
        if self.token_type is not None:
            lookups.append((self.token_type, batch.token_type_ids))
        hidden_states = ops.embed(lookups, self.embedding_norm)
        for number, layer in enumerate(self.layers):
            if on_layer is not None:
                on_layer(number, hidden_states)
            hidden_states = self._run_layer(ops, layer, hidden_states, batch)
        return hidden_states

    def _run_layer(self, ops: Ops, layer: _Layer, hidden_states: Tensor, batch: Batch) -> Tensor:
        config = self.config
        wanted = batch.wanted if layer is self.layers[-1] else None
        context = ops.attention(
            _qkv(ops, layer, hidden_states),
            batch,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_attention_heads,
            head_dim=config.head_dim,
            scale=config.head_dim**-0.5,
            rows=wanted,
            distance_bias=self.distance_bias,
        )
        hidden_states = hidden_states if wanted is None else ops.rows(hidden_states, wanted)
        attended = ops.linear(context, layer.out, layer.out_bias, residual=hidden_states)
        attended = ops.norm(attended, layer.attention_norm, None if layer.again_norm is None else hidden_states)
        if layer.again_norm is not None:
            attended = ops.norm(attended, layer.again_norm)
        wide = ops.gated_linear(attended, layer.up, None, config.activation)
        return ops.norm(ops.linear(wide, layer.down, layer.down_bias, residual=attended), layer.mlp_norm)


def _qkv(ops: Ops, layer: _Layer, hidden_states: Tensor) -> Tensor:
    """Queries, keys and values [T, 3 * hidden_size]; the norms are over all heads at once."""
    if layer.query_norm is None or layer.key_norm is None:
        return ops.linear(hidden_states, layer.qkv, layer.qkv_bias)
    query = ops.norm(ops.linear(hidden_states, layer.query, layer.query_bias), layer.query_norm)
    key = ops.norm(ops.linear(hidden_states, layer.key, layer.key_bias), layer.key_norm)
    return ops.concat([query, key, ops.linear(hidden_states, layer.value, layer.value_bias)])


def layer_names(normed: bool) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """A layer's linear layers and norms, ours -> the checkpoint's; `normed`: of queries and keys too.

    Gate and value of the MLP are one tensor: the gate first, but with such norms the value.
    """
    linears: dict[str, tuple[str, ...]] = {"out": ("attention.output.dense",)}
    norms = {"attention_norm": "attention.output.LayerNorm"}
    if not normed:
        linears |= {"qkv": tuple(f"attention.self.{part}" for part in _QKV)}
        return {**linears, "up": ("mlp.gated_layers",), "down": ("mlp.wo",)}, {**norms, "mlp_norm": "mlp.layernorm"}
    linears |= {part: (f"attention.self.{part}",) for part in _QKV}
    norms |= {"query_norm": "attention.self.layer_norm_q", "key_norm": "attention.self.layer_norm_k"}
    norms |= {"again_norm": "layer_norm_1", "mlp_norm": "layer_norm_2"}
    return {**linears, "up": ("mlp.up_gated_layer",), "down": ("mlp.down_layer",)}, norms


def parameters(
    config: JinaBertConfig, linears: Mapping[str, tuple[str, ...]], norms: Mapping[str, str]
) -> dict[str, Parameter]:
    """Our parameter -> the checkpoint's tensors and the shape they make together."""
    hidden, wide = config.hidden_size, config.intermediate_size
    needed = {"word": Parameter(("embeddings.word_embeddings.weight",), (config.vocab_size, hidden))}
    if config.type_vocab_size:
        shape = (config.type_vocab_size, hidden)
        needed["token_type"] = Parameter(("embeddings.token_type_embeddings.weight",), shape)
    shapes = {"qkv": (3 * hidden, hidden), "up": (2 * wide, hidden), "down": (hidden, wide)}
    names = {"embedding_norm": "embeddings.LayerNorm"}
    for i in range(config.num_hidden_layers):
        ours, theirs = f"layers.{i}.", f"encoder.layer.{i}."
        for name, parts in linears.items():
            shape = shapes.get(name, (hidden, hidden))
            needed[f"{ours}{name}.weight"] = Parameter(tuple(f"{theirs}{part}.weight" for part in parts), shape)
            if name != "up":
                needed[f"{ours}{name}.bias"] = Parameter(tuple(f"{theirs}{part}.bias" for part in parts), shape[:1])
        names |= {f"{ours}{name}": f"{theirs}{part}" for name, part in norms.items()}
    for name, theirs in names.items():
        for kind in ("weight", "bias"):
            needed[f"{name}.{kind}"] = Parameter((f"{theirs}.{kind}",), (hidden,))
    return needed


def _load_layer(weights: Weights, prefix: str, linears: tuple[str, ...], config: JinaBertConfig, ops: Ops) -> _Layer:
    parts: dict[str, Any] = {}
    normed = "query" in linears
    for name in linears:
        weight = weights.matrix(f"{prefix}{name}.weight")
        parts[name] = ops.matrix(gate_first(weight) if normed and name == "up" else weight)
        if name != "up":
            parts[f"{name}_bias"] = ops.vector(weights[f"{prefix}{name}.bias"])
    for name in layer_names(normed)[1]:
        parts[name] = layer_norm(ops, weights, prefix + name, config.layer_norm_eps)
    return _Layer(**parts)
