"""A Report as text for people, and as one JSON object for programs."""

import math
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rtp_llm.errors import one_line
from rtp_llm.verify.outcome import Check, Report, Row, Sample, Verdict

_TEXT_WIDTH = 44


def as_text(report: Report) -> str:
    """The rows of each task, the checks, the published numbers, what was compared, and one line with the verdict."""
    lines = [report.model, ""]
    for task in dict.fromkeys(row.task for row in report.rows):
        rows = [row for row in report.rows if row.task is task]
        lines += [*_section(task.value, rows), ""]
    if report.published:
        lines += ["published by others", *map(_check_line, report.published), ""]
    lines += ["checks of our own", *map(_check_line, report.checks), ""]
    lines += [f"compared with  {said}" for said in report.compared_with]
    lines += [f"NOT COMPARED   {said}" for said in report.not_compared]
    return "\n".join([*lines, _last_line(report)]) + "\n"


def as_object(report: Report) -> dict[str, Any]:
    """The same for machines; a difference that has no number is null."""
    rows = [
        {
            "task": row.task.value,
            "input": row.sample.input,
            "prompt_name": row.sample.prompt_name,
            "adapter": row.sample.adapter,
            "num_tokens": row.num_tokens,
            "cosine": row.cosine,
            "max_abs": row.max_abs if math.isfinite(row.max_abs) else None,
            "bound": row.bound,
            "scores": row.scores,
            "verdict": row.verdict.value,
            "note": row.note,
        }
        for row in report.rows
    ]
    return {
        "model": report.model,
        "tasks": [task.value for task in report.tasks],
        "verdict": report.verdict.value,
        "message": _last_line(report),
        "compared_with": report.compared_with,
        "not_compared": report.not_compared,
        "rows": rows,
        "checks": [asdict(check) for check in report.checks],
        "published": [asdict(check) for check in report.published],
    }


def _section(name: str, rows: list[Row]) -> Iterator[str]:
    has_scores = any(row.scores for row in rows)
    middle = f"{'ours':>12} {'theirs':>12}" if has_scores else f"{'cosine':>12}"
    yield f"{_padded(name, _TEXT_WIDTH)} {'tokens':>6} {middle} {'max abs':>9}  verdict"
    for row in rows:
        left = f"{_padded(_shortened(row.sample), _TEXT_WIDTH)} {row.num_tokens:6d}"
        yield f"{left} {_numbers(row, has_scores)}  {row.verdict.value}" + (f": {row.note}" if row.note else "")


def _numbers(row: Row, has_scores: bool) -> str:
    width = 25 if has_scores else 12
    if row.note:
        return " " * (width + 10)
    middle = f"{row.scores[0]:12.7f} {row.scores[1]:12.7f}" if row.scores else f"{row.cosine:12.9f}"
    return f"{middle:>{width}} {row.max_abs:9.1e}"


def _check_line(check: Check) -> str:
    line = f"  {check.verdict.value:8} {check.name} ({check.detail})"
    return f"{line}\n           {check.source}" if check.source else line


def _last_line(report: Report) -> str:
    compared = [row for row in report.rows if row.verdict is not Verdict.NOT_COMPARED]
    if report.verdict is Verdict.DIFFERS:
        return f"DIFFERS: {_what_differs(report, compared)}"
    if report.verdict is Verdict.NOT_COMPARED:
        return "NOT COMPARED: the checks hold, but there was nobody's number to compare with"
    told = []
    if compared:
        worst = max(compared, key=lambda row: row.max_abs / row.bound)
        told.append(
            f"{len(compared)} answers from the same tokens, at most {worst.max_abs:.1e} apart "
            f"where {worst.bound:.1e} is allowed"
        )
    if report.published:
        told.append(f"{len(report.published)} published numbers")
    left_out = len(report.rows) - len(compared)
    if left_out:
        told.append(f"{left_out} answers were not compared")
    told += [f"not compared: {said.partition(':')[0]}" for said in report.not_compared]
    return f"EQUAL: {'; '.join(told)}"


def _what_differs(report: Report, compared: list[Row]) -> str:
    told = []
    worst = report.worst
    if worst is not None:
        wrong = sum(row.verdict is Verdict.DIFFERS for row in compared)
        apart = worst.note or f"{worst.max_abs:.1e} apart where {worst.bound:.1e} is allowed"
        told.append(
            f"{wrong} of {len(compared)} answers, most {worst.task.value} of {_shortened(worst.sample)!r}, {apart}"
        )
    failed = [check for check in (*report.checks, *report.published) if check.verdict is Verdict.DIFFERS]
    told += [f"{check.name} ({check.detail})" for check in failed]
    return "; ".join(told)


def _shortened(sample: Sample) -> str:
    """One line of the input, at most as wide as its column."""
    value = sample.input
    text = " | ".join(value) if isinstance(value, tuple) else str(value)
    named = ", ".join(dict.fromkeys(filter(None, (sample.adapter, sample.prompt_name))))
    if named:
        text = f"[{named}] {text}"
    text = one_line(text) or "(empty)"
    while _width(text) > _TEXT_WIDTH:
        text = text[: min(len(text) - 2, _TEXT_WIDTH)].rstrip("…") + "…"
    return text


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _width(text))


def _width(text: str) -> int:
    """Columns of a terminal: ideographs take two, marks and joiners none."""
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Cf") else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )
