"""How many cores are computed on, under an affinity and the quotas of control groups."""

import math
import os
from pathlib import Path

import pytest

from rtp_llm.config import EngineConfig
from rtp_llm.runtime import available_cores, cores
from rtp_llm.runtime.cores import cpu_quota


def quota(folder: Path, own: str, files: dict[str, str]) -> float:
    """Of a process whose /proc/self/cgroup is `own`, under a folder of groups that holds `files`."""
    for name, text in files.items():
        (folder / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "groups" / name).write_text(text + "\n")
    (folder / "own").write_text(own + "\n")
    return cpu_quota(folder / "groups", folder / "own")


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/", {"cpu.max": "max 100000"}, math.inf),
        ("0::/", {}, math.inf),
        ("0::/pod/box", {"pod/box/cpu.max": "max 100000", "pod/cpu.max": "200000 100000"}, 2),
        ("0::/pod/box", {"pod/box/cpu.max": "50000 100000", "pod/cpu.max": "200000 100000"}, 0.5),
        ("0::/../box", {"cpu.max": "300000 100000"}, 3),
        ("0::/", {"cpu.max": "rubbish"}, math.inf),
        (
            "4:cpu,cpuacct:/docker/1\n0::/",
            {"cpu,cpuacct/cpu.cfs_quota_us": "200000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            2,
        ),
        (
            "9:cpuset:/a\n1:cpu:/a/b",
            {"cpu/a/cpu.cfs_quota_us": "400000", "cpu/a/cpu.cfs_period_us": "100000", "cpu/a/b/cpu.cfs_quota_us": "-1"},
            4,
        ),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
    ],
)
def test_quota(tmp_path: Path, own: str, files: dict[str, str], expected: float) -> None:
    assert quota(tmp_path, own, files) == expected


def test_without_control_groups(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "none", tmp_path / "neither") == math.inf


@pytest.mark.parametrize(
    ("allowed", "flag", "expected"),
    [(math.inf, 0, 8), (2.0, 0, 2), (1.5, 0, 2), (0.1, 0, 1), (64.0, 0, 8), (2.0, 6, 2), (2.0, 1, 1)],
)
def test_cores(allowed: float, flag: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(cores, "cpu_quota", lambda: allowed)
    assert available_cores(EngineConfig(checkpoint_path="/m", num_threads=flag)) == expected
