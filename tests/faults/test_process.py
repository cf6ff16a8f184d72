"""The process as a whole: SIGTERM under load, a thread that dies, a clock that jumps."""

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.conftest import Faulty
from tests.real_server import ROOT, free_port, launch, wait_until_ready
from tests.server.conftest import wait_until

pytestmark = pytest.mark.faults


class Load(threading.Thread):
    """Sends requests one after another until the server is gone; a refused connection is no loss, a broken one is."""

    def __init__(self, url: str, number: int) -> None:
        super().__init__()
        self.url, self.number = url, number
        self.statuses: list[int] = []
        self.lost: list[str] = []

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=20, trust_env=False) as client:
            for turn in range(100_000):
                texts = [f"the weather {self.number} {turn} {n}" for n in range(20)]
                try:
                    self.statuses.append(client.post("/v1/embeddings", json={"input": texts}).status_code)
                except httpx.ConnectError:
                    return
                except httpx.TransportError as error:
                    self.lost.append(repr(error))
                    return


@pytest.mark.parametrize("front_ends", ["1", "2"])
def test_sigterm_under_load_loses_nothing(front_ends: str, tiny_bert: Path, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    arguments = ["--checkpoint_path", str(tiny_bert), "--start_port", str(port), "--frontend_server_count", front_ends]
    process = launch(arguments, log)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process, log)
        wait_until(lambda: "ready on" in log.read_text(), 60)
        loads = [Load(f"http://127.0.0.1:{port}", number) for number in range(6)]
        for load in loads:
            load.start()
        while sum(len(load.statuses) for load in loads) < 30:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        for load in loads:
            load.join()
    finally:
        process.kill()
        process.wait()
    statuses = {status for load in loads for status in load.statuses}
    assert statuses <= {200, 503} and not [lost for load in loads for lost in load.lost]
    assert "Traceback" not in log.read_text()


BREAKS = """
import sys
from rtp_llm.runtime.cpu import CpuRuntime
from rtp_llm.start_server import main
run = CpuRuntime.run
def breaking(self, items, num_cores):
    if any(len(item.input_ids) == 13 for item in items):
        raise SystemExit("broken")
    return run(self, items, num_cores)
CpuRuntime.run = breaking
main(sys.argv[1:])
"""


def test_a_process_whose_thread_died_ends_with_status_1(tiny_bert: Path, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    url = f"http://127.0.0.1:{port}"
    arguments = ["--checkpoint_path", str(tiny_bert), "--start_port", str(port), "--host", "127.0.0.1"]
    with log.open("wb") as stream:
        process = subprocess.Popen([sys.executable, "-c", BREAKS, *arguments], stderr=stream, cwd=ROOT)
    try:
        wait_until_ready(url, process, log)
        answer = httpx.post(f"{url}/v1/embeddings", json={"input": [[5] * 13]}, timeout=10)
        assert answer.status_code in (500, 503)
        assert process.wait(10) == 1
    finally:
        process.kill()
        process.wait()
    text = log.read_text()
    assert "a batch thread has died (SystemExit): the server has ended" in text


@pytest.mark.parametrize("jump", [-86400.0, 86400.0])
def test_a_clock_that_jumps(server: Faulty, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    """Wall-clock time is nowhere a measure: deadlines, waits and timings count monotonically."""
    real = time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + jump)
        answer = server.ask("hello")
        total = re.search(r"total;dur=([\d.]+)", answer.headers["server-timing"])
        assert answer.status_code == 200 and total is not None
        assert 0 <= float(total[1]) < 60_000  # milliseconds: any machine's minute, where a jump is a day
    assert server.works()


def sources() -> Iterator[Path]:
    yield from (ROOT / "rtp_llm").rglob("*.py")


def test_wall_clock_time_is_only_ever_shown() -> None:
    uses: dict[str, Any] = {
        str(path.relative_to(ROOT)): path.read_text().count("time.time()")
        for path in sources()
        if "time.time()" in path.read_text()
    }
    assert set(uses) <= {"rtp_llm/engine/loading.py"}
