"""Token classification: a row of scores a token. What they name in the text is found later: rtp_llm/entities.py."""

from collections.abc import Sequence

from rtp_llm.core import Batch, FloatArray, Int32Array, Params, Reads, Rows
from rtp_llm.errors import InvalidRequest
from rtp_llm.ops import Ops, Tensor
from rtp_llm.tasks import Task, TaskSource
from rtp_llm.tasks.finishing import activate
from rtp_llm.tasks.head import Head, load_token_head


class TokenClassify(Task):
    """Softmax over the labels of every token, special ones included, whatever problem_type is, as in transformers."""

    per_token = True
    reads: Reads = "all"

    def __init__(self, head: Head) -> None:
        self.head = head
        self.dimension = head.num_labels

    @classmethod
    def load(cls, source: TaskSource) -> "TokenClassify":
        """The checkpoint's head."""
        return cls(load_token_head(source))

    def __call__(self, ops: Ops, hidden_states: Tensor, batch: Batch) -> Tensor:
        """[T, H] -> logits [T, labels]."""
        return self.head(ops, hidden_states, batch)

    def check(self, params: Params) -> None:
        """Entities are of softmax's scores."""
        if params.aggregation_strategy is not None and params.activation not in (None, "softmax"):
            raise InvalidRequest(
                f"activation: {params.activation}; entities have the scores of softmax, leave it out",
                param="activation",
            )

    def finish(self, rows: Rows, params: Params, input_ids: Sequence[Int32Array]) -> list[FloatArray]:
        """-> [tokens, labels] an input: logits under `activation` none, else scores."""
        return [activate(logits, params.activation or "softmax") for logits in rows]
