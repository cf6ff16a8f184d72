"""Checkpoints that have ONNX files alone, which are not read: what to take instead."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_CARD = "README.md"
_MAX_CARD_BYTES = 1 << 20
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


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
    return instead_of_onnx(names, _base_model(folder / _CARD) if names else None)


def _base_model(card: Path) -> Any:
    """`base_model` of a model card's front matter; None where it has none, or cannot be read."""
    from huggingface_hub.repocard import metadata_load  # slow to import, and asked here alone

    try:
        if card.stat().st_size > _MAX_CARD_BYTES:
            return None
        return (metadata_load(card) or {}).get("base_model")
    except Exception:  # the border to YAML, which a card may break in any way: it names nothing then
        return None
