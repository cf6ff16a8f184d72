"""SPLADE: how much each word of the vocabulary says of a text, by the masked language model's head.

log1p(relu(logits)), the maximum over all tokens, special ones included. Equals sentence-transformers' SparseEncoder of
a Transformer for fill-mask and SpladePooling. The logarithm rises with its argument, so the maximum comes first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rtp_llm import config_files
from rtp_llm.checkpoint import Parameter, bind, open_tensors, read_json
from rtp_llm.core import Batch, FloatArray, Int32Array, Params, Reads, Rows, SparseVector
from rtp_llm.errors import CheckpointError
from rtp_llm.model_config import Module
from rtp_llm.ops import Norm, Ops, Tensor, Weight
from rtp_llm.tasks import TaskSource, Vocabulary

_RENAMES = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
_PREFIXES = ("bert.", "roberta.", "distilbert.", "mpnet.")
_LOGARITHMS = {"relu": 1, "log1p_relu": 2}


class _Names(NamedTuple):
    """Where the parts of a head are: `words` of one that is not tied, config.json's key of the activation (gelu)."""

    dense: str
    norm: str
    words: str
    bias: str
    activation_key: str | None = None


_HEADS = (
    _Names(
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.decoder",
        "cls.predictions.bias",
        "hidden_act",
    ),
    _Names("vocab_transform", "vocab_layer_norm", "vocab_projector", "vocab_projector.bias", "activation"),
    _Names("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias"),
)


@dataclass(frozen=True, slots=True)
class MaskedLanguageHead:
    """The head of BERT, RoBERTa, DistilBERT and MPNet: dense, activation, norm, a logit for each word."""

    dense: Weight
    dense_bias: Tensor
    activation: str
    norm: Norm
    words: Weight
    words_bias: Tensor

    def __call__(self, ops: Ops, hidden_states: Tensor) -> Tensor:
        """[T, H] -> relu of the logits [T, vocabulary]."""
        x = ops.norm(ops.linear(hidden_states, self.dense, self.dense_bias, self.activation), self.norm)
        return ops.linear(x, self.words, self.words_bias, "relu")


class Splade:
    """A SparseVector over the vocabulary an input; `logarithms` is how often log1p is taken."""

    per_token = False
    reads: Reads = "all"

    def __init__(self, head: MaskedLanguageHead, logarithms: int, vocabulary: Vocabulary, dimension: int) -> None:
        self.head = head
        self.logarithms = logarithms
        self.vocabulary = vocabulary
        self.dimension = dimension

    @classmethod
    def load(cls, source: TaskSource) -> "Splade":
        """The head, and what SpladePooling's config.json says."""
        module = source.model_config.splade
        assert module is not None
        logarithms = _logarithms(module)
        return cls(_load_head(source), logarithms, source.vocabulary, int(source.model_config.hf["vocab_size"]))

    def __call__(self, ops: Ops, hidden_states: Tensor, batch: Batch) -> Tensor:
        """[T, H] -> [B, vocabulary]: the largest of each word's logits, 0 at least."""
        return ops.pool(self.head(ops, hidden_states), batch, "max")

    def check(self, params: Params) -> None:
        """Any parameters will do."""

    def finish(self, rows: Rows, params: Params, input_ids: Sequence[Int32Array]) -> list[SparseVector]:
        """-> what is above 0 of each row."""
        return [self._vector(row, params.return_tokens) for row in rows]

    def _vector(self, row: FloatArray, return_tokens: bool) -> SparseVector:
        indices = np.flatnonzero(row).astype(np.int32)
        values = row[indices]
        for _ in range(self.logarithms):
            values = np.log1p(values)
        tokens = tuple(map(self.vocabulary.piece, indices.tolist())) if return_tokens else None
        return SparseVector(indices, values, tokens)


def _logarithms(module: Module) -> int:
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
    """Strictly, by its names; its words are the input's table unless config.json unties them."""
    hf, ops, hidden = source.model_config.hf, source.ops, source.hidden_size
    tensors = open_tensors(source.model_config.transformer_folder)
    names = next((names for names in _HEADS if f"{names.dense}.weight" in tensors.tensors), _HEADS[-1])
    tied = hf.get("tie_word_embeddings") is not False
    own = f"{names.words}.bias"
    bias = own if not tied and own in tensors.tensors else names.bias
    needed = {
        "dense": Parameter((f"{names.dense}.weight",), (hidden, hidden)),
        "dense_bias": Parameter((f"{names.dense}.bias",), (hidden,)),
        "norm": Parameter((f"{names.norm}.weight",), (hidden,)),
        "norm_bias": Parameter((f"{names.norm}.bias",), (hidden,)),
        "words": Parameter(
            ("embeddings.word_embeddings.weight" if tied else f"{names.words}.weight",), (hf["vocab_size"], hidden)
        ),
        "words_bias": Parameter((bias,), (hf["vocab_size"],)),
    }
    # What belongs to the encoder is the model's to be strict about.
    weights = bind(tensors, needed, prefixes=_PREFIXES, renames=_RENAMES, ignore=("",))
    head = MaskedLanguageHead(
        dense=ops.matrix(weights["dense"]),
        dense_bias=ops.vector(weights["dense_bias"]),
        activation="gelu" if names.activation_key is None else config_files.activation(hf, names.activation_key),
        norm=Norm(
            ops.vector(weights["norm"]), ops.vector(weights["norm_bias"]), float(hf.get("layer_norm_eps", 1e-12))
        ),
        words=ops.matrix(weights["words"]),
        words_bias=ops.vector(weights["words_bias"]),
    )
    tensors.close()
    return head
