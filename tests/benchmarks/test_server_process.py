"""The server that a benchmark measures."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.real_server import ROOT
from tests.server.conftest import wait_until

PROGRAM = """
import sys, time
from pathlib import Path
from benchmarks.server_process import ServerProcess

class Sleeper(ServerProcess):
    def _command(self, checkpoint, options):
        return [sys.executable, "-c", "import time; time.sleep(60)"]

server = Sleeper(Path())
with server.paused():
    print(server.pid, flush=True)
    time.sleep(60)
"""


def is_running(pid: int) -> bool:
    """Whether the process does something yet; one that nobody has waited for is not running."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_killed_benchmark_leaves_no_server_behind() -> None:
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
    try:
        wait_until(lambda: not is_running(pid))
    finally:
        if is_running(pid):
            os.kill(pid, signal.SIGKILL)
