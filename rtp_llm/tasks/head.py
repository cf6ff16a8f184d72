"""A checkpoint's classification head, found by its tensors' names and, where those do not tell, its architecture.

classifier.dense, classifier.out_proj   RoBERTa, XLM-R, CamemBERT, MPNet: first token, dense, tanh, out_proj;
                                        ELECTRA: gelu instead of tanh
pre_classifier, classifier              DistilBERT: first token, pre_classifier, relu, classifier
head.dense, head.norm, classifier       ModernBERT: first token or mean, dense, activation, norm, classifier
pooler, classifier                      ALBERT: first token, pooler, tanh, classifier
pooler.dense, classifier                BERT, GTE, NomicBERT: first token, pooler, tanh, classifier; DeBERTas: gelu
dense, classifier                       EuroBERT: dense, gelu, classifier; on which tokens, classifier_pooling says, or
                                        clf_pooling
classification_head.dense, .out_proj    BART: last token, which its end token must be, dense, tanh, out_proj
score                                   decoders: last token that is not the padding token, score; NVIDIA's Llama that
                                        looks both ways: mean, first or last token, score, by a temperature
classifier                              one linear layer: on a causal model's last token, else on the first

Equals transformers' *ForSequenceClassification. A token classifier's, as in *ForTokenClassification, is of every token:

head.dense, head.norm, classifier       ModernBERT: dense, activation, norm, classifier
score                                   decoders
classifier                              all others
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from rtp_llm.checkpoint import Parameter, TensorSource, Weights, bind, open_tensors
from rtp_llm.config_files import activation
from rtp_llm.core import Batch, FloatArray, Int32Array, Reads, Rows
from rtp_llm.errors import CheckpointError, ConfigError
from rtp_llm.model_config import NEMOTRON, ModelConfig
from rtp_llm.ops import Norm, Ops, PoolMode, Tensor, Weight, layer_norm, optional_vector
from rtp_llm.tasks import TaskSource

# Of a checkpoint's tensors, by name without the encoder's prefix.
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
_PREFIXES = (
    "albert.", "bert.", "ernie.", "roberta.", "distilbert.", "electra.", "mpnet.", "deberta.", "gte.", "new.",
    "nomic_bert.", "model.",
)  # fmt: skip


class _Layout(NamedTuple):
    """`hidden`, a layer with an activation before the last one, may be absent, and so may the `norm` between them.

    mode             how a sequence's tokens become one; None: the head is of every token
    poolings         what config.json's `pooling_keys` may be, its default first, where that comes before `mode`
    activation_key   what in config.json comes before `activation`
    late             the hidden layer is that of every token, and what it gives is pooled
    model_types      the architectures whose head this is; (): any with such tensors
    as_vectors       it pools as the architecture's dense vectors do, which comes before `mode`
    temperature_key  what in config.json the logits are divided by
    reads_end        the last token must be the end token
    """

    hidden: str | None
    last: str
    mode: PoolMode | None
    activation: str = "tanh"
    norm: str | None = None
    poolings: tuple[str, ...] = ()
    activation_key: str | None = None
    late: bool = False
    model_types: tuple[str, ...] = ()
    as_vectors: bool = False
    temperature_key: str | None = None
    pooling_keys: tuple[str, ...] = ("classifier_pooling",)
    reads_end: bool = False

    @property
    def reads_last(self) -> bool:
        """Whether it is a decoder's, of the last token that is not the padding token, and not NVIDIA's."""
        return self.last == "score" and self.mode is not None and not self.as_vectors

    @property
    def names(self) -> tuple[str, ...]:
        """Of the layers, in their order."""
        return tuple(name for name in (self.hidden, self.norm, self.last) if name)


_BY_CLASSIFIER = "classifier_activation"
_LAYOUTS = (
    _Layout("classifier.dense", "classifier.out_proj", "cls", "gelu", model_types=("electra",)),
    _Layout("classifier.dense", "classifier.out_proj", "cls"),
    _Layout("pre_classifier", "classifier", "cls", "relu"),
    _Layout("head.dense", "classifier", "cls", "gelu", "head.norm", ("cls", "mean"), _BY_CLASSIFIER),
    _Layout(
        "pooler.dense",
        "classifier",
        "cls",
        "gelu",
        activation_key="pooler_hidden_act",
        model_types=("deberta-v2", "deberta"),
    ),
    _Layout("classification_head.dense", "classification_head.out_proj", "lasttoken", reads_end=True),
    _Layout("pooler.dense", "classifier", "cls"),
    _Layout("pooler", "classifier", "cls", model_types=("albert",)),
    # Its authors' own code has the pooling under another name than transformers.
    _Layout(
        "dense",
        "classifier",
        "mean",
        "gelu",
        poolings=("late", "mean", "bos"),
        pooling_keys=("classifier_pooling", "clf_pooling"),
    ),
    _Layout(None, "score", "mean", model_types=(NEMOTRON,), as_vectors=True, temperature_key="temperature"),
    _Layout(None, "score", "lasttoken"),
    _Layout(None, "classifier", "cls"),
)
_OF_TOKENS = (
    _Layout("head.dense", "classifier", None, "gelu", "head.norm", activation_key=_BY_CLASSIFIER),
    _Layout(None, "score", None),
    _Layout(None, "classifier", None),
)
# A pooling of config.json -> the rows that are read.
_POOLINGS: dict[str, PoolMode] = {"cls": "cls", "bos": "cls", "mean": "mean", "late": "mean"}
# What transformers' configurations of decoders have for pad_token_id where config.json says nothing.
_PADS = dict.fromkeys(("gemma", "gemma2", "gemma3_text"), 0)
_END = 2
_READS: dict[PoolMode, Reads] = {"cls": "first", "lasttoken": "last"}


@dataclass(frozen=True, slots=True)
class Linear:
    """One layer's weights."""

    weight: Weight
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class Head:
    """One row of `num_labels` logits a sequence, or a token.

    mode        how a sequence's tokens become one; None: the rows are of tokens
    activation  of the hidden layer, and `norm` what comes after it
    late        the hidden layer is that of every token, and what it gives is pooled
    skipped_id  a token that is not read at the end of a sequence, be it padding or written there; None: there is none.
                Where the other tokens see it, it must be computed with them: `mode` is None, and `one_row` chooses
    last_token  what the last token must be; None: any
    """

    mode: PoolMode | None
    hidden: Linear | None
    last: Linear
    num_labels: int
    skipped_id: int | None = None
    activation: str = "tanh"
    norm: Norm | None = None
    late: bool = False
    last_token: int | None = None

    @property
    def per_token(self) -> bool:
        """Whether the rows are of tokens."""
        return self.mode is None

    @property
    def num_read(self) -> Callable[[Int32Array], int] | None:
        """As `Task.num_read`: without `skipped_id` at the end, where the tokens before it do not see it."""
        if self.per_token or self.skipped_id is None:
            return None
        return lambda input_ids: last_read(input_ids, self.skipped_id) + 1

    @property
    def reads(self) -> Reads:
        """The rows it is given to read."""
        return "all" if self.mode is None else _READS.get(self.mode, "all")

    def __call__(self, ops: Ops, hidden_states: Tensor, batch: Batch) -> Tensor:
        """[T, H] -> [B, num_labels], or [T, num_labels] of tokens."""
        x, mode = hidden_states, self.mode
        if mode is not None and not self.late:
            x = ops.pool(x, batch, mode)
        if self.hidden is not None:
            x = ops.linear(x, self.hidden.weight, self.hidden.bias, self.activation)
        if self.norm is not None:
            x = ops.norm(x, self.norm)
        # NOTE: the last layer's mean over tokens is the last layer of the mean, which is less to compute.
        if mode is not None and self.late:
            x = ops.pool(x, batch, mode)
        return ops.linear(x, self.last.weight, self.last.bias)

    def one_row(self, rows: Rows, input_ids: Sequence[Int32Array]) -> FloatArray:
        """A request's rows, where they are of tokens that of the last token which is read -> [n, num_labels]."""
        if not isinstance(rows, list):
            return rows
        places = (last_read(ids, self.skipped_id) for ids in input_ids)
        return np.stack([scores[place] for scores, place in zip(rows, places, strict=True)])


def last_read(input_ids: Int32Array, unread: int | None) -> int:
    """The place of the last token that is not `unread`; of a sequence that has no others, the first.

    Source: transformers, GenericForSequenceClassification, which looks for the padding token's id, whoever wrote it.
    """
    others = np.flatnonzero(input_ids != unread)
    return int(others[-1]) if len(others) else 0


def load_head(source: TaskSource) -> Head:
    """The head, strictly; CheckpointError where there is none, or where it does not fit config.json.

    ConfigError where config.json says that it is of every token.
    """
    _check_kind(source, "TokenClassification", "every token", "TOKEN_CLASSIFICATION")
    return _load(source, _find_layout)


def load_token_head(source: TaskSource) -> Head:
    """The same of a token classifier."""
    _check_kind(source, "SequenceClassification", "a whole text", "SEQ_CLASSIFICATION")
    return _load(source, _find_token_layout)


def _check_kind(source: TaskSource, other: str, whose: str, flag: str) -> None:
    """ConfigError for a head of the other kind, whose tensors may have the same names."""
    config = source.model_config
    if other in config.architecture:
        raise ConfigError(
            f"task_type: {config.transformer_folder} is a {config.architecture}, whose head is of {whose}; serve it "
            f"with --task_type {flag}",
            param="task_type",
        )


def _load(source: TaskSource, find_layout: Callable[[Shapes, TaskSource, TensorSource], _Layout]) -> Head:
    config, ops = source.model_config, source.ops
    tensors = open_tensors(config.transformer_folder)
    shapes = {_stripped(name): info.shape for name, info in tensors.tensors.items()}
    layout = find_layout(shapes, source, tensors)
    (num_labels,) = shapes[f"{layout.last}.weight"][:1] or (0,)
    if num_labels != len(config.labels):
        names = '"id2label": null, ' if config.hf.get("id2label") is not None else ""
        raise CheckpointError(
            f"{tensors.path}: {layout.last}.weight has {num_labels} rows, but config.json names {len(config.labels)} "
            f"labels (id2label or num_labels); if the head is right, say --json_model_override_args '{{{names}"
            f'"num_labels": {num_labels}}}\''
        )
    weights = _bind(layout, num_labels, source.hidden_size, shapes, tensors)
    temperature = float((layout.temperature_key and config.hf.get(layout.temperature_key)) or 1.0)
    eps = float(config.hf.get("norm_eps", 1e-5))
    pad = config.hf.get("pad_token_id", _PADS.get(config.model_type)) if layout.reads_last else None
    head = Head(
        mode=layout.mode if pad is None or source.causal else None,
        hidden=_linear(weights, layout.hidden, ops) if layout.hidden else None,
        last=_linear(weights, layout.last, ops, temperature),
        num_labels=num_labels,
        skipped_id=pad,
        activation=layout.activation,
        norm=layer_norm(ops, weights, layout.norm, eps) if layout.norm else None,
        late=layout.late,
        last_token=_end_id(config) if layout.reads_end else None,
    )
    tensors.close()
    return head


def _bind(layout: _Layout, num_labels: int, hidden_size: int, shapes: Shapes, tensors: TensorSource) -> Weights:
    """The layers' weights, and the biases of those that have one."""
    needed = {}
    for layer in layout.names:
        rows = num_labels if layer == layout.last else hidden_size
        shape = (rows,) if layer == layout.norm else (rows, hidden_size)
        needed[f"{layer}.weight"] = Parameter((f"{layer}.weight",), shape)
        if f"{layer}.bias" in shapes:
            needed[f"{layer}.bias"] = Parameter((f"{layer}.bias",), (rows,))
    # What belongs to the encoder is the model's to be strict about.
    return bind(tensors, needed, prefixes=_PREFIXES, ignore=("",))


def _end_id(config: ModelConfig) -> int:
    """The end token by config.json, or else as transformers' BartConfig; CheckpointError for several."""
    found = config.hf.get("eos_token_id")
    if isinstance(found, list):
        raise CheckpointError(f"config.json: eos_token_id {found}; this head reads the one token that ends a text")
    return _END if found is None else int(found)


def _linear(weights: Weights, name: str, ops: Ops, temperature: float = 1.0) -> Linear:
    matrix = weights[f"{name}.weight"] if temperature == 1.0 else weights[f"{name}.weight"] / np.float32(temperature)
    return Linear(ops.matrix(matrix), optional_vector(ops, weights, f"{name}.bias"))


def _find_layout(shapes: Shapes, source: TaskSource, tensors: TensorSource) -> _Layout:
    config = source.model_config
    for layout in _LAYOUTS:
        is_its_own = not layout.model_types or config.model_type in layout.model_types
        if is_its_own and all(f"{layer}.weight" in shapes for layer in layout.names):
            is_plain = layout.names == ("classifier",)
            layout = layout._replace(mode="lasttoken") if is_plain and source.causal else layout
            return _configured(layout, config)
    known = "; ".join(dict.fromkeys(" with ".join(layout.names) for layout in _LAYOUTS))
    raise CheckpointError(f"{tensors.path} has no classification head (one of: {known}); choose another --task_type")


def _find_token_layout(shapes: Shapes, source: TaskSource, tensors: TensorSource) -> _Layout:
    """ModernBERT's is never without its hidden layer; of the others there is one linear layer."""
    is_modernbert = source.model_config.model_type == "modernbert"
    for layout in _OF_TOKENS[:1] if is_modernbert else _OF_TOKENS:
        if all(f"{layer}.weight" in shapes for layer in layout.names):
            return _configured(layout, source.model_config)
    known = "; ".join(" with ".join(layout.names) for layout in _OF_TOKENS)
    raise CheckpointError(
        f"{tensors.path} has no token classifier's head (one of: {known}); choose another --task_type"
    )


def _configured(layout: _Layout, config: ModelConfig) -> _Layout:
    """With the pooling and the activation that config.json names; CheckpointError for others than are served."""
    if layout.activation_key is not None:
        layout = layout._replace(activation=activation(config.hf, layout.activation_key, layout.activation))
    if layout.as_vectors:
        return layout._replace(mode=config.default_pooling)
    if not layout.poolings:
        return layout
    said = {key: config.hf[key] for key in layout.pooling_keys if config.hf.get(key)}
    for key, pooling in said.items():
        if pooling not in layout.poolings:
            raise CheckpointError(f"config.json: {key} {pooling!r} is not one of {', '.join(layout.poolings)}")
    if len({*said.values()}) > 1:
        both = ", but ".join(f"{key} is {pooling!r}" for key, pooling in said.items())
        raise CheckpointError(f"config.json: {both}; leave the one that the head was trained with")
    pooling = next(iter(said.values()), layout.poolings[0])
    return layout._replace(mode=_POOLINGS[pooling], late=pooling == "late")


def _stripped(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name
