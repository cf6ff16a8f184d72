"""Paths and JSON files inside a checkpoint's folder."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rtp_llm.errors import CheckpointError

# The largest that exist are index files of sharded models, a few MB.
_MAX_JSON_BYTES = 64 << 20


def inside(folder: Path, relative: str) -> Path:
    """`folder / relative`, which may not exist; CheckpointError where that would leave the folder.

    Absolute paths, `..` and links out of the folder are refused. A hub cache's own links are followed: a snapshot's
    files are links into the `blobs` folder of the same repository or of the same cache.
    """
    parts = relative.replace("\\", "/").split("/")
    if Path(relative).is_absolute() or parts[0].endswith(":") or ".." in parts or "\0" in relative:
        raise CheckpointError(
            f"{folder}: the path {relative!r} leads out of the folder; it must be relative, without .."
        )
    path = folder / relative
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not any(target.is_relative_to(root) for root in _allowed(folder)):
        raise CheckpointError(f"{path} is a link to {target}, outside the checkpoint; put the file itself there")
    return path


def _allowed(folder: Path) -> Iterator[Path]:
    yield folder.resolve()
    absolute = folder.absolute()
    for parent in (absolute, *absolute.parents):
        if parent.parent.name == "snapshots":
            repository = parent.parent.parent
            yield parent.resolve()
            yield (repository / "blobs").resolve()
            yield (repository.parent / "blobs").resolve()


def read_json(folder: Path, name: str, *, required: bool = True) -> dict[str, Any]:
    """The object in `folder/name`; {} where the file is absent and not `required`.

    CheckpointError where it is absent, too large, not JSON, or not an object.
    """
    if not required and not inside(folder, name).is_file():
        return {}
    value = _read(folder, name)
    if not isinstance(value, dict):
        raise CheckpointError(f"{folder / name}: holds a JSON {_kind(value)}, an object is needed")
    return value


def read_json_list(folder: Path, name: str, *, required: bool = True) -> list[dict[str, Any]]:
    """The list of objects in `folder/name`, as modules.json is one; otherwise like `read_json`."""
    if not required and not inside(folder, name).is_file():
        return []
    value = _read(folder, name)
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise CheckpointError(f"{folder / name}: holds a JSON {_kind(value)}, a list of objects is needed")
    return value


def _read(folder: Path, name: str) -> Any:
    path = inside(folder, name)
    if not path.is_file():
        raise CheckpointError(f"{path} is missing" + (f"; {folder} is not a folder" if not folder.is_dir() else ""))
    try:
        size = path.stat().st_size
        if size > _MAX_JSON_BYTES:
            raise CheckpointError(f"{path}: {size:,} bytes is too large, the limit is {_MAX_JSON_BYTES:,}")
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _kind(value: Any) -> str:
    kinds = {list: "list", dict: "object", str: "string", bool: "boolean", type(None): "null"}
    return kinds.get(type(value), "number")
