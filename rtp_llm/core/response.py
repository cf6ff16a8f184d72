"""What a caller gets: an output for each input, by task."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from rtp_llm.core.arrays import FloatArray, Int32Array
from rtp_llm.core.request import TaskType
from rtp_llm.records import record
from rtp_llm.timings import Timings

# What a caller gets of one task; see Response.
Output: TypeAlias = Any


@dataclass(frozen=True, slots=True, eq=False)
class SparseVector:
    """Weights by token id: `indices` [n] ascending, `values` [n], none 0; `tokens`, on request, the vocabulary's."""

    indices: Int32Array
    values: FloatArray
    tokens: tuple[str, ...] | None = None


@record(frozen=True, slots=True, kw_only=True)
class Response:
    """`outputs[task]` has an entry per input, in the request's order.

    dense            fp32 [inputs, dim]
    sparse           list of SparseVector
    colbert, tokens  list of fp32 [tokens, dim]: colbert those tokens that the checkpoint compares, tokens all of
                     `input_ids`
    rerank           fp32 [inputs]
    classify         fp32 [inputs, labels]
    token_classify   list of fp32 [tokens, labels]; by `aggregation_strategy`, of lists of Entity
    custom           what the module made of all inputs together: None, bool, int, float, str, arrays, lists and dicts

    `batch_rows` are the sequences of the step that computed the first of its inputs, 0 where none was needed.
    `num_tokens` and `input_ids` are what the model really read: after truncation, special tokens included.
    """

    outputs: dict[TaskType, Output]
    num_tokens: Sequence[int]
    truncated: Sequence[bool]
    input_ids: Sequence[Int32Array] = ()
    timings: Timings = field(default_factory=Timings)
    batch_rows: int = 0

    @property
    def total_tokens(self) -> int:
        return sum(self.num_tokens)
