"""The tokens of a step that a device likes best: steps are doubled until tokens come no faster, once for a device.

What was found is kept in a file, by device, model, dtype and versions, so that later starts need not look again.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rtp_llm.core import Item, Rows, TaskType

logger = logging.getLogger(__name__)

# A step twice as large must bring so much more, and steps grow no further than to so many tokens.
_WORTH = 1.05
_LARGEST = 32_768
_ROW_TOKENS = 128
_TIMES = 3
# Where nothing is tried: larger steps gain nothing on a CPU.
_DEFAULT = 1024


class Runs(Protocol):
    """What is measured."""

    @property
    def tasks(self) -> Any: ...

    @property
    def model(self) -> Any: ...

    def run(self, items: Sequence[Item], num_cores: int) -> dict[TaskType, Rows]: ...


@dataclass(frozen=True, slots=True)
class TokenBudget:
    """How a runtime comes by its budget.

    grain  the least step that is tried; 0: nothing is tried
    key    what the result depends on
    cache  file of what was found before; None: nothing is kept
    """

    grain: int = 0
    key: str = ""
    cache: Path | None = None

    @property
    def tokens(self) -> int:
        """The budget until `find` has been called."""
        return 8 * self.grain or _DEFAULT

    def find(self, runtime: Runs, max_seq_len: int) -> int:
        """One that was found before, or the best of those that are tried now."""
        if not self.grain:
            return self.tokens
        known = _read(self.cache).get(self.key)
        if isinstance(known, int) and known > 0:
            return known
        started = time.perf_counter()
        best = sweep(lambda tokens: _seconds(runtime, tokens, max_seq_len), self.grain)
        logger.info("steps of %d tokens suit this device; found in %.1f s", best, time.perf_counter() - started)
        if self.cache is not None:
            _write(self.cache, self.key, best)
        return best


def sweep(seconds: Callable[[int], float], least: int, largest: int = _LARGEST) -> int:
    """Double the step while tokens come `_WORTH` times as fast; a step that fails (memory) ends it.

    seconds  how long a step of so many tokens takes
    """
    best, best_rate, tokens = least, 0.0, least
    while tokens <= largest:
        try:
            rate = tokens / seconds(tokens)
        except Exception as error:  # the border: whatever a step that is too large raises
            logger.info("a step of %d tokens is too much: %s", tokens, type(error).__name__)
            break
        if rate < best_rate * _WORTH:
            break
        best, best_rate, tokens = tokens, rate, 2 * tokens
    return best


def _seconds(runtime: Runs, num_tokens: int, max_seq_len: int) -> float:
    """The shortest of a few steps, after one that is not timed."""
    length = min(_ROW_TOKENS, max_seq_len)
    names = tuple(runtime.tasks)
    ids = np.arange(length, dtype=np.int32)
    items = [
        Item((ids + place) % np.int32(runtime.model.vocab_size), place, tasks=names)
        for place in range(max(num_tokens // length, 1))
    ]
    runtime.run(items, 1)
    times = []
    for _ in range(_TIMES):
        started = time.perf_counter()
        runtime.run(items, 1)
        times.append(time.perf_counter() - started)
    return min(times)


def _read(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text())
        if isinstance(found, dict):
            return found
    return {}


def _write(path: Path, key: str, tokens: int) -> None:
    """Beside what others have found; a folder that cannot be written only costs the next start some seconds."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Renamed into place: another process may read it now.
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        draft.write_text(json.dumps(_read(path) | {key: tokens}, indent=1, sort_keys=True))
        draft.replace(path)
    except OSError as error:
        logger.info("the token budget is not kept: %s", error)
