"""DeBERTa-v2 and v3 (He et al. 2021): BERT whose attention sees how far apart tokens are (disentangled attention).

Equals transformers' DebertaV2Model, but for the convolution of v2-xlarge.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np

from rtp_llm.checkpoint import Parameter, Weights
from rtp_llm.core import Batch, FloatArray, QuantizedWeight
from rtp_llm.errors import CheckpointError
from rtp_llm.models.bert import IGNORED, NAMES, Bert, BertConfig, LayerNames
from rtp_llm.models.distance import log_buckets
from rtp_llm.ops import Norm, Ops, Relative, Tensor
from rtp_llm.ops.numpy_ops import NumpyOps

# What attention may add, products of contents with positions and of positions with contents -> the projection that
# makes the positions' part.
_TYPES = {"c2p": "key", "p2c": "query"}
_NORMS = ("layer_norm", "none")
_LEAST_BUCKETS = 4


@dataclass(frozen=True, kw_only=True)
class DebertaConfig(BertConfig):
    """The keys of config.json that matter, by their own names.

    pos_att_type            some of "c2p" and "p2c"; they set the scale of the scores
    max_relative_positions  a number of tokens; in config.json it may stand for max_position_embeddings
    position_buckets        0: each distance has vectors of its own
    norm_rel_ebd            the vectors of distances are normed
    """

    position_biased_input: bool
    relative_attention: bool
    pos_att_type: tuple[str, ...]
    share_att_key: bool
    max_relative_positions: int
    position_buckets: int
    norm_rel_ebd: bool

    @property
    def span(self) -> int:
        """Half of the rows of the table of distances."""
        return self.position_buckets or self.max_relative_positions

    @property
    def relative_types(self) -> tuple[str, ...]:
        return self.pos_att_type if self.relative_attention else ()

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], names: Mapping[str, str] | None = None) -> "DebertaConfig":
        """Read config.json; CheckpointError where a key is missing or asks for what is not supported."""
        if hf.get("conv_kernel_size"):
            raise CheckpointError(
                f"config.json: conv_kernel_size {hf['conv_kernel_size']}: a convolution after the first layer "
                "(DeBERTa-v2-xlarge) is not supported"
            )
        defaults = {"type_vocab_size": 0, "layer_norm_eps": 1e-7}
        # NOTE: transformers' DebertaV2Model looks both ways, and for relative positions, whatever these say.
        fixed = {"is_decoder": False, "position_embedding_type": "absolute"}
        base = BertConfig.from_hf({**defaults, **hf, **fixed}, names)
        head_dim = hf.get("attention_head_size") or base.head_dim
        if head_dim != base.head_dim:
            raise CheckpointError(
                f"config.json: attention_head_size {head_dim}; only hidden_size / num_attention_heads is supported"
            )
        most = hf.get("max_relative_positions") or -1
        config = cls(
            **{**asdict(base), "embedding_size": hf.get("embedding_size") or base.hidden_size},
            position_biased_input=hf.get("position_biased_input", True) is not False,
            relative_attention=bool(hf.get("relative_attention")),
            pos_att_type=_some_of("pos_att_type", hf.get("pos_att_type"), tuple(_TYPES)),
            share_att_key=bool(hf.get("share_att_key")),
            max_relative_positions=most if most > 0 else base.max_position_embeddings,
            position_buckets=max(0, hf.get("position_buckets") or 0),
            norm_rel_ebd="layer_norm" in _some_of("norm_rel_ebd", hf.get("norm_rel_ebd"), _NORMS),
        )
        _check_buckets(config.position_buckets, config.max_relative_positions)
        return config


def _some_of(key: str, value: Any, known: tuple[str, ...]) -> tuple[str, ...]:
    """The words of a list, or of a string with bars between them; CheckpointError for one that is not known."""
    words = value.lower().split("|") if isinstance(value, str) else value or ()
    words = tuple(dict.fromkeys(word.strip() for word in words))
    if not set(words) <= set(known):
        raise CheckpointError(f"config.json: {key} {value!r}; only {', '.join(known)} are supported")
    return words


def _check_buckets(buckets: int, most: int) -> None:
    if buckets and (buckets < _LEAST_BUCKETS or buckets % 2 or most < buckets // 2 + 2):
        raise CheckpointError(
            f"config.json: position_buckets {buckets}, max_relative_positions {most}; an even number of buckets from "
            f"{_LEAST_BUCKETS} on is supported, and a distance of two over half of it"
        )


class Deberta(Bert):
    """The encoder up to its last hidden states.

    Where positions are relative alone, a sequence may have any length; `max_positions` is what it was trained with.
    """

    takes_adapters = False
    prefix = "deberta."
    names = LayerNames(
        NAMES.prefix,
        {
            "qkv": ("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
            **{name: NAMES.linears[name] for name in ("out", "up", "down")},
        },
        NAMES.norms,
    )
    # What attention does not ask for may be there; heads of language models have two names.
    ignored: ClassVar[tuple[str, ...]] = (
        *IGNORED, r"^embeddings\.position_embeddings\.", r"^encoder\.(LayerNorm|rel_embeddings)\.",
        r"^(lm|mask)_predictions\.",
    )  # fmt: skip
    reads_host = ("relative",)
    gpu_dtype = "bf16"

    def __init__(self, config: DebertaConfig, weights: Weights, ops: Ops) -> None:
        super().__init__(config, weights, ops)
        self.learnt_positions = config.position_biased_input
        self.scale = (config.head_dim * (1 + len(config.pos_att_type))) ** -0.5
        self.projection = ops.matrix(weights["projection.weight"]) if "projection.weight" in weights else None
        if config.relative_types:
            vectors = _vectors(weights, config)
            self.layers = [
                replace(layer, relative=_relative(weights, f"layers.{i}.", vectors, config, ops))
                for i, layer in enumerate(self.layers)
            ]

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> DebertaConfig:
        """What config.json says; CheckpointError as `DebertaConfig.from_hf`."""
        return DebertaConfig.from_hf(hf)

    @classmethod
    def parameters(cls, config: BertConfig) -> dict[str, Parameter]:
        """Those of BERT, the vectors of distances and what projects them."""
        assert isinstance(config, DebertaConfig)
        needed, hidden, size = super().parameters(config), config.hidden_size, config.embedding_size
        if not config.position_biased_input:
            del needed["position"]
        for part in ("weight", "bias"):
            needed[f"embedding_norm.{part}"] = Parameter((f"embeddings.LayerNorm.{part}",), (hidden,))
        if size != hidden:
            needed["projection.weight"] = Parameter(("embeddings.embed_proj.weight",), (hidden, size))
        if not config.relative_types:
            return needed
        needed["distances"] = Parameter(("encoder.rel_embeddings.weight",), (2 * config.span, hidden))
        if config.norm_rel_ebd:
            for part in ("weight", "bias"):
                needed[f"distance_norm.{part}"] = Parameter((f"encoder.LayerNorm.{part}",), (hidden,))
        for i in range(config.num_hidden_layers):
            for kind in config.relative_types:
                name, has_bias = cls.distance_projection(config, kind)
                theirs = f"{cls.names.prefix.format(i)}attention.self.{name}"
                needed[f"layers.{i}.{kind}.weight"] = Parameter((f"{theirs}.weight",), (hidden, hidden))
                if has_bias:
                    needed[f"layers.{i}.{kind}.bias"] = Parameter((f"{theirs}.bias",), (hidden,))
        return needed

    @classmethod
    def distance_projection(cls, config: DebertaConfig, kind: str) -> tuple[str, bool]:
        """Which linear layer of attention makes a kind's part of the distances, and whether it has a bias."""
        return f"{'' if config.share_att_key else 'pos_'}{_TYPES[kind]}_proj", True

    def _embed(self, ops: Ops, batch: Batch) -> Tensor:
        if self.projection is None:
            return super()._embed(ops, batch)
        assert self.embedding_norm is not None
        return ops.norm(ops.linear(ops.embed(self._lookups(batch)), self.projection), self.embedding_norm)


def _vectors(weights: Weights, config: DebertaConfig) -> FloatArray:
    """The table of distances, normed where it is -> [2 * span, hidden_size]."""
    rows = weights["distances"]
    if not config.norm_rel_ebd:
        return rows
    norm = Norm(weights["distance_norm.weight"], weights["distance_norm.bias"], config.layer_norm_eps)
    return NumpyOps().norm(rows, norm)


def _relative(weights: Weights, prefix: str, vectors: FloatArray, config: DebertaConfig, ops: Ops) -> Relative:
    """A layer's keys and queries of distances: constants, so that they are projected here and not in each batch."""
    buckets = log_buckets(config.position_buckets, config.max_relative_positions)
    # Both by the place of the query less that of the key: of keys the columns go the other way.
    rows = {"c2p": buckets[::-1], "p2c": buckets}
    tables: dict[str, Tensor] = {}
    for kind in config.relative_types:
        weight = weights.matrix(f"{prefix}{kind}.weight")
        if isinstance(weight, QuantizedWeight):
            weight = weight.values * weight.scales[:, None]
        projected = weight @ vectors.T
        if f"{prefix}{kind}.bias" in weights:
            projected += weights[f"{prefix}{kind}.bias"][:, None]
        # A GPU's kernel reads the vector of a distance, whose numbers should stand together.
        tables[kind] = ops.vector(np.ascontiguousarray(projected.T[rows[kind]]).T)
    return Relative(tables.get("c2p"), tables.get("p2c"))
