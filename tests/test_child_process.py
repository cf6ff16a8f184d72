"""Processes beside this one find modules where it does."""

import subprocess
from pathlib import Path

import pytest

from rtp_llm.child_process import command_of
from rtp_llm.errors import ConfigError
from rtp_llm.runtime.ranks import Ranks


def test_not_in_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(7)\n")
    command = [*command_of("rtp_llm.cli"), "--version"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout.split()[0], ended.stderr) == (0, "rtp-llm", "")


def test_nor_do_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("open('was_run', 'w').close()\nraise SystemExit(7)\n")
    monkeypatch.chdir(tmp_path)
    ranks = Ranks([{}])  # orders that it ends at
    with pytest.raises(ConfigError, match="rank 1 did not start"):
        ranks.wait_for("imported")
    assert [path.name for path in tmp_path.iterdir()] == ["json.py"]
