"""What becomes of a batch: rows, or an error that is the affair of the one item which caused it."""

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from rtp_llm.core import FloatArray, Item, Rows, TaskType
from rtp_llm.errors import EngineFailure, RtpError
from rtp_llm.observability import Metrics
from rtp_llm.runtime import Runtime

logger = logging.getLogger(__name__)

# One item's rows by task: [·], or [tokens, ·] where the task has a row for each token.
ItemRows: TypeAlias = Mapping[TaskType, FloatArray]


class Outcome(NamedTuple):
    """What became of identical items: views of the batch's rows, or the error that they caused."""

    items: list[Item]
    rows: ItemRows
    error: Exception | None = None


class BrokenOff(EngineFailure):
    """A batch ended on the way, by an interrupt or the end of its thread, which whoever sees to those reports."""


def compute(
    runtime: Runtime, groups: Sequence[list[Item]], num_cores: int, metrics: Metrics | None = None
) -> list[Outcome]:
    """Run one item of each group; where the batch fails, its halves, so that only what fails alone is an error.

    Rows with NaN or infinity are an error of their item.
    """
    try:
        rows = runtime.run([group[0] for group in groups], num_cores)
    except Exception as error:  # the border: a batch may fail in any way and must not end the thread
        if metrics is not None:
            metrics.observe_failed_batch()
        if len(groups) == 1:
            return [Outcome(groups[0], {}, error)]
        logger.warning("a batch of %d inputs failed (%s); running its halves", len(groups), error)
        middle = len(groups) // 2
        return [
            outcome
            for half in (groups[:middle], groups[middle:])
            for outcome in compute(runtime, half, num_cores, metrics)
        ]
    finite = {task: _are_finite(own) for task, own in rows.items()}
    return [_outcome(group, rows, finite, place) for place, group in enumerate(groups)]


def _outcome(
    group: list[Item], rows: Mapping[TaskType, Rows], finite: Mapping[TaskType, Sequence[bool]], place: int
) -> Outcome:
    tasks = group[0].tasks
    if all(finite[task][place] for task in tasks):
        return Outcome(group, {task: rows[task][place] for task in tasks})
    return Outcome(group, {}, EngineFailure("the model returned NaN or infinity"))


def _are_finite(rows: Rows) -> list[bool]:
    """Of each row, whether all its numbers are. At once where they are one array: a call for each costs 4 us."""
    if isinstance(rows, np.ndarray):
        finite: list[bool] = np.logical_and.reduce(np.isfinite(rows), axis=1).tolist()
        return finite
    return [bool(np.isfinite(row).all()) for row in rows]


def item_failure(item: Item, error: Exception) -> EngineFailure:
    """What the request of an item that failed is told; the whole error is logged, where it is not known already."""
    id_, length = item.owner.request.request_id, len(item.input_ids)
    if isinstance(error, MemoryError) and id_ is None:  # who asks is in this process, and may be told all
        return EngineFailure(f"computing input {item.index} failed: {str(error) or type(error).__name__}")
    if not isinstance(error, BrokenOff):
        # What did not fit into memory says all, and its traceback nothing.
        reason, trace = (f": {error}", None) if isinstance(error, MemoryError) else ("", error)
        logger.error("request %s: input %d of %d tokens failed%s", id_, item.index, length, reason, exc_info=trace)
    message = error.message if isinstance(error, RtpError) else type(error).__name__
    return EngineFailure(f"computing input {item.index} failed: {message}")
