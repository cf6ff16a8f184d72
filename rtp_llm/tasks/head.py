"""A checkpoint's classification head, found by its tensors' names. Equals transformers' *ForSequenceClassification.

classifier.dense, classifier.out_proj   RoBERTa, XLM-R, CamemBERT: first token, dense, tanh, out_proj
pooler.dense, classifier                BERT: first token, pooler, tanh, classifier
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
    """`hidden`, a layer with tanh before the last one, may be absent."""

    hidden: str | None
    last: str
    mode: PoolMode


_LAYOUTS = (
    _Layout("classifier.dense", "classifier.out_proj", "cls"),
    _Layout("pooler.dense", "classifier", "cls"),
    _Layout(None, "score", "lasttoken"),
    _Layout(None, "classifier", "cls"),
)


@dataclass(frozen=True, slots=True)
class Linear:
    """One layer's weights."""

    weight: Weight
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class Head:
    """One row of `num_labels` logits a sequence.

    unread_end  a token that is not read at the end of a sequence, be it padding or written there; None: there is none
    """

    mode: PoolMode
    hidden: Linear | None
    last: Linear
    num_labels: int
    unread_end: int | None = None

    @property
    def reads(self) -> Reads:
        """The rows it is given to read."""
        return "first" if self.mode == "cls" else "last"

    def __call__(self, ops: Ops, hidden_states: Tensor, batch: Batch) -> Tensor:
        """[T, H] -> [B, num_labels]."""
        x = ops.pool(hidden_states, batch, self.mode)
        if self.hidden is not None:
            x = ops.linear(x, self.hidden.weight, self.hidden.bias, "tanh")
        return ops.linear(x, self.last.weight, self.last.bias)


def load_head(source: TaskSource) -> Head:
    """The head, strictly; CheckpointError where there is none, or where it does not fit config.json."""
    config, hidden_size = source.model_config, source.hidden_size
    tensors = open_tensors(config.transformer_folder)
    shapes = {_stripped(name): info.shape for name, info in tensors.tensors.items()}
    layout = _find_layout(shapes, source.causal, tensors)
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
    return Head(layout.mode, hidden, linears[layout.last], num_labels, unread)


def _find_layout(shapes: Mapping[str, tuple[int, ...]], causal: bool, tensors: TensorSource) -> _Layout:
    for layout in _LAYOUTS:
        if all(f"{layer}.weight" in shapes for layer in (layout.hidden, layout.last) if layer):
            is_plain = layout.hidden is None and layout.last == "classifier"
            return layout._replace(mode="lasttoken") if is_plain and causal else layout
    known = "; ".join(" with ".join(layer for layer in (item.hidden, item.last) if layer) for item in _LAYOUTS)
    raise CheckpointError(f"{tensors.path} has no classification head (one of: {known}); choose another --task_type")


def _stripped(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name
