"""The real server in a process of its own, as a user starts it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

ROOT = Path(__file__).parent.parent


class Running(NamedTuple):
    url: str
    process: "subprocess.Popen[bytes]"
    log: Path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def launch(arguments: list[str], log: Path, **environ: str) -> "subprocess.Popen[bytes]":
    """`python -m rtp_llm.start_server ARGUMENTS`, its standard error in `log`."""
    command = [sys.executable, "-m", "rtp_llm.start_server", *arguments]
    with log.open("wb") as stream:
        return subprocess.Popen(
            command, stderr=stream, cwd=ROOT, env={**os.environ, "RTP_LLM_HOST": "127.0.0.1", **environ}
        )


@contextmanager
def running(arguments: list[str], log: Path, port: int, **environ: str) -> Iterator[Running]:
    """A server that is ready; SIGTERM at the end, and it must leave with status 0."""
    process, url = launch(arguments, log, **environ), f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process, log)
        yield Running(url, process, log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError(f"not ready in time: {log.read_text()}")
