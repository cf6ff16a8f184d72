"""Disk space of what a program needs, as pip has installed it here."""

import importlib.metadata
import re
from collections.abc import Iterable
from importlib.metadata import Distribution
from pathlib import Path

import rtp_llm

_REQUIREMENT = re.compile(r"[\w.-]+")
_EXTRA = re.compile(r"\bextra\b")


def installed_bytes(names: Iterable[str]) -> int:
    """Bytes of these distributions and of all that they require, extras left out, byte code included."""
    return sum(_own_bytes(distribution) for distribution in _closure(names).values())


def _closure(names: Iterable[str]) -> dict[str, Distribution]:
    """The distributions by name; what is not installed (a requirement of another platform) is left out."""
    found: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for line in found[name].requires or ():
            match = _REQUIREMENT.match(line)
            if match and not _EXTRA.search(line):
                waiting.append(match[0])
    return found


def _own_bytes(distribution: Distribution) -> int:
    if distribution.metadata["Name"] == "rtp-llm":  # perhaps installed in place, from files that pip does not list
        return disk_bytes(Path(rtp_llm.__path__[0]))
    return sum(path.stat().st_size for file in distribution.files or () if (path := Path(file.locate())).is_file())


def disk_bytes(path: Path) -> int:
    """Blocks that a file, or all of a folder, takes, as `du` counts them."""
    inside = sum(disk_bytes(entry) for entry in path.iterdir()) if path.is_dir() and not path.is_symlink() else 0
    return inside + path.lstat().st_blocks * 512
