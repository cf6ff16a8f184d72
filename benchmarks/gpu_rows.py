"""Rows of what is measured on a GPU: what fails is a row too, and the next ones follow."""

import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rtp_llm.errors import in_one_line

Row = dict[str, Any]


def attempt(facts: Row, measure: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """Its rows; where it fails, those before and one with the facts and what went wrong."""
    try:
        yield from measure()
    except Exception as error:  # the border: whatever a library, a compiler or a driver says
        traceback.print_exc()
        yield {**facts, "failed": problem(error)}


def problem(error: Exception) -> str:
    """What went wrong, in one line, and where: the last place of all."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" ({Path(frame.filename).name}:{frame.lineno})" for frame in last)
    return f"{in_one_line(error):.300}{where}"
