"""How many cores this process may use: by its affinity, and by the CPU quota of its container."""

import math
import os
from pathlib import Path, PurePosixPath

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
# Where version 1 has the CPU controller, on most systems with its bookkeeping.
_V1_FOLDERS = ("cpu", "cpu,cpuacct", "cpuacct,cpu")
_V2_FOLDERS = ("", "unified")


def usable_cores() -> int:
    """At least one; half a core of quota counts as a whole one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota >= cores else max(math.ceil(quota), 1)


def cpu_quota(groups: Path = _GROUPS, own_groups: Path = _OWN_GROUPS) -> float:
    """Cores that this process's control groups allow, those above its own included; inf where none sets a limit."""
    return min(map(_quota, _visible(groups, own_groups)), default=math.inf)


def _visible(groups: Path, own_groups: Path) -> set[Path]:
    """Folders of the groups that this process is in, as far as they can be seen from here."""
    folders = set()
    for line in (_read(own_groups) or "").splitlines():
        number, controllers, path = line.split(":", 2)
        if number != "0" and "cpu" not in controllers.split(","):
            continue
        group = PurePosixPath(path)
        if ".." in group.parts:  # outside of what this process's namespace shows
            group = PurePosixPath("/")
        for root in _V2_FOLDERS if number == "0" else _V1_FOLDERS:
            # Without such a namespace the path is the host's, while what is mounted may be the container's alone.
            folders |= {groups / root / str(one).lstrip("/") for one in (group, *group.parents)}
    return folders


def _quota(group: Path) -> float:
    """Of one group; inf: it has none."""
    text = _read(group / "cpu.max")
    if text is None:
        text = f"{_read(group / 'cpu.cfs_quota_us')} {_read(group / 'cpu.cfs_period_us')}"
    try:
        quota, period = map(int, text.split())
    except ValueError:  # "max", or no such files
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
