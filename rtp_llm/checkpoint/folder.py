"""Paths and JSON files inside a checkpoint's folder."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from rtp_llm.errors import CheckpointError

# The largest that exist are index files of sharded models, a few MB.
_MAX_JSON_BYTES = 64 << 20
# What Git LFS keeps in a file's place begins so, and is smaller than this. Source: its specification, "The Pointer".
_POINTER, _MAX_POINTER_BYTES = b"version https://git-lfs.github.com/spec/", 1024


def inside(folder: Path, relative: str) -> Path:
    """`folder / relative`, which may not exist; CheckpointError where the name itself leads out of the folder.

    Names stand in files that anyone may have written. Links were made by whoever made the folder, and are followed
    wherever they lead: hub caches and object stores are full of them.
    """
    parts = relative.replace("\\", "/").split("/")
    if Path(relative).is_absolute() or parts[0].endswith(":") or ".." in parts or "\0" in relative:
        raise CheckpointError(
            f"{folder}: the path {relative!r} leads out of the folder; it must be relative, without .."
        )
    return folder / relative


def find(folder: Path, name: str) -> Path | None:
    """The file `folder / name`, or None; CheckpointError where something else than a readable file has that name.

    A pointer that a clone without Git LFS left in the file's place is something else.
    """
    path = inside(folder, name)
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise CheckpointError(f"{path} is a link to {os.readlink(path)}, which does not exist") from None
        return None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        kind = "folder" if stat.S_ISDIR(found.st_mode) else "device"
        raise CheckpointError(f"{path} is a {kind}; a file is needed there")
    if found.st_size < _MAX_POINTER_BYTES and _is_pointer(path):
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the file itself, which a clone without git-lfs leaves out; "
            "run `git lfs pull` in its folder, or give the model's hub id as checkpoint_path"
        )
    return path


def _is_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def read_json(folder: Path, name: str, *, required: bool = True) -> dict[str, Any]:
    """The object in `folder/name`; {} where the file is absent and not `required`.

    CheckpointError where it is absent, too large, not JSON, or not an object.
    """
    if not required and find(folder, name) is None:
        return {}
    value = _read(folder, name)
    if not isinstance(value, dict):
        raise CheckpointError(f"{folder / name}: holds a JSON {_kind(value)}, an object is needed")
    return value


def read_json_list(folder: Path, name: str, *, required: bool = True) -> list[dict[str, Any]]:
    """The list of objects in `folder/name`, as modules.json is one; otherwise like `read_json`."""
    if not required and find(folder, name) is None:
        return []
    value = _read(folder, name)
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise CheckpointError(f"{folder / name}: holds a JSON {_kind(value)}, a list of objects is needed")
    return value


def _read(folder: Path, name: str) -> Any:
    path = find(folder, name)
    if path is None:
        raise CheckpointError(
            f"{folder / name} is missing" + (f"; {folder} is not a folder" if not folder.is_dir() else "")
        )
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
