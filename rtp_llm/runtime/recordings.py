"""Programs that are kept for lone short sequences on a CPU, one for each length and adapter.

To ask for a model's ops takes as long as to compute a layer of so few tokens.
"""

from rtp_llm.core import Batch, FloatArray, TaskType
from rtp_llm.ops import Ops
from rtp_llm.ops.native_ops import NativeOps
from rtp_llm.ops.native_recording import Compute, Recording, record
from rtp_llm.runtime.step import Step

# Beyond that many tokens the kernels take so long that the rest is lost in it.
_MOST_TOKENS = 64


class Recordings:
    """Those of one model. Each stream has its own, for whoever holds the stream."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Ops, int, int, int, TaskType], Recording | None] = {}

    def run(self, ops: Ops, step: Step, batch: Batch, compute: Compute) -> FloatArray | None:
        """The rows of the step's one task; None where it is not one sequence, few tokens and one task, or not native.

        `batch` is the step's, prepared; `compute` gives the task's rows of it, or of another of its layout.
        """
        if len(step.items) != 1 or len(step.tasks) != 1 or batch.num_tokens > _MOST_TOKENS:
            return None
        if step.shares or step.items[0].parts or type(batch) is not Batch or not isinstance(ops, NativeOps):
            return None
        if not ops.stream.is_idle:  # a traceback may still hold tensors of a batch that failed
            return None
        item = step.items[0]
        key = ops, batch.num_tokens, item.num_unseen, item.adapter, next(iter(step.tasks))
        if key not in self._kept:
            rows, self._kept[key] = record(ops, batch, compute)
            return rows
        recording = self._kept[key]
        return None if recording is None else recording.run(ops, batch)
