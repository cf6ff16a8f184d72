"""The real server in a process of its own on loopback, and what the kernel tells of that process."""

import base64
import contextlib
import ctypes
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from benchmarks.peers import FloatArray
from benchmarks.report import cpu_seconds

_START_TIMEOUT = 120.0
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class ServerProcess:
    """`python -m rtp_llm.start_server` on a free port of 127.0.0.1, from `with` to its end."""

    def __init__(self, checkpoint: Path, *options: str) -> None:
        self.port = free_port()
        self.started = time.perf_counter()
        self._process = subprocess.Popen(self._command(checkpoint, options), preexec_fn=_end_with_parent)

    def _command(self, checkpoint: Path, options: Sequence[str]) -> list[str]:
        command = [sys.executable, "-m", "rtp_llm.start_server", "--checkpoint_path", str(checkpoint)]
        return [*command, "--host", "127.0.0.1", "--start_port", str(self.port), "--log_level", "warning", *options]

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def wait_for_embedding(self, text: str) -> tuple[FloatArray, float]:
        """The first answer, and the seconds since the process was started; RuntimeError when none comes."""
        while time.perf_counter() - self.started < _START_TIMEOUT:
            try:
                vectors = self.embed([text])
                return vectors, time.perf_counter() - self.started
            except (ConnectionError, http.client.HTTPException):
                if self._process.poll() is not None:
                    raise RuntimeError(f"the server ended with status {self._process.returncode}") from None
                time.sleep(0.005)
        raise RuntimeError(f"the server has not answered within {_START_TIMEOUT:.0f} s")

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """One call, as curl would make it. HTTPException for any status but 200."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("POST", "/v1/embeddings", body(texts), {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer: dict[str, Any] = json.loads(response.read())
        finally:
            connection.close()
        if response.status != 200:
            raise http.client.HTTPException(f"status {response.status}: {answer}")
        return np.stack([np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in answer["data"]])

    def cpu_seconds(self) -> float:
        """User and system time of all threads so far, in steps of a clock tick (10 ms)."""
        return cpu_seconds(self.pid)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stopped meanwhile: a server that nobody asks may still work."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def cpu_by_thread(self) -> tuple[float, float]:
        """Seconds that the main thread, which has the event loop, and all threads together have run, to the nanosecond.

        A thread that has ended is not in the sum.
        """
        seconds = {}
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                seconds[task.name] = int((task / "schedstat").read_text().split()[0]) / 1e9
        return seconds[str(self.pid)], sum(seconds.values())

    def reset_peak(self) -> None:
        """Let `peak` count from now on."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def peak(self) -> int:
        """Bytes resident at most since `reset_peak`, or since the start."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024

    def memory(self) -> dict[str, int]:
        """Bytes: Rss, Pss (shared pages divided among their users), Private_Dirty (the process's own alone)."""
        wanted = ("Rss", "Pss", "Private_Dirty")
        lines = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()
        values = {line.split(":")[0]: line.split()[1] for line in lines[1:]}
        return {key: int(values[key]) * 1024 for key in wanted}


class InfinityProcess(ServerProcess):
    """infinity_emb, `executable` of an environment of its own, on the same checkpoint: torch, fp32, its defaults."""

    executable = ""

    def _command(self, checkpoint: Path, options: Sequence[str]) -> list[str]:
        command = [self.executable, "v2", "--model-id", str(checkpoint), "--served-model-name", "default"]
        command += ["--engine", "torch", "--device", "cpu", "--dtype", "float32", "--url-prefix", "/v1"]
        return [*command, "--host", "127.0.0.1", "--port", str(self.port), "--log-level", "warning", *options]


def _end_with_parent() -> None:
    """A benchmark that is killed leaves no server behind, not even one that is stopped while nobody measures it."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def body(texts: Sequence[str], encoding_format: str = "base64") -> str:
    """The request as openai-python sends it; a single text goes as a string."""
    return json.dumps({"input": texts[0] if len(texts) == 1 else list(texts), "encoding_format": encoding_format})


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
