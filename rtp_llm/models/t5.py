"""T5's encoder (Raffel et al. 2020): pre-norm layers without positions, their scores biased by distance.

Equals transformers' T5EncoderModel and MT5EncoderModel. The decoder of a whole T5 is left unread.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rtp_llm.checkpoint import Parameter, TensorSource, Weights, bind, canonical_names
from rtp_llm.config_files import ACTIVATIONS
from rtp_llm.core import Batch
from rtp_llm.errors import CheckpointError
from rtp_llm.models import Model, OnKeys, OnLayer, matrix_sources
from rtp_llm.models.distance import distance_bias
from rtp_llm.models.sizes import check_names
from rtp_llm.ops import Norm, Ops, Tensor, Weight

_MATRICES = ("qkv", "out", "up", "down")
_ATTENTION, _MLP = "layer.0.SelfAttention.", "layer.1.DenseReluDense."
# The table of words has two names; which of them is there, `T5.load` looks for. The encoder's own comes first.
_WORDS = ("encoder.embed_tokens.weight", "shared.weight")
_KEYS = {
    "hidden_size": "d_model",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "head_dim": "d_kv",
}
# Where nobody says a limit; what bounds a text then is the time that its tokens take.
_LONGEST = 1 << 16
# Of a checkpoint with a token classifier's head.
_PREFIXES = ("transformer.",)
IGNORED = (r"^decoder\.", r"^lm_head\.", r"^classifier\.", *(rf"^{name}$" for name in _WORDS))


@dataclass(frozen=True, kw_only=True)
class T5Config:
    """The keys of config.json that matter, by their own names.

    is_gated, activation  from `feed_forward_proj`, or `is_gated_act` and `dense_act_fn`
    """

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int
    relative_attention_max_distance: int
    layer_norm_epsilon: float
    is_gated: bool
    activation: str

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> "T5Config":
        """Read config.json; CheckpointError where a key is missing or asks for what is not supported."""
        check_names(hf, _KEYS)
        if hf.get("is_decoder") or hf.get("is_causal"):
            raise CheckpointError("config.json: is_decoder or is_causal is true; of T5 the encoder is served")
        named = next((name for name in hf.get("architectures") or () if "T5ForSequenceClassification" in name), None)
        if named is not None:
            raise CheckpointError(
                f"config.json: architectures has {named}, whose head reads the decoder; of T5 the encoder is served, "
                "and T5ForTokenClassification"
            )
        projection = str(hf.get("feed_forward_proj", "relu"))
        # NOTE: as in transformers: T5 1.1 means the tanh form of gelu, and says gelu; what it makes of these words it
        # writes beside them, and reads from there.
        name = "gelu_new" if projection == "gated-gelu" else projection.removeprefix("gated-")
        name = hf.get("dense_act_fn") or name
        if name not in ACTIVATIONS:
            raise CheckpointError(
                f"config.json: feed_forward_proj {projection!r} is not one of {', '.join(ACTIVATIONS)}, alone or "
                "after 'gated-'"
            )
        try:
            config = cls(
                **{key: hf[key] for key in ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")},
                relative_attention_num_buckets=hf.get("relative_attention_num_buckets", 32),
                relative_attention_max_distance=hf.get("relative_attention_max_distance", 128),
                layer_norm_epsilon=hf.get("layer_norm_epsilon", 1e-6),
                is_gated=bool(hf.get("is_gated_act", projection.startswith("gated-"))),
                activation=ACTIVATIONS[name],
            )
        except KeyError as error:
            raise CheckpointError(f"config.json: {error.args[0]} is missing") from None
        buckets, distance = config.relative_attention_num_buckets, config.relative_attention_max_distance
        if buckets < 4 or distance <= buckets // 4:
            raise CheckpointError(
                f"config.json: relative_attention_num_buckets {buckets}, relative_attention_max_distance {distance}; "
                "at least 4 buckets are needed, and a distance over a quarter of them"
            )
        return config


@dataclass(frozen=True, slots=True)
class _Layer:
    attention_norm: Norm
    qkv: Weight
    out: Weight
    mlp_norm: Norm
    up: Weight
    down: Weight


class T5(Model):
    """The encoder up to its last hidden states, after the final norm.

    A token may be any distance away. n_positions of config.json, with which it was trained, is no limit: as in
    sentence-transformers, that is the tokenizer's.
    """

    max_positions = _LONGEST
    layers: list[_Layer]

    def __init__(self, config: T5Config, weights: Weights, ops: Ops) -> None:
        self.config = config
        self.hidden_size = config.d_model
        self.vocab_size = config.vocab_size
        self.word = ops.table(weights["word"])
        self.distance_bias = ops.vector(distance_bias(weights["distance_bias"], config.relative_attention_max_distance))
        self.layers = [_load_layer(weights, f"layers.{i}.", config, ops) for i in range(config.num_layers)]
        self.matrices = matrix_sources(weights, config.num_layers, _MATRICES)
        self.norm = _norm(weights, "norm", config, ops)

    @classmethod
    def load(cls, hf: Mapping[str, Any], source: TensorSource, ops: Ops) -> "T5":
        """Strictly from the checkpoint's tensors, but for a decoder."""
        config = T5Config.from_hf(hf)
        names = canonical_names(source, _PREFIXES, ())
        word = next((name for name in _WORDS if name in names), _WORDS[0])
        return cls(config, bind(source, parameters(config, word), prefixes=_PREFIXES, ignore=IGNORED), ops)

    def __call__(
        self, ops: Ops, batch: Batch, on_layer: OnLayer | None = None, on_keys: OnKeys | None = None
    ) -> Tensor:
        """Packed batch -> hidden_states [T, hidden_size], or of the wanted rows; `on_keys` is not called."""
        hidden_states = ops.embed([(self.word, batch.input_ids)])
        for number, layer in enumerate(self.layers):
            if on_layer is not None:
                on_layer(number, hidden_states)
            hidden_states = self._run_layer(ops, layer, hidden_states, batch)
        return ops.norm(hidden_states, self.norm)

    def _run_layer(self, ops: Ops, layer: _Layer, hidden_states: Tensor, batch: Batch) -> Tensor:
        config = self.config
        wanted = batch.wanted if layer is self.layers[-1] else None
        context = ops.attention(
            ops.linear(ops.norm(hidden_states, layer.attention_norm), layer.qkv),
            batch,
            num_heads=config.num_heads,
            num_kv_heads=config.num_heads,
            head_dim=config.d_kv,
            scale=1.0,
            rows=wanted,
            distance_bias=self.distance_bias,
        )
        hidden_states = hidden_states if wanted is None else ops.rows(hidden_states, wanted)
        attended = ops.linear(context, layer.out, residual=hidden_states)
        normed = ops.norm(attended, layer.mlp_norm)
        if config.is_gated:
            wide = ops.gated_linear(normed, layer.up, None, config.activation)
        else:
            wide = ops.linear(normed, layer.up, activation=config.activation)
        return ops.linear(wide, layer.down, residual=attended)


class MT5(T5):
    """mT5, which is T5 1.1 with the words of many languages."""

    @classmethod
    def load(cls, hf: Mapping[str, Any], source: TensorSource, ops: Ops) -> T5:
        """As T5; where config.json does not name the MLP, by default as transformers' MT5Config."""
        return super().load({"feed_forward_proj": "gated-gelu", **hf}, source, ops)


def parameters(config: T5Config, word: str) -> dict[str, Parameter]:
    """Our parameter -> the checkpoint's tensors and the shape they make together; `word` is the table's name."""
    hidden, wide, heads = config.d_model, config.d_ff, config.num_heads * config.d_kv
    bias = f"encoder.block.0.{_ATTENTION}relative_attention_bias.weight"
    needed = {
        "word": Parameter((word,), (config.vocab_size, hidden)),
        "norm": Parameter(("encoder.final_layer_norm.weight",), (hidden,)),
        "distance_bias": Parameter((bias,), (config.relative_attention_num_buckets, config.num_heads)),
    }
    up = ("wi_0", "wi_1") if config.is_gated else ("wi",)
    linears = {
        "qkv": (tuple(_ATTENTION + part for part in "qkv"), 3 * heads, hidden),
        "out": ((f"{_ATTENTION}o",), hidden, heads),
        "up": (tuple(_MLP + part for part in up), len(up) * wide, hidden),
        "down": ((f"{_MLP}wo",), hidden, wide),
    }
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}.", f"encoder.block.{i}."
        for name, (parts, rows, columns) in linears.items():
            needed[ours + name] = Parameter(tuple(f"{theirs}{part}.weight" for part in parts), (rows, columns))
        for name, part in (("attention_norm", "layer.0"), ("mlp_norm", "layer.1")):
            needed[ours + name] = Parameter((f"{theirs}{part}.layer_norm.weight",), (hidden,))
    return needed


def _load_layer(weights: Weights, prefix: str, config: T5Config, ops: Ops) -> _Layer:
    matrices = {name: ops.matrix(weights.matrix(prefix + name)) for name in _MATRICES}
    norms = {name: _norm(weights, prefix + name, config, ops) for name in ("attention_norm", "mlp_norm")}
    return _Layer(**matrices, **norms)


def _norm(weights: Weights, name: str, config: T5Config, ops: Ops) -> Norm:
    return Norm(ops.vector(weights[name]), None, config.layer_norm_epsilon, "rms")
