"""Rerankers: one score a pair, as sentence-transformers' CrossEncoder and FlagEmbedding's FlagReranker give it."""

from collections.abc import Sequence

from rtp_llm.core import Batch, FloatArray, Int32Array, Params, Rows
from rtp_llm.errors import ConfigError
from rtp_llm.ops import Ops, Tensor
from rtp_llm.tasks import Task, TaskSource
from rtp_llm.tasks.finishing import activate, check_score_activation, torch_activation
from rtp_llm.tasks.head import Head, load_head
from rtp_llm.tasks.layerwise import load_layerwise
from rtp_llm.tasks.score_chain import ScoreChain, load_score_chain
from rtp_llm.tasks.yes_no import load_yes_no


class Rerank(Task):
    """`activation` is the CrossEncoder's own; None: raw logits."""

    dimension = 1

    def __init__(self, head: Head | ScoreChain, activation: str | None) -> None:
        self.head = head
        self.reads, self.per_token = head.reads, head.per_token
        self.num_read, self.last_token = head.num_read, head.last_token
        self.activation = activation

    @classmethod
    def load(cls, source: TaskSource) -> "Rerank":
        """A head with one label, or a language model; sigmoid where no activation is noted, as CrossEncoder does."""
        head = _load_head(source)
        if head.num_labels != 1:
            raise ConfigError(
                f"task_type: a reranker has one label, {source.model_config.transformer_folder} has {head.num_labels}; "
                "serve it with --task_type SEQ_CLASSIFICATION",
                param="task_type",
            )
        noted = source.model_config.score_activation
        path = source.model_config.transformer_folder / "config.json"
        return cls(head, "sigmoid" if noted is None else torch_activation(noted, path))

    def __call__(self, ops: Ops, hidden_states: Tensor, batch: Batch) -> Tensor:
        """[T, H] -> logits [B, 1], or of every token [T, 1]."""
        return self.head(ops, hidden_states, batch)

    def check(self, params: Params) -> None:
        """A single score has no softmax."""
        check_score_activation(params)

    def finish(self, rows: Rows, params: Params, input_ids: Sequence[Int32Array]) -> FloatArray:
        """-> [n]: logits under `activation` none, else scores."""
        return activate(self.head.one_row(rows, input_ids), params.activation or self.activation)[:, 0]


def _load_head(source: TaskSource) -> Head | ScoreChain:
    config = source.model_config
    if config.num_scores is not None:
        return load_score_chain(source)
    if config.is_layerwise_reranker:
        return load_layerwise(source)
    return load_yes_no(source) if config.is_language_model else load_head(source)
