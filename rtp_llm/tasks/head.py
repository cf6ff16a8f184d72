"""A checkpoint's classification head, found by its tensors' names. Equals transformers' *ForSequenceClassification.

classifier.dense, classifier.out_proj   RoBERTa, XLM-R, CamemBERT: first token, dense, tanh, out_proj
pooler.dense, classifier                BERT: first token, pooler, tanh, classifier
dense, classifier                       EuroBERT: dense, gelu, classifier; which tokens, classifier_pooling says
score                                   decoders: last token that is not the padding token, score
classifier                              one linear layer: on a causal model's last token, else on the first
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from rtp_llm.checkpoint import Parameter, TensorSource, bind, open_tensors
from rtp_llm.core import Batch, Reads
from rtp_llm.errors import CheckpointError
from rtp_llm.ops import Ops, PoolMode, Tensor, Weight
from rtp_llm.tasks import TaskSource

_PREFIXES = ("bert.", "roberta.", "model.")


class _Layout(NamedTuple):
    """`hidden`, a layer with an activation before the last one, may be absent."""

    hidden: str | None
    last: str
    mode: PoolMode
    activation: str = "tanh"
    late: bool = False


_LAYOUTS = (
    _Layout("classifier.dense", "classifier.out_proj", "cls"),
    _Layout("pooler.dense", "classifier", "cls"),
    _Layout("dense", "classifier", "mean", "gelu"),
    _Layout(None, "score", "lasttoken"),
    _Layout(None, "classifier", "cls"),
)


# EuroBERT's classifier_pooling -> the rows that are read; `late` is the mean of what the hidden layer gives.
_POOLINGS: dict[str, PoolMode] = {"bos": "cls", "mean": "mean", "late": "mean"}


@dataclass(frozen=True, slots=True)
class Linear:
    """One layer's weights."""

    weight: Weight
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class Head:
    """One row of `num_labels` logits a sequence.

    unread_end  a token that is not read at the end of a sequence, be it padding or written there; None: there is none
    activation  of the hidden layer
    late        whether the hidden layer is that of every token, and what it gives is pooled
    """

    mode: PoolMode
    hidden: Linear | None
    last: Linear
    num_labels: int
    unread_end: int | None = None
    activation: str = "tanh"
    late: bool = False

    @property
    def reads(self) -> Reads:
        """The rows it is given to read."""
        if self.mode == "cls":
            return "first"
        return "last" if self.mode == "lasttoken" else "all"

    def __call__(self, ops: Ops, hidden_states: Tensor, batch: Batch) -> Tensor:
        """[T, H] -> [B, num_labels]."""
        x = hidden_states if self.late else ops.pool(hidden_states, batch, self.mode)
        if self.hidden is not None:
            x = ops.linear(x, self.hidden.weight, self.hidden.bias, self.activation)
        # NOTE: the last layer's mean over tokens is the last layer of the mean, which is less to compute.
        x = ops.pool(x, batch, self.mode) if self.late else x
        return ops.linear(x, self.last.weight, self.last.bias)


def load_head(source: TaskSource) -> Head:
    """The head, strictly; CheckpointError where there is none, or where it does not fit config.json."""
    config, hidden_size = source.model_config, source.hidden_size
    tensors = open_tensors(config.transformer_folder)
    shapes = {_stripped(name): info.shape for name, info in tensors.tensors.items()}
    layout = _find_layout(shapes, source, tensors)
    (num_labels,) = shapes[f"{layout.last}.weight"][:1] or (0,)
    if num_labels != len(config.labels):
        raise CheckpointError(
            f"{tensors.path}: {layout.last}.weight has {num_labels} rows, but config.json names {len(config.labels)} "
            "labels (id2label or num_labels)"
        )
    widths = {layout.last: num_labels} | ({layout.hidden: hidden_size} if layout.hidden else {})
    needed = {}
    for layer, rows in widths.items():
        needed[f"{layer}.weight"] = Parameter((f"{layer}.weight",), (rows, hidden_size))
        if f"{layer}.bias" in shapes:
            needed[f"{layer}.bias"] = Parameter((f"{layer}.bias",), (rows,))
    # What belongs to the encoder is the model's to be strict about.
    weights = bind(tensors, needed, prefixes=_PREFIXES, ignore=("",))
    linears = {
        layer: Linear(
            source.ops.matrix(weights[f"{layer}.weight"]),
            source.ops.vector(weights[f"{layer}.bias"]) if f"{layer}.bias" in needed else None,
        )
        for layer in widths
    }
    tensors.close()
    hidden = linears[layout.hidden] if layout.hidden else None
    # transformers looks for the padding token's id, whoever wrote it: modeling_layers.GenericForSequenceClassification.
    unread = config.hf.get("pad_token_id") if layout.last == "score" and source.causal else None
    last = linears[layout.last]
    return Head(layout.mode, hidden, last, num_labels, unread, layout.activation, layout.late)


def _find_layout(shapes: Mapping[str, tuple[int, ...]], source: TaskSource, tensors: TensorSource) -> _Layout:
    for layout in _LAYOUTS:
        if all(f"{layer}.weight" in shapes for layer in (layout.hidden, layout.last) if layer):
            if layout.hidden == "dense":
                return _pooled(layout, source.model_config.hf.get("classifier_pooling") or "late")
            is_plain = layout.hidden is None and layout.last == "classifier"
            return layout._replace(mode="lasttoken") if is_plain and source.causal else layout
    known = "; ".join(" with ".join(layer for layer in (item.hidden, item.last) if layer) for item in _LAYOUTS)
    raise CheckpointError(f"{tensors.path} has no classification head (one of: {known}); choose another --task_type")


def _pooled(layout: _Layout, pooling: str) -> _Layout:
    """As classifier_pooling says."""
    if pooling not in _POOLINGS:
        raise CheckpointError(f"config.json: classifier_pooling {pooling!r} is not one of {', '.join(_POOLINGS)}")
    return layout._replace(mode=_POOLINGS[pooling], late=pooling == "late")


def _stripped(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name
