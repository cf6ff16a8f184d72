"""Two real servers behind a balancer, restarted one after the other under load: every request is answered."""

import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy.files import DEPLOY
from tests.faults.balancer import balancing
from tests.real_server import free_port, launch, wait_until_ready
from tests.server.conftest import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.slow]


class Load(threading.Thread):
    """Sends one request after another; `statuses` are what came, and what did not come is 0."""

    def __init__(self, port: int, stop: threading.Event) -> None:
        super().__init__()
        self.url, self.stop = f"http://127.0.0.1:{port}/v1/embeddings", stop
        self.statuses: list[int] = []

    def run(self) -> None:
        with httpx.Client(trust_env=False, timeout=30) as client:
            while not self.stop.is_set():
                try:
                    answer = client.post(self.url, json={"input": ["the weather", f"is {len(self.statuses)}"]})
                    self.statuses.append(answer.status_code)
                except httpx.TransportError:
                    self.statuses.append(0)


@contextmanager
def nginx(ports: list[int], folder: Path) -> Iterator[int]:
    """nginx with deploy/nginx.conf, but for the ports -> its port."""
    own = free_port()
    text = (DEPLOY / "nginx.conf").read_text()
    for given, actual in (("127.0.0.1:8088", ports[0]), ("127.0.0.1:8089", ports[1]), ("127.0.0.1:8080", own)):
        text = text.replace(given, f"127.0.0.1:{actual}")
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = text.replace("http {", f"http {{ access_log off; {paths}")
    (folder / "nginx.conf").write_text(text)
    command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    child = subprocess.Popen([*command, "-g", f"daemon off; pid {folder}/pid;"])
    try:
        yield own
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(20)


@contextmanager
def in_front(kind: str, ports: list[int], folder: Path) -> Iterator[int]:
    if kind == "nginx":
        with nginx(ports, folder) as port:
            yield port
        return
    with balancing(ports) as balancer:
        wait_until(lambda: len(balancer.healthy) == 2)
        yield balancer.port


def start(checkpoint: Path, port: int, log: Path, drain_seconds: int) -> "subprocess.Popen[bytes]":
    child = launch([str(checkpoint), "--port", str(port), "--drain_seconds", str(drain_seconds)], log)
    wait_until_ready(f"http://127.0.0.1:{port}", child, log)
    return child


# nginx asks for nobody's health: it loses nothing without draining either, and however soon the next one is restarted.
@pytest.mark.parametrize(("kind", "drain_seconds"), [("health checks", 2), ("nginx", 2), ("nginx", 0)])
def test_a_rolling_restart_loses_nothing(kind: str, drain_seconds: int, tiny_bert: Path, tmp_path: Path) -> None:
    if kind == "nginx" and not shutil.which("nginx"):
        pytest.skip("nginx is not installed (apt install nginx)")
    ports = [free_port(), free_port()]
    children = [start(tiny_bert, port, tmp_path / f"log{port}", drain_seconds) for port in ports]
    stop = threading.Event()
    try:
        with in_front(kind, ports, tmp_path) as port:
            loads = [Load(port, stop) for _ in range(4)]
            for load in loads:
                load.start()
            try:
                for place in (0, 1, 0, 1, 0, 1):
                    children[place].send_signal(signal.SIGTERM)
                    assert children[place].wait(20) == 0
                    children[place] = start(tiny_bert, ports[place], tmp_path / f"log{ports[place]}", drain_seconds)
            finally:
                stop.set()
                for load in loads:
                    load.join()
    finally:
        for child in children:
            child.kill()
            child.wait()
    statuses: list[Any] = [status for load in loads for status in load.statuses]
    assert len(statuses) > 200 and set(statuses) == {200}, {one: statuses.count(one) for one in set(statuses)}
