"""SPLADE: how much each word of the vocabulary says of a text, by the masked language model's head.

log1p(relu(logits)), the maximum over all tokens, special ones included. Equals sentence-transformers' SparseEncoder of
a Transformer for fill-mask and SpladePooling. The logarithm rises with its argument, so the maximum comes first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rtp_llm import config_files
from rtp_llm.checkpoint import Parameter, bind, canonical_names, open_tensors, read_json
from rtp_llm.core import Batch, FloatArray, Int32Array, Params, Reads, Rows, SparseVector
from rtp_llm.errors import CheckpointError
from rtp_llm.modules import Module
from rtp_llm.ops import Norm, Ops, Tensor, Weight, optional_vector
from rtp_llm.tasks import TaskSource, Vocabulary
from rtp_llm.tasks.finishing import check_max_active_dims, sparse_vector

_RENAMES = (
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
    (r"^lm_head\.norm\.", "lm_head.layer_norm."),  # of GTE's authors
)
_PREFIXES = ("bert.", "ernie.", "roberta.", "distilbert.", "mpnet.", "gte.", "new.", "nomic_bert.", "model.")
_LOGARITHMS = {"relu": 1, "log1p_relu": 2}
# NomicBERT's gate and activation, named together by its authors -> the activation of its head.
_GATED = {"swiglu": "silu", "geglu": "gelu"}


class _Names(NamedTuple):
    """Where the parts of a head are, and config.json's words for it.

    words           of one that is not tied to the input's `table`
    bias            of the words, where it is not beside them
    activation_key  absent: gelu
    is_gates        the activation is that of the MLP's gate, NomicBERT's
    eps             keys of the norm's, and `default_eps` without one; DistilBERT reads none
    """

    dense: str
    norm: str
    words: str
    bias: str
    activation_key: str | None = None
    is_gates: bool = False
    eps: tuple[str, ...] = ("layer_norm_eps", "layer_norm_epsilon")
    default_eps: float = 1e-12
    table: str = "embeddings.word_embeddings.weight"


def _named(prefix: str, dense: str, norm: str, words: str, bias: str, **options: Any) -> _Names:
    return _Names(f"{prefix}{dense}", f"{prefix}{norm}", f"{prefix}{words}", f"{prefix}{bias}", **options)


_BERT = "cls.predictions."
_HEADS = (
    _named(_BERT, "transform.dense", "transform.LayerNorm", "decoder", "bias", activation_key="hidden_act"),
    _named(
        _BERT, "transform.dense", "transform.layer_norm", "decoder", "bias", activation_key="hidden_act", is_gates=True
    ),
    _named("vocab_", "transform", "layer_norm", "projector", "projector.bias", activation_key="activation", eps=()),
    _named("lm_head.", "dense", "layer_norm", "decoder", "bias"),
    _Names(
        "head.dense",
        "head.norm",
        "decoder",
        "decoder.bias",
        activation_key="classifier_activation",
        eps=("norm_eps",),
        default_eps=1e-5,
        table="embeddings.tok_embeddings.weight",
    ),
)


@dataclass(frozen=True, slots=True)
class MaskedLanguageHead:
    """Dense, activation, norm, a logit for each word."""

    dense: Weight
    dense_bias: Tensor | None
    activation: str
    norm: Norm
    words: Weight
    words_bias: Tensor | None

    def __call__(self, ops: Ops, hidden_states: Tensor) -> Tensor:
        """[T, H] -> relu of the logits [T, vocabulary]."""
        x = ops.norm(ops.linear(hidden_states, self.dense, self.dense_bias, self.activation), self.norm)
        return ops.linear(x, self.words, self.words_bias, "relu")


class Splade:
    """A SparseVector over the vocabulary an input.

    logarithms       how often log1p is taken
    max_active_dims  how many of its weights are kept, where a request does not say; None: all
    """

    per_token = False
    reads: Reads = "all"

    def __init__(
        self,
        head: MaskedLanguageHead,
        logarithms: int,
        vocabulary: Vocabulary,
        dimension: int,
        max_active_dims: int | None = None,
    ) -> None:
        self.head = head
        self.logarithms = logarithms
        self.vocabulary = vocabulary
        self.dimension = dimension
        self.max_active_dims = max_active_dims

    @classmethod
    def load(cls, source: TaskSource) -> "Splade":
        """The head, and what SpladePooling's config.json says, or without modules.json its default."""
        model_config = source.model_config
        logarithms = 1 if model_config.splade is None else logarithms_of(model_config.splade)
        size = int(model_config.hf["vocab_size"])
        return cls(_load_head(source), logarithms, source.vocabulary, size, model_config.max_active_dims)

    def with_logarithms(self, logarithms: int) -> "Splade":
        """The same head, after which log1p is taken so often."""
        return Splade(self.head, logarithms, self.vocabulary, self.dimension, self.max_active_dims)

    def __call__(self, ops: Ops, hidden_states: Tensor, batch: Batch) -> Tensor:
        """[T, H] -> [B, vocabulary]: the largest of each word's logits, 0 at least."""
        return ops.pool(self.head(ops, hidden_states), batch, "max")

    def check(self, params: Params) -> None:
        """`max_active_dims` must be at least 1."""
        check_max_active_dims(params)

    def finish(self, rows: Rows, params: Params, input_ids: Sequence[Int32Array]) -> list[SparseVector]:
        """-> what is above 0 of each row."""
        return [self.vector(row, params) for row in rows]

    def vector(self, row: FloatArray, params: Params) -> SparseVector:
        """One row's."""
        indices = np.flatnonzero(row).astype(np.int32)
        values = row[indices]
        for _ in range(self.logarithms):
            values = np.log1p(values)
        return sparse_vector(indices, values, params, self.vocabulary, self.max_active_dims)


def logarithms_of(module: Module) -> int:
    """How often a SpladePooling takes log1p; CheckpointError for a setting that is not served."""
    path = module.folder / "config.json"
    settings = read_json(module.folder, "config.json")
    config_files.log_unknown(path, settings, config_files.SPLADE)
    config_files.check(path, settings, config_files.SPLADE)
    if settings.get("pooling_strategy", "max") != "max":
        raise CheckpointError(f"{path}: pooling_strategy {settings['pooling_strategy']!r} is not served; 'max' is")
    activation = settings.get("activation_function", "relu")
    if activation not in _LOGARITHMS:
        raise CheckpointError(f"{path}: activation_function {activation!r} is not one of {', '.join(_LOGARITHMS)}")
    return _LOGARITHMS[activation]


def _load_head(source: TaskSource) -> MaskedLanguageHead:
    """Strictly, by its names; its words are its own where it has them, else the input's table unless config.json unties
    them: transformers 5 does not tie what a checkpoint has twice, with different numbers.
    """
    hf, ops, hidden = source.model_config.hf, source.ops, source.hidden_size
    tensors = open_tensors(source.model_config.transformer_folder)
    found = canonical_names(tensors, _PREFIXES, _RENAMES)
    names = next((names for names in _HEADS if {f"{names.dense}.weight", f"{names.norm}.weight"} <= found.keys()), None)
    if names is None:
        known = "; ".join(f"{names.dense} with {names.norm}" for names in _HEADS)
        raise CheckpointError(f"{tensors.path} has no masked language model's head (one of: {known})")
    own, vocab_size = f"{names.words}.weight", hf["vocab_size"]
    is_shared = own not in found and hf.get("tie_word_embeddings") is not False
    bias = next((name for name in (f"{names.words}.bias", names.bias) if name in found), None)
    needed = {
        "dense": Parameter((f"{names.dense}.weight",), (hidden, hidden)),
        "norm": Parameter((f"{names.norm}.weight",), (hidden,)),
        "words": Parameter((names.table if is_shared else own,), (vocab_size, hidden)),
    }
    for name, theirs in (("dense_bias", f"{names.dense}.bias"), ("norm_bias", f"{names.norm}.bias")):
        if theirs in found:
            needed[name] = Parameter((theirs,), (hidden,))
    if bias is not None:
        needed["words_bias"] = Parameter((bias,), (vocab_size,))
    # What belongs to the encoder is the model's to be strict about.
    weights = bind(tensors, needed, prefixes=_PREFIXES, renames=_RENAMES, ignore=("",))
    head = MaskedLanguageHead(
        dense=ops.matrix(weights["dense"]),
        dense_bias=optional_vector(ops, weights, "dense_bias"),
        activation=_activation(names, hf),
        norm=Norm(ops.vector(weights["norm"]), optional_vector(ops, weights, "norm_bias"), _eps(names, hf)),
        words=ops.matrix(weights["words"]),
        words_bias=optional_vector(ops, weights, "words_bias"),
    )
    tensors.close()
    return head


def _eps(names: _Names, hf: Mapping[str, Any]) -> float:
    return next((float(hf[key]) for key in names.eps if hf.get(key) is not None), names.default_eps)


def _activation(names: _Names, hf: Mapping[str, Any]) -> str:
    gated = hf.get("activation_function") if names.is_gates else None
    if gated is not None and gated not in _GATED:
        raise CheckpointError(f"config.json: activation_function {gated!r} is not one of {', '.join(_GATED)}")
    if gated is not None:
        return _GATED[gated]
    default = "silu" if names.is_gates else "gelu"
    return "gelu" if names.activation_key is None else config_files.activation(hf, names.activation_key, default)
