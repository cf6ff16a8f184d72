"""BERT (Devlin et al. 2018), RoBERTa, DPR, ELECTRA: learnt positions, post-norm encoder layers.

Equal transformers' BertModel and RobertaModel, XLMRobertaModel, CamembertModel, DPR's encoders, ElectraModel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from rtp_llm.checkpoint import Parameter, TensorSource, Weights, bind
from rtp_llm.config_files import activation
from rtp_llm.core import Batch, FloatArray, Int32Array, QuantizedWeight
from rtp_llm.errors import CheckpointError
from rtp_llm.late_interaction import beside_encoder
from rtp_llm.models import Model, OnKeys, OnLayer, matrix_sources
from rtp_llm.models.adapted import chosen
from rtp_llm.models.sizes import check_names, read_sizes
from rtp_llm.ops import Norm, Ops, Relative, Tensor, Weight, layer_norm

_MATRICES = ("qkv", "out", "up", "down")
_FLASH_QKV = "mixer.Wqkv"
RENAMES = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
IGNORED = (
    r"^pooler\.", r"^cls\.", r"^lm_head\.", r"^classifier\.", r"^qa_outputs\.",
    r"^embeddings\.(position|token_type)_ids$", r"^dropout\.",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LayerNames:
    """Where a checkpoint has a layer's parts: `prefix` with the layer's number, then that of each part of ours."""

    prefix: str
    linears: Mapping[str, tuple[str, ...]]
    norms: Mapping[str, str]


NAMES = LayerNames(
    "encoder.layer.{}.",
    {
        "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
        "out": ("attention.output.dense",),
        "up": ("intermediate.dense",),
        "down": ("output.dense",),
    },
    {"attention_norm": "attention.output.LayerNorm", "mlp_norm": "output.LayerNorm"},
)


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """The keys of config.json that matter, by BERT's names; without token types `type_vocab_size` is 0.

    embedding_size  columns of the tables
    """

    vocab_size: int
    embedding_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    activation: str
    pad_token_id: int
    is_decoder: bool = False

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], names: Mapping[str, str] | None = None) -> "BertConfig":
        """Read config.json; CheckpointError where a key is missing or asks for what BERT here cannot do.

        names  BERT's key -> the one that this architecture has instead
        """
        names = names or {}
        check_names(hf, names)
        hf = {**hf, **{ours: hf[theirs] for ours, theirs in names.items() if theirs in hf}}
        position_type = hf.get("position_embedding_type", "absolute")
        if position_type != "absolute":
            raise CheckpointError(
                f"config.json: position_embedding_type {position_type!r}; only 'absolute' is supported"
            )
        if hf.get("add_cross_attention"):
            raise CheckpointError("config.json: add_cross_attention is true; a decoder beside an encoder is not served")
        activation_key = names.get("hidden_act", "hidden_act")
        return cls(
            **read_sizes(hf, names),
            embedding_size=hf["hidden_size"],
            max_position_embeddings=hf.get("max_position_embeddings") or 512,
            type_vocab_size=hf.get("type_vocab_size", 2),
            layer_norm_eps=hf.get("layer_norm_eps", 1e-12),
            activation=activation(hf, activation_key if activation_key in hf else "hidden_act"),
            pad_token_id=1 if hf.get("pad_token_id") is None else hf["pad_token_id"],
            is_decoder=bool(hf.get("is_decoder", False)),
        )


@dataclass(frozen=True, slots=True)
class EncoderLayer:
    """One layer's weights."""

    qkv: Weight
    qkv_bias: Tensor
    out: Weight
    out_bias: Tensor
    attention_norm: Norm
    up: Weight
    up_bias: Tensor
    down: Weight
    down_bias: Tensor
    mlp_norm: Norm
    relative: Relative | None = None


class Bert(Model):
    """The encoder up to its last hidden states; heads and poolers belong to the tasks.

    Where config.json has `is_decoder`, a token sees those before it only, as in transformers.
    """

    learnt_positions = True
    takes_adapters = True
    gpu_dtype: Literal["fp16", "bf16"] = "fp16"
    layers: list[EncoderLayer]
    prefix: ClassVar[str] = "bert."
    names: ClassVar[LayerNames] = NAMES
    renames: ClassVar[tuple[tuple[str, str], ...]] = RENAMES
    ignored: ClassVar[tuple[str, ...]] = IGNORED

    def __init__(self, config: BertConfig, weights: Weights, ops: Ops) -> None:
        self.config = config
        self.hidden_size = config.hidden_size
        self.vocab_size = config.vocab_size
        self.max_positions = config.max_position_embeddings
        self.causal = config.is_decoder
        self.scale = config.head_dim**-0.5
        self.distance_bias: Tensor | None = None
        self.word = ops.table(weights["word"])
        self.position = ops.table(weights["position"]) if "position" in weights else None
        self.token_type = ops.table(weights["token_type"]) if config.type_vocab_size else None
        self.embedding_norm = None
        if "embedding_norm.weight" in weights:
            self.embedding_norm = layer_norm(ops, weights, "embedding_norm", config.layer_norm_eps)
        self.layers = [self._load_layer(weights, f"layers.{i}.", ops) for i in range(config.num_hidden_layers)]
        self.matrices = matrix_sources(weights, config.num_hidden_layers, _MATRICES, ".weight")
        self.tables = {"word": weights.sources("word")[0]}

    @classmethod
    def load(cls, hf: Mapping[str, Any], source: TensorSource, ops: Ops) -> "Bert":
        """Strictly from the checkpoint's tensors, with or without the prefix of a checkpoint with a head."""
        config = cls.read_config(hf)
        ignored = (*cls.ignored, *beside_encoder(hf))
        weights = bind(source, cls.parameters(config), prefixes=(cls.prefix,), renames=cls.renames, ignore=ignored)
        return cls(config, weights, ops)

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> BertConfig:
        """What config.json says; CheckpointError as `BertConfig.from_hf`."""
        return BertConfig.from_hf(hf)

    @classmethod
    def parameters(cls, config: BertConfig) -> dict[str, Parameter]:
        """Our parameter -> the checkpoint's tensors and the shape they make together."""
        return parameters(config, cls.names)

    def _load_layer(self, weights: Weights, prefix: str, ops: Ops) -> EncoderLayer:
        qkv, qkv_bias = self._read_qkv(weights, prefix)
        parts = layer_parts(weights, prefix, self.config.layer_norm_eps, ops)
        return EncoderLayer(qkv=ops.matrix(qkv), qkv_bias=ops.vector(qkv_bias), **parts)

    def _read_qkv(self, weights: Weights, prefix: str) -> tuple[FloatArray | QuantizedWeight, FloatArray]:
        """A layer's weight of queries, keys and values, in this order [3 * hidden_size, hidden_size], and its bias."""
        return weights.matrix(f"{prefix}qkv.weight"), weights[f"{prefix}qkv.bias"]

    def __call__(
        self, ops: Ops, batch: Batch, on_layer: OnLayer | None = None, on_keys: OnKeys | None = None
    ) -> Tensor:
        """Packed batch -> hidden_states [T, hidden_size], or of the wanted rows; `on_keys` is not called."""
        ops = chosen(ops, batch) if self.adapters else ops
        hidden_states = self._embed(ops, batch)
        for number, layer in enumerate(self.layers):
            if on_layer is not None:
                on_layer(number, hidden_states)
            wanted = batch.wanted if number == len(self.layers) - 1 else None
            hidden_states = self._run_layer(ops, layer, hidden_states, batch, wanted)
        return hidden_states

    def _embed(self, ops: Ops, batch: Batch) -> Tensor:
        """-> what goes into the first layer, [T, hidden_size]."""
        return ops.embed(self._lookups(batch), self.embedding_norm)

    def _lookups(self, batch: Batch) -> list[tuple[Tensor, Int32Array]]:
        """Tables whose rows are summed, and which."""
        tables = (
            (self.word, batch.input_ids), (self.token_type, batch.token_type_ids), (self.position, batch.position_ids)
        )  # fmt: skip
        return [(table, ids) for table, ids in tables if table is not None]

    def _run_layer(
        self, ops: Ops, layer: EncoderLayer, hidden_states: Tensor, batch: Batch, wanted: Int32Array | None
    ) -> Tensor:
        context = self._attend(ops, layer, hidden_states, batch, wanted)
        hidden_states = hidden_states if wanted is None else ops.rows(hidden_states, wanted)
        attended = ops.norm(
            ops.linear(context, layer.out, layer.out_bias, residual=hidden_states), layer.attention_norm
        )
        wide = ops.linear(attended, layer.up, layer.up_bias, activation=self.config.activation)
        return ops.norm(ops.linear(wide, layer.down, layer.down_bias, residual=attended), layer.mlp_norm)

    def _attend(
        self, ops: Ops, layer: EncoderLayer, hidden_states: Tensor, batch: Batch, wanted: Int32Array | None
    ) -> Tensor:
        """What each token, or each wanted one, sees of the others: [T, hidden_size]."""
        config = self.config
        return ops.attention(
            ops.linear(hidden_states, layer.qkv, layer.qkv_bias),
            batch,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_attention_heads,
            head_dim=config.head_dim,
            scale=self.scale,
            causal=self.causal,
            rows=wanted,
            distance_bias=self.distance_bias,
            relative=layer.relative,
        )


class Roberta(Bert):
    """RoBERTa, XLM-RoBERTa, CamemBERT: positions count from pad_token_id + 1, and padding tokens stay at pad_token_id.

    A padding token in a packed batch is one that a caller wrote into the text.
    """

    prefix = "roberta."

    def __init__(self, config: BertConfig, weights: Weights, ops: Ops) -> None:
        super().__init__(config, weights, ops)
        self.max_positions = config.max_position_embeddings - config.pad_token_id - 1

    @classmethod
    def load(cls, hf: Mapping[str, Any], source: TensorSource, ops: Ops) -> Bert:
        """As BERT, by transformers' names or those of `FlashRoberta`."""
        is_flash = cls is Roberta and any(f".{_FLASH_QKV}." in name for name in source.tensors)
        return FlashRoberta.load(hf, source, ops) if is_flash else super().load(hf, source, ops)

    def prepare(self, batch: Batch) -> Batch:
        """Positions as fairseq's make_positions, sequence by sequence."""
        pad = self.config.pad_token_id
        counted = np.not_equal(batch.input_ids, pad).astype(np.int32)
        total = np.cumsum(counted, dtype=np.int32)
        before = np.concatenate([np.zeros(1, np.int32), total])[batch.cu_seqlens[:-1]]
        within = total - np.repeat(before, np.diff(batch.cu_seqlens))
        return replace(batch, position_ids=within * counted + np.int32(pad))


class FlashRoberta(Roberta):
    """XLM-RoBERTa by the names of xlm-roberta-flash-implementation, as jina-reranker-v2 has them."""

    names = LayerNames(
        "encoder.layers.{}.",
        {"qkv": (_FLASH_QKV,), "out": ("mixer.out_proj",), "up": ("mlp.fc1",), "down": ("mlp.fc2",)},
        {"attention_norm": "norm1", "mlp_norm": "norm2"},
    )
    renames = ((r"^emb_ln\.", "embeddings.LayerNorm."),)


class Dpr(Bert):
    """An encoder of questions or of passages (Karpukhin et al. 2020), whose vectors are the first token's.

    Equals transformers' DPRQuestionEncoder and DPRContextEncoder where nothing projects what they give.
    """

    renames = (*RENAMES, (r"^(question|ctx)_encoder\.bert_model\.", ""))

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> BertConfig:
        """As BERT's; CheckpointError for a projection of the vectors."""
        if hf.get("projection_dim"):
            raise CheckpointError(
                f"config.json: projection_dim {hf['projection_dim']}; a DPR is served whose vectors are not projected"
            )
        return BertConfig.from_hf(hf)


class Electra(Bert):
    """ELECTRA (Clark et al. 2020): where its tables are narrower than its layers, a linear layer widens their sum."""

    prefix = "electra."
    ignored = (*IGNORED, r"^discriminator_predictions\.", r"^generator_(predictions|lm_head)\.")

    def __init__(self, config: BertConfig, weights: Weights, ops: Ops) -> None:
        super().__init__(config, weights, ops)
        self.projection = None
        if "projection.weight" in weights:
            self.projection = ops.matrix(weights["projection.weight"]), ops.vector(weights["projection.bias"])

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> BertConfig:
        """With the width of the tables, by default that of transformers' ElectraConfig."""
        return replace(super().read_config(hf), embedding_size=hf.get("embedding_size", 128))

    @classmethod
    def parameters(cls, config: BertConfig) -> dict[str, Parameter]:
        """Those of BERT, and the projection."""
        needed, hidden = super().parameters(config), config.hidden_size
        if config.embedding_size != hidden:
            needed["projection.weight"] = Parameter(("embeddings_project.weight",), (hidden, config.embedding_size))
            needed["projection.bias"] = Parameter(("embeddings_project.bias",), (hidden,))
        return needed

    def _embed(self, ops: Ops, batch: Batch) -> Tensor:
        summed = super()._embed(ops, batch)
        return summed if self.projection is None else ops.linear(summed, *self.projection)


def parameters(config: BertConfig, names: LayerNames = NAMES) -> dict[str, Parameter]:
    """Our parameter -> the checkpoint's tensors and the shape they make together."""
    hidden, wide, embedding = config.hidden_size, config.intermediate_size, config.embedding_size
    needed = {
        "word": Parameter(("embeddings.word_embeddings.weight",), (config.vocab_size, embedding)),
        "position": Parameter(("embeddings.position_embeddings.weight",), (config.max_position_embeddings, embedding)),
        "embedding_norm.weight": Parameter(("embeddings.LayerNorm.weight",), (embedding,)),
        "embedding_norm.bias": Parameter(("embeddings.LayerNorm.bias",), (embedding,)),
    }
    if config.type_vocab_size:
        shape = (config.type_vocab_size, embedding)
        needed["token_type"] = Parameter(("embeddings.token_type_embeddings.weight",), shape)
    shapes = {"qkv": (3 * hidden, hidden), "out": (hidden, hidden), "up": (wide, hidden), "down": (hidden, wide)}
    for i in range(config.num_hidden_layers):
        needed |= layer_parameters(f"layers.{i}.", names.prefix.format(i), names, shapes)
    return needed


def layer_parameters(
    ours: str, theirs: str, names: LayerNames, shapes: Mapping[str, tuple[int, int]]
) -> dict[str, Parameter]:
    """Of one layer, whose parameters begin with `ours` here and with `theirs` there; `shapes` of its weights."""
    needed = {}
    for name, parts in names.linears.items():
        needed[f"{ours}{name}.weight"] = Parameter(tuple(f"{theirs}{p}.weight" for p in parts), shapes[name])
        needed[f"{ours}{name}.bias"] = Parameter(tuple(f"{theirs}{p}.bias" for p in parts), shapes[name][:1])
    for name, part in names.norms.items():
        for kind in ("weight", "bias"):
            needed[f"{ours}{name}.{kind}"] = Parameter((f"{theirs}{part}.{kind}",), shapes["out"][:1])
    return needed


def layer_parts(
    weights: Weights,
    prefix: str,
    eps: float,
    ops: Ops,
    matrices: Sequence[str] = ("out", "up", "down"),
    norms: Sequence[str] = ("attention_norm", "mlp_norm"),
) -> dict[str, Any]:
    """A layer's linear layers and norms of these names, as fields of a class of layers."""
    parts: dict[str, Any] = {}
    for name in matrices:
        parts[name] = ops.matrix(weights.matrix(f"{prefix}{name}.weight"))
        parts[f"{name}_bias"] = ops.vector(weights[f"{prefix}{name}.bias"])
    for name in norms:
        parts[name] = layer_norm(ops, weights, prefix + name, eps)
    return parts
