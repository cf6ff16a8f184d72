"""Sequence classification: a row of logits an input, or what the checkpoint's problem_type makes of them."""

from collections.abc import Sequence

from rtp_llm.core import Batch, FloatArray, Int32Array, Params, Rows
from rtp_llm.ops import Ops, Tensor
from rtp_llm.tasks import Task, TaskSource
from rtp_llm.tasks.finishing import activate
from rtp_llm.tasks.head import Head, load_head
from rtp_llm.tasks.score_chain import ScoreChain, load_score_chain


class Classify(Task):
    """`activation` is what transformers' text-classification pipeline would apply; None: nothing."""

    def __init__(self, head: Head | ScoreChain, activation: str | None) -> None:
        self.head = head
        self.reads, self.per_token = head.reads, head.per_token
        self.num_read, self.last_token = head.num_read, head.last_token
        self.activation = activation
        self.dimension = head.num_labels

    @classmethod
    def load(cls, source: TaskSource) -> "Classify":
        """The checkpoint's head and its problem_type."""
        head = load_head(source) if source.model_config.num_scores is None else load_score_chain(source)
        return cls(head, _activation(source.model_config.hf.get("problem_type"), head.num_labels))

    def __call__(self, ops: Ops, hidden_states: Tensor, batch: Batch) -> Tensor:
        """[T, H] -> logits [B, labels], or of every token [T, labels]."""
        return self.head(ops, hidden_states, batch)

    def check(self, params: Params) -> None:
        """Any parameters will do."""

    def finish(self, rows: Rows, params: Params, input_ids: Sequence[Int32Array]) -> FloatArray:
        """-> [n, labels]: logits under `activation` none, else scores."""
        return activate(self.head.one_row(rows, input_ids), params.activation or self.activation)


def _activation(problem_type: str | None, num_labels: int) -> str | None:
    """Source: transformers, pipelines/text_classification.py: TextClassificationPipeline.postprocess."""
    if problem_type == "regression":
        return None
    return "sigmoid" if problem_type == "multi_label_classification" or num_labels == 1 else "softmax"
