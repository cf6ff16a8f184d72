"""ModernBERT (Warner et al. 2024): pre-norm encoder layers, rotary positions, windows in most layers, GeGLU.

Equals transformers' ModernBertModel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rtp_llm.checkpoint import Parameter, TensorSource, Weights, bind
from rtp_llm.config_files import activation
from rtp_llm.core import Batch
from rtp_llm.errors import CheckpointError
from rtp_llm.models import OnKeys, OnLayer, matrix_sources
from rtp_llm.models.decoder_config import FULL, SLIDING, layer_types
from rtp_llm.models.rope import Rope, RopeTables, RotaryModel
from rtp_llm.models.sizes import read_sizes
from rtp_llm.ops import Norm, Ops, Tensor, Weight, layer_norm, optional_vector

_MATRICES = ("qkv", "out", "gate_up", "down")
_BIASES = ("qkv_bias", "out_bias", "gate_up_bias", "down_bias")
# A layer's kind -> the older key of its rope's theta, and what it is without one.
_KINDS = {FULL: ("global_rope_theta", 160_000.0), SLIDING: ("local_rope_theta", 10_000.0)}
IGNORED = (r"^head\.", r"^classifier\.", r"^decoder\.")


@dataclass(frozen=True, kw_only=True)
class ModernBertConfig:
    """The keys of config.json that matter, by their own names.

    layer_types  of each layer: full_attention, or sliding_attention, which reaches `local_attention // 2` either way
    ropes        a rope for each kind of layer
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    norm_eps: float
    activation: str
    attention_bias: bool
    mlp_bias: bool
    norm_bias: bool
    local_attention: int
    layer_types: tuple[str, ...]
    ropes: Mapping[str, Rope]

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> "ModernBertConfig":
        """Read config.json; CheckpointError where a key is missing or asks for what is not supported."""
        sizes = read_sizes(hf)
        head_dim = sizes["hidden_size"] // sizes["num_attention_heads"]
        kinds = _kinds(hf)
        return cls(
            **sizes,
            norm_eps=hf.get("norm_eps", 1e-5),
            activation=activation(hf, "hidden_activation"),
            attention_bias=bool(hf.get("attention_bias", False)),
            mlp_bias=bool(hf.get("mlp_bias", False)),
            norm_bias=bool(hf.get("norm_bias", False)),
            local_attention=_local_attention(hf),
            layer_types=kinds,
            ropes={kind: _rope(hf, kind, head_dim) for kind in _KINDS if kind in kinds},
        )


def _local_attention(hf: Mapping[str, Any]) -> int:
    """Of transformers' two keys for one number `sliding_window`, which is half of it, comes first."""
    if hf.get("sliding_window") is not None:
        return 2 * int(hf["sliding_window"])
    return 128 if hf.get("local_attention") is None else int(hf["local_attention"])


def _kinds(hf: Mapping[str, Any]) -> tuple[str, ...]:
    """Each layer's kind: named, or every n-th from the first on looks at all tokens."""
    every = hf.get("global_attn_every_n_layers") or 3
    return tuple(layer_types(hf, [SLIDING if i % every else FULL for i in range(hf["num_hidden_layers"])]))


def _rope(hf: Mapping[str, Any], kind: str, head_dim: int) -> Rope:
    """The rope of one kind of layers, from `rope_parameters` by kind, or the older keys."""
    by_kind = hf.get("rope_parameters") or {}
    if hf.get("rope_scaling") or not {*by_kind} <= {*_KINDS}:
        key = "rope_scaling" if hf.get("rope_scaling") else "rope_parameters"
        raise CheckpointError(f"config.json: {key} {hf[key]}; rope_parameters of {', '.join(_KINDS)} are supported")
    key, default = _KINDS[kind]
    theta = hf.get(key, default)
    if theta is None:  # as transformers 4 read null: local layers turn as global ones
        theta = hf.get("global_rope_theta") or _KINDS[FULL][1]
    own = {"rope_theta": theta, **(by_kind.get(kind) or {})}
    partial = hf.get("partial_rotary_factor")
    parameters = {"rope_parameters": own, "partial_rotary_factor": partial}
    return Rope.from_hf(parameters, head_dim, hf.get("max_position_embeddings") or 8192)


@dataclass(frozen=True, slots=True)
class _Layer:
    """`attention_norm` is None in the first layer, which reads normed embeddings."""

    attention_norm: Norm | None
    qkv: Weight
    qkv_bias: Tensor | None
    out: Weight
    out_bias: Tensor | None
    mlp_norm: Norm
    gate_up: Weight
    gate_up_bias: Tensor | None
    down: Weight
    down_bias: Tensor | None


class ModernBert(RotaryModel):
    """The encoder up to its last hidden states, after the final norm; heads belong to the tasks."""

    layers: list[_Layer]

    def __init__(self, config: ModernBertConfig, weights: Weights, ops: Ops) -> None:
        self.config = config
        self.hidden_size = config.hidden_size
        self.vocab_size = config.vocab_size
        self.max_positions = max(rope.max_positions for rope in config.ropes.values())
        self.word = ops.table(weights["word"])
        self.embedding_norm = layer_norm(ops, weights, "embedding_norm", config.norm_eps)
        self.rope_tables = RopeTables(tuple(config.ropes.values()), ops)
        self.layers = [_load_layer(weights, f"layers.{i}.", config, ops) for i in range(config.num_hidden_layers)]
        self.matrices = matrix_sources(weights, config.num_hidden_layers, _MATRICES)
        self.norm = layer_norm(ops, weights, "norm", config.norm_eps)

    @classmethod
    def load(cls, hf: Mapping[str, Any], source: TensorSource, ops: Ops) -> "ModernBert":
        """Strictly from the checkpoint's tensors, with or without the `model.` prefix of one with a head."""
        config = ModernBertConfig.from_hf(hf)
        return cls(config, bind(source, parameters(config), prefixes=("model.",), ignore=IGNORED), ops)

    def __call__(
        self, ops: Ops, batch: Batch, on_layer: OnLayer | None = None, on_keys: OnKeys | None = None
    ) -> Tensor:
        """Packed batch -> hidden_states [T, hidden_size], or of the wanted rows; `on_keys` is not called."""
        cos_sin = dict(zip(self.config.ropes, self.rope_tables(ops, batch), strict=True))
        hidden_states = ops.embed([(self.word, batch.input_ids)], self.embedding_norm)
        for number, kind in enumerate(self.config.layer_types):
            if on_layer is not None:
                on_layer(number, hidden_states)
            hidden_states = self._run_layer(ops, number, hidden_states, cos_sin[kind], batch)
        return ops.norm(hidden_states, self.norm)

    def _run_layer(self, ops: Ops, number: int, hidden_states: Tensor, cos_sin: Tensor, batch: Batch) -> Tensor:
        config, layer = self.config, self.layers[number]
        wanted = batch.wanted if layer is self.layers[-1] else None
        heads: dict[str, Any] = {
            "num_heads": config.num_attention_heads,
            "num_kv_heads": config.num_attention_heads,
            "head_dim": config.head_dim,
        }
        normed = hidden_states if layer.attention_norm is None else ops.norm(hidden_states, layer.attention_norm)
        qkv = ops.rotary(ops.linear(normed, layer.qkv, layer.qkv_bias), cos_sin, **heads)
        is_local = config.layer_types[number] == SLIDING
        context = ops.attention(
            qkv,
            batch,
            **heads,
            scale=config.head_dim**-0.5,
            # NOTE: transformers' mask reaches local_attention // 2 tokens to either side, the last one included.
            window=config.local_attention // 2 + 1 if is_local else None,
            rows=wanted,
        )
        hidden_states = hidden_states if wanted is None else ops.rows(hidden_states, wanted)
        attended = ops.linear(context, layer.out, layer.out_bias, residual=hidden_states)
        normed = ops.norm(attended, layer.mlp_norm)
        wide = ops.gated_linear(normed, layer.gate_up, layer.gate_up_bias, config.activation)
        return ops.linear(wide, layer.down, layer.down_bias, residual=attended)


def parameters(config: ModernBertConfig) -> dict[str, Parameter]:
    """Our parameter -> the checkpoint's tensors and their shape."""
    hidden, wide = config.hidden_size, config.intermediate_size
    needed = {"word": Parameter(("embeddings.tok_embeddings.weight",), (config.vocab_size, hidden))}
    norms = {"embedding_norm": "embeddings.norm", "norm": "final_norm"}
    for i in range(config.num_hidden_layers):
        prefix = f"layers.{i}."
        linears = {
            "qkv": ("attn.Wqkv", 3 * hidden, hidden, config.attention_bias),
            "out": ("attn.Wo", hidden, hidden, config.attention_bias),
            "gate_up": ("mlp.Wi", 2 * wide, hidden, config.mlp_bias),
            "down": ("mlp.Wo", hidden, wide, config.mlp_bias),
        }
        for name, (theirs, rows, columns, has_bias) in linears.items():
            needed[prefix + name] = Parameter((f"{prefix}{theirs}.weight",), (rows, columns))
            if has_bias:
                needed[f"{prefix}{name}_bias"] = Parameter((f"{prefix}{theirs}.bias",), (rows,))
        norms |= {f"{prefix}attention_norm": f"{prefix}attn_norm"} if i else {}
        norms[f"{prefix}mlp_norm"] = f"{prefix}mlp_norm"
    for name, theirs in norms.items():
        needed[f"{name}.weight"] = Parameter((f"{theirs}.weight",), (hidden,))
        if config.norm_bias:
            needed[f"{name}.bias"] = Parameter((f"{theirs}.bias",), (hidden,))
    return needed


def _load_layer(weights: Weights, prefix: str, config: ModernBertConfig, ops: Ops) -> _Layer:
    has_norm, eps = f"{prefix}attention_norm.weight" in weights, config.norm_eps
    return _Layer(
        attention_norm=layer_norm(ops, weights, f"{prefix}attention_norm", eps) if has_norm else None,
        mlp_norm=layer_norm(ops, weights, f"{prefix}mlp_norm", eps),
        **{name: ops.matrix(weights.matrix(prefix + name)) for name in _MATRICES},
        **{name: optional_vector(ops, weights, prefix + name) for name in _BIASES},
    )
