"""Numbers that others have published for known checkpoints (published.json), each with its source.

A checkpoint is known by its name (its own folder's, its repository's, or the first heading of its README.md) together
with its shape: a model that was trained further under a name of its own is not held to its ancestor's numbers. The
bounds leave room for the digits that were printed and for the fp16 that much of it was computed in.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from rtp_llm.checkpoint import names_of
from rtp_llm.config import EngineConfig
from rtp_llm.core import Params, Request, TaskType
from rtp_llm.engine.engine import Engine
from rtp_llm.errors import RtpError
from rtp_llm.model_config import ModelConfig
from rtp_llm.similarity import similarity
from rtp_llm.verify.difference import difference
from rtp_llm.verify.outcome import Check, Value, Verdict

_HEADING = re.compile(r"^# +(\S.*)$", re.MULTILINE)
_README_CHARACTERS = 20_000


def find_published(config: EngineConfig, model_config: ModelConfig) -> list[dict[str, Any]]:
    """What is published of this checkpoint, for the tasks that it serves."""
    names = set(_names(config, model_config.folder))
    return [
        value
        for model in _table()
        if names & {name.lower() for name in model["names"]}
        and all(model_config.hf.get(key) == expected for key, expected in model["config"].items())
        for value in model["values"]
        if value["task"] in model_config.tasks
    ]


def check_published(engine: Engine, values: list[dict[str, Any]]) -> list[Check]:
    """Each published entry beside ours."""
    return [_check(engine, value) for value in values]


@cache
def _table() -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = json.loads((Path(__file__).parent / "published.json").read_bytes())["models"]
    return models


def _names(config: EngineConfig, folder: Path) -> Iterator[str]:
    """How the checkpoint is called, and how its README calls it."""
    yield from names_of(config, folder)
    readme = folder / "README.md"
    if readme.is_file():
        heading = _HEADING.search(readme.read_text(encoding="utf-8", errors="replace")[:_README_CHARACTERS])
        if heading:
            yield heading[1].strip().rpartition("/")[2].lower()


def _check(engine: Engine, entry: Mapping[str, Any]) -> Check:
    name = f"{entry['task']} {entry['kind']} of {_shown(entry)}"
    try:
        worst = max(difference(*both).max_abs for both in _compared(engine, entry))
    except RtpError as error:
        return Check(name, Verdict.DIFFERS, error.message, entry["source"])
    verdict = Verdict.EQUAL if worst <= entry["bound"] else Verdict.DIFFERS
    return Check(name, verdict, f"max abs {worst:.1e}, allowed {entry['bound']:g}", entry["source"])


def _shown(entry: Mapping[str, Any]) -> str:
    first = entry.get("inputs", entry.get("left"))[0]
    text = first if isinstance(first, str) else " | ".join(first)
    return json.dumps(text if len(text) <= 40 else text[:39] + "…", ensure_ascii=False)


def _compared(engine: Engine, entry: Mapping[str, Any]) -> Iterator[tuple[Value, Value]]:
    """Ours and the published, in pairs."""
    task, expected = TaskType(entry["task"]), entry["expected"]

    def run(inputs: list[Any]) -> Any:
        values = [tuple(value) if isinstance(value, list) else value for value in inputs]
        request = Request(inputs=values, tasks=(task,), params=Params(activation="none", prompt=""))
        return engine.run_sync(request).outputs[task]

    if entry["kind"] == "similarity":
        # Every row of a matrix is one request's, and `similarity` wants both sides of one kind.
        yield similarity(task, run(entry["left"]), run(entry["right"])), np.asarray(expected, np.float32)
        return
    for output, numbers in zip(run(entry["inputs"]), expected, strict=True):
        if entry["kind"] == "weights":
            ours: Value = dict(zip(output.indices.tolist(), output.values.tolist(), strict=True))
            yield ours, {int(token): weight for token, weight in numbers.items()}
        else:
            theirs = np.atleast_1d(np.asarray(numbers, np.float32))
            yield np.atleast_1d(output)[: len(theirs)], theirs
