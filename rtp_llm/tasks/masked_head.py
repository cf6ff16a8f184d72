"""A masked language model's head, found by its tensors' names: dense, activation, norm, a logit for each word."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from rtp_llm import config_files
from rtp_llm.checkpoint import Parameter, bind, canonical_names, open_tensors
from rtp_llm.errors import CheckpointError
from rtp_llm.ops import Norm, Ops, Tensor, Weight, optional_vector
from rtp_llm.tasks import TaskSource

_RENAMES = (
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
    (r"^lm_head\.norm\.", "lm_head.layer_norm."),  # of GTE's authors
)
_PREFIXES = ("bert.", "ernie.", "roberta.", "distilbert.", "mpnet.", "gte.", "new.", "nomic_bert.", "model.")
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


def load_masked_head(source: TaskSource) -> MaskedLanguageHead:
    """The head, strictly; CheckpointError where there is none, or config.json names an activation that is not known.

    Its words are its own where it has them, else the input's table unless config.json unties them: transformers 5 does
    not tie what a checkpoint has twice, with different numbers.
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
