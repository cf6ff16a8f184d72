"""Checkpoints that have ONNX files alone, which are not read: what to take instead."""

import re
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

_CARD = "README.md"
# A model card's front matter ends long before.
_MAX_CARD_BYTES = 1 << 16
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_BASE = re.compile(r"base_model\s*:(.*)")
_ENTRY = re.compile(r"\s*-\s+(.*)")


def instead_of_onnx(files: Iterable[str], base_model: Any) -> str:
    """What an error says of a repository's or a folder's files beside; empty where none is ONNX.

    base_model  the model card's word: a hub id, or a list of such, of which the first counts
    """
    if not any(name.endswith(".onnx") for name in files):
        return ""
    named = next(iter(base_model), None) if isinstance(base_model, list) else base_model
    is_known = isinstance(named, str) and _HUB_ID.fullmatch(named)
    from_card = f", which is {named} by its model card" if is_known else ""
    return f", ONNX among them: serve the checkpoint that they were made from{from_card}"


def instead_of_folder(folder: Path) -> str:
    """The same of a folder, with the base_model of its README.md."""
    names = [path.name for pattern in ("*.onnx", "*/*.onnx") for path in folder.glob(pattern)]
    return instead_of_onnx(names, _base_model(folder / _CARD))


def _base_model(card: Path) -> list[str]:
    """`base_model` of a model card's front matter, in either of the forms that it has there; [] where it has none."""
    try:
        with card.open("rb") as file:
            first, *lines = file.read(_MAX_CARD_BYTES).decode(errors="replace").splitlines() or [""]
    except OSError:
        return []
    if first.strip() != "---":
        return []
    return _listed([*takewhile(lambda line: line.strip() != "---", lines)])


def _listed(lines: Sequence[str]) -> list[str]:
    for place, line in enumerate(lines):
        match = _BASE.fullmatch(line)
        if match is not None:
            entries = [_ENTRY.fullmatch(other) for other in lines[place + 1 : place + 2]]
            found = [match[1], *(entry[1] for entry in entries if entry is not None)]
            return [text for text in (each.strip().strip("'\"") for each in found) if text]
    return []
