"""What is compared and what comes of it: a Sample has an Answer of ours and one of theirs; the two make a Row."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

import numpy as np

from rtp_llm.core import FloatArray, Input, TaskType

# A vector [D], a matrix [tokens, D], scores [L], or lexical weights by token id.
Value: TypeAlias = FloatArray | Mapping[int, float]


def places(spans: Iterable[tuple[int, int]]) -> FloatArray:
    """Where entities begin and end in a text -> [entities, 2]."""
    return np.array([*spans], np.float32).reshape(-1, 2)


class Verdict(str, Enum):
    """Of a row, of a check and of the whole; `status` is the exit status of a whole."""

    EQUAL = "equal"
    DIFFERS = "differs"
    NOT_COMPARED = "not compared"

    @property
    def status(self) -> int:
        return {"equal": 0, "differs": 1, "not compared": 3}[self.value]


@dataclass(frozen=True, slots=True)
class Sample:
    """One input, the checkpoint's prompt that is put before it, and its adapter; None: as without asking."""

    input: Input
    prompt_name: str | None = None
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """Values by task and name (`dense`, `logits`, …) and the tokens they were made from; or why there are none."""

    values: Mapping[TaskType, Mapping[str, Value]] = field(default_factory=dict)
    input_ids: Sequence[int] = ()
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sample under one task.

    cosine   the least of its vectors; None of scores
    max_abs  the largest difference of two numbers, and `bound` what is allowed of it
    scores   of a reranker, ours and theirs
    note     why it was not compared, or what differs beside the numbers
    """

    task: TaskType
    sample: Sample
    num_tokens: int
    verdict: Verdict
    cosine: float | None = None
    max_abs: float = 0.0
    bound: float = 0.0
    scores: tuple[float, float] | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """Something that needs no reference, or a published number; `detail` is its evidence, `source` who published it."""

    name: str
    verdict: Verdict
    detail: str
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """`model` describes what was loaded; `compared_with` and `not_compared` say it of each task, in words."""

    model: str
    tasks: tuple[TaskType, ...]
    rows: tuple[Row, ...]
    checks: tuple[Check, ...]
    published: tuple[Check, ...]
    compared_with: tuple[str, ...]
    not_compared: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """Differs where anything does; equal where something was compared with others' numbers."""
        others = [row.verdict for row in self.rows] + [check.verdict for check in self.published]
        if Verdict.DIFFERS in others or any(check.verdict is Verdict.DIFFERS for check in self.checks):
            return Verdict.DIFFERS
        return Verdict.EQUAL if Verdict.EQUAL in others else Verdict.NOT_COMPARED

    @property
    def worst(self) -> Row | None:
        """The row that differs most, by its bound; one whose tokens differ comes before all."""
        wrong = [row for row in self.rows if row.verdict is Verdict.DIFFERS]
        return max(wrong, key=lambda row: row.max_abs / row.bound if row.bound else float("inf"), default=None)
