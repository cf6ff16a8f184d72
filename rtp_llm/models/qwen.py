"""Qwen2 and Qwen3: pre-norm decoder layers, rotary positions, grouped key heads, SwiGLU.

Equal transformers' Qwen2Model and Qwen3Model, causal or, where config.json has `is_causal` false, bidirectional.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rtp_llm.checkpoint import Parameter, TensorSource, Weights, bind
from rtp_llm.core import Batch
from rtp_llm.errors import CheckpointError
from rtp_llm.models import OnKeys, OnLayer
from rtp_llm.models.rope import Rope, RopeTables
from rtp_llm.ops import Norm, Ops, Tensor, Weight

# Hugging Face's name of the activation -> ours.
_ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}  # fmt: skip
_MATRICES = ("qkv", "out", "gate_up", "down")
IGNORED = (r"^lm_head\.", r"^score\.", r"^classifier\.", r"rotary_emb\.inv_freq$")


@dataclass(frozen=True, kw_only=True)
class QwenConfig:
    """The keys of config.json that matter, by their own names.

    windows  of each layer: tokens that one sees before itself, itself included (`causal`), or to either side; None: all
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    activation: str
    causal: bool
    qkv_bias: bool
    out_bias: bool
    head_norms: bool
    windows: tuple[int | None, ...]
    rope: Rope

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], *, qwen3: bool) -> "QwenConfig":
        """Read config.json; CheckpointError where a key is missing or asks for what is not supported."""
        hidden, num_heads = _integer(hf, "hidden_size"), _integer(hf, "num_attention_heads")
        num_kv_heads = _integer(hf, "num_key_value_heads", num_heads)
        head_dim = _integer(hf, "head_dim", 128 if qwen3 else hidden // num_heads)
        if num_heads % num_kv_heads:
            raise CheckpointError(
                f"config.json: num_attention_heads {num_heads} is not a multiple of num_key_value_heads {num_kv_heads}"
            )
        activation = _ACTIVATIONS.get(hf.get("hidden_act", "silu"))
        if activation is None:
            raise CheckpointError(
                f"config.json: hidden_act {hf['hidden_act']!r} is not one of {', '.join(_ACTIVATIONS)}"
            )
        causal = bool(hf.get("is_causal", True))
        return cls(
            vocab_size=_integer(hf, "vocab_size"),
            hidden_size=hidden,
            num_hidden_layers=_integer(hf, "num_hidden_layers"),
            num_attention_heads=num_heads,
            num_key_value_heads=num_kv_heads,
            head_dim=head_dim,
            intermediate_size=_integer(hf, "intermediate_size"),
            rms_norm_eps=hf.get("rms_norm_eps", 1e-6),
            activation=activation,
            causal=causal,
            qkv_bias=bool(hf.get("attention_bias", False)) if qwen3 else True,
            out_bias=qwen3 and bool(hf.get("attention_bias", False)),
            head_norms=qwen3,
            windows=_windows(hf, causal),
            rope=Rope.from_hf(hf, head_dim, _integer(hf, "max_position_embeddings", 32768)),
        )


def _integer(hf: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = hf.get(key)
    value = default if value is None else value
    if type(value) is not int or value < 1:
        problem = "is missing" if value is None else f"{value!r} is not a positive whole number"
        raise CheckpointError(f"config.json: {key} {problem}")
    return value


def _windows(hf: Mapping[str, Any], causal: bool) -> tuple[int | None, ...]:
    """The sliding window of each layer, as transformers' Qwen2Config chooses the layers."""
    num_layers = _integer(hf, "num_hidden_layers")
    windowed = hf.get("use_sliding_window") and hf.get("sliding_window", 4096) is not None
    size = _integer(hf, "sliding_window", 4096) if windowed else None
    first = hf.get("max_window_layers", 28)
    layer_types = hf.get("layer_types") or [
        "sliding_attention" if size is not None and i >= first else "full_attention" for i in range(num_layers)
    ]
    if len(layer_types) != num_layers or not {*layer_types} <= {"full_attention", "sliding_attention"}:
        raise CheckpointError(
            f"config.json: layer_types {layer_types}; {num_layers} of full_attention, sliding_attention are needed"
        )
    if size is None:
        if "sliding_attention" in layer_types:
            raise CheckpointError("config.json: layer_types has sliding_attention, but use_sliding_window is not true")
        return (None,) * num_layers
    # NOTE: in transformers a window that looks back holds `size` tokens, one that looks both ways reaches `size` far.
    window = size if causal else size + 1
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)


@dataclass(frozen=True, slots=True)
class _Layer:
    input_norm: Norm
    qkv: Weight
    qkv_bias: Tensor | None
    q_norm: Norm | None
    k_norm: Norm | None
    out: Weight
    out_bias: Tensor | None
    mlp_norm: Norm
    gate_up: Weight
    down: Weight


class Qwen2:
    """The decoder up to its last hidden states, after the final norm; heads belong to the tasks."""

    is_qwen3: ClassVar[bool] = False
    learnt_positions = False

    def __init__(self, config: QwenConfig, weights: Weights, ops: Ops) -> None:
        self.config = config
        self.hidden_size = config.hidden_size
        self.vocab_size = config.vocab_size
        self.max_positions = config.rope.max_positions
        self.causal = config.causal
        # With dynamic NTK the angles of the first tokens depend on the length of the whole.
        self.shares_prefixes = config.causal and config.rope.rope_type != "dynamic"
        self.kv_size = 2 * config.num_key_value_heads * config.head_dim
        self.word = ops.table(weights["word"])
        self.rope_tables = RopeTables((config.rope,), ops)
        self.layers = [_load_layer(weights, f"layers.{i}.", config, ops) for i in range(config.num_hidden_layers)]
        self.matrices = {
            (i, name): weights.sources(f"layers.{i}.{name}")
            for i in range(config.num_hidden_layers)
            for name in _MATRICES
        }
        self.norm = _norm(weights, "norm", config, ops)

    @classmethod
    def load(cls, hf: Mapping[str, Any], source: TensorSource, ops: Ops) -> "Qwen2":
        """Strictly from the checkpoint's tensors, with or without the `model.` prefix."""
        config = QwenConfig.from_hf(hf, qwen3=cls.is_qwen3)
        return cls(config, bind(source, parameters(config), prefixes=("model.",), ignore=IGNORED), ops)

    def prepare(self, batch: Batch) -> Batch:
        """Positions count from 0; angles that the table lacks, of longer sequences, are computed for the batch."""
        return self.rope_tables.prepare(batch)

    def __call__(
        self, ops: Ops, batch: Batch, on_layer: OnLayer | None = None, on_keys: OnKeys | None = None
    ) -> Tensor:
        """Packed batch -> hidden_states [T, hidden_size], or of the wanted rows."""
        (cos_sin,) = self.rope_tables(ops, batch)
        hidden_states = ops.embed([(self.word, batch.input_ids)])
        for number, layer in enumerate(self.layers):
            if on_layer is not None:
                on_layer(number, hidden_states)
            qkv = self._qkv(ops, layer, hidden_states, cos_sin)
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
            scale=config.head_dim**-0.5,
            causal=config.causal,
            window=config.windows[number],
            rows=wanted,
            kept=[prefix.layers[number] for prefix in batch.kept],
        )
        hidden_states = hidden_states if wanted is None else ops.rows(hidden_states, wanted)
        attended = ops.linear(context, layer.out, layer.out_bias, residual=hidden_states)
        wide = ops.gated(ops.linear(ops.norm(attended, layer.mlp_norm), layer.gate_up), config.activation)
        return ops.linear(wide, layer.down, residual=attended)

    @property
    def _heads(self) -> dict[str, int]:
        config = self.config
        return {
            "num_heads": config.num_attention_heads,
            "num_kv_heads": config.num_key_value_heads,
            "head_dim": config.head_dim,
        }


class Qwen2Embedding(Qwen2):
    """Qwen2 that looks both ways, whatever config.json says: gte-Qwen2 as the original's model type names it."""

    @classmethod
    def load(cls, hf: Mapping[str, Any], source: TensorSource, ops: Ops) -> "Qwen2":
        return super().load({**hf, "is_causal": False}, source, ops)


class Qwen3(Qwen2):
    """Each query and key head is normed; no bias unless `attention_bias` asks for it; head_dim stands alone."""

    is_qwen3 = True


def parameters(config: QwenConfig) -> dict[str, Parameter]:
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
        "gate_up": (("mlp.gate_proj", "mlp.up_proj"), 2 * wide, hidden, False),
        "down": (("mlp.down_proj",), hidden, wide, False),
    }
    norms = {"input_norm": ("input_layernorm", hidden), "mlp_norm": ("post_attention_layernorm", hidden)}
    if config.head_norms:
        norms |= {"q_norm": ("self_attn.q_norm", config.head_dim), "k_norm": ("self_attn.k_norm", config.head_dim)}
    for prefix in (f"layers.{i}." for i in range(config.num_hidden_layers)):
        for name, (parts, rows, columns, bias) in linears.items():
            needed[prefix + name] = Parameter(tuple(f"{prefix}{part}.weight" for part in parts), (rows, columns))
            if bias:
                needed[f"{prefix}{name}_bias"] = Parameter(tuple(f"{prefix}{part}.bias" for part in parts), (rows,))
        for name, (part, size) in norms.items():
            needed[prefix + name] = Parameter((f"{prefix}{part}.weight",), (size,))
    return needed


def _load_layer(weights: Weights, prefix: str, config: QwenConfig, ops: Ops) -> _Layer:
    matrices = {name: ops.matrix(weights.matrix(prefix + name)) for name in _MATRICES}
    biases = {
        name: ops.vector(weights[prefix + name]) if prefix + name in weights else None
        for name in ("qkv_bias", "out_bias")
    }
    norms = {
        name: _norm(weights, prefix + name, config, ops) if prefix + name in weights else None
        for name in ("q_norm", "k_norm")
    }
    return _Layer(
        input_norm=_norm(weights, f"{prefix}input_norm", config, ops),
        mlp_norm=_norm(weights, f"{prefix}mlp_norm", config, ops),
        **matrices,
        **biases,
        **norms,
    )


def _norm(weights: Weights, name: str, config: QwenConfig, ops: Ops) -> Norm:
    return Norm(ops.vector(weights[name]), None, config.rms_norm_eps, "rms")
