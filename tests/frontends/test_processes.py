"""The server with front-ends, as a user starts it: answers, metrics, and every process that may end."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from rtp_llm import Model
from tests.faults.test_process import BREAKS
from tests.real_server import ROOT, Running, free_port, launch, running, wait_until_ready
from tests.server.conftest import wait_until

TWO = ["--frontend_server_count", "2"]


@pytest.fixture(scope="module")
def server(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    port = free_port()
    arguments = ["--checkpoint_path", str(tiny_bert), "--start_port", str(port), "--log_format", "json", *TWO]
    with running(arguments, tmp_path_factory.mktemp("log") / "log", port) as server:
        assert "ready on" in server.log.read_text()  # before the first answer
        yield server


def post(url: str, texts: list[str]) -> httpx.Response:
    return httpx.post(f"{url}/v1/embeddings", json={"input": texts}, timeout=30, trust_env=False)


def front_ends(process: "subprocess.Popen[bytes]") -> list[int]:
    """The process ids of a server's front-ends."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(word) for word in children.read_text().split()]


def count(url: str, name: str) -> float:
    text = httpx.get(f"{url}/metrics", timeout=30, trust_env=False).text
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f"rtp_llm_{name}"))


def test_answers_are_those_of_one_process(server: Running, tiny_bert: Path) -> None:
    """Small requests, which front-ends tokenise, and large ones; whichever front-end a connection goes to."""
    small, large = ["the weather is lovely today"], [f"so sunny outside {n} " * 20 for n in range(200)]
    with Model(str(tiny_bert)) as model:
        wanted = {len(texts): np.asarray(model.embed(texts)) for texts in (small, large)}
    served: set[str] = set()
    for _ in range(60):
        for texts in (small, large) if not served else (small,):
            answer = post(server.url, texts).raise_for_status()
            served.add(answer.headers["x-request-id"].split("-")[0])  # whoever makes it, makes it in its own way
            vectors = np.array([row["embedding"] for row in answer.json()["data"]], np.float32)
            assert np.array_equal(vectors, wanted[len(texts)])
        if len(served) == 2:
            return
    raise AssertionError(f"one front-end has got all connections: {served}")


def test_errors_and_lookups(server: Running) -> None:
    answer = httpx.post(f"{server.url}/v1/embeddings", json={"input": ["a"], "dimensions": 99}, trust_env=False)
    assert answer.status_code == 400 and "99" in answer.json()["error"]["message"]
    tokens = httpx.post(f"{server.url}/tokenize", json={"prompt": "the weather"}, trust_env=False)
    assert tokens.json()["count"] == 4
    assert httpx.get(f"{server.url}/load", trust_env=False).json() == {"server_load": 0}
    assert httpx.get(f"{server.url}/models", trust_env=False).json()["data"][0]["stats"]["queue_absolute"] == 0


def test_metrics_are_those_of_all(server: Running) -> None:
    """Whichever front-end has answered, and whichever is asked."""
    path = "/v1/embeddings/dense"
    for _ in range(20):
        httpx.post(f"{server.url}{path}", json={"input": ["a"]}, timeout=30, trust_env=False).raise_for_status()
    assert count(server.url, f'requests_total{{model="saved",route="{path}",status="200"}}') == 20
    assert count(server.url, "frontends ") == 2
    assert count(server.url, "frontends_resident_memory_bytes") > 40e6


def test_the_log_says_who_speaks(server: Running) -> None:
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    (ready,) = (line for line in lines if line["message"].startswith("ready on"))
    assert "process" not in ready


def test_another_front_end_takes_a_dead_ones_place(tiny_bert: Path, tmp_path: Path) -> None:
    port = free_port()
    arguments = ["--checkpoint_path", str(tiny_bert), "--start_port", str(port), *TWO]
    with running(arguments, tmp_path / "log", port) as server:
        wait_until(lambda: "ready on" in server.log.read_text(), 60)
        first, second = front_ends(server.process)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: len(front_ends(server.process)) == 2 and first not in front_ends(server.process), 30)
        assert second in front_ends(server.process)
        for _ in range(20):  # those that the new one gets wait until it is ready
            assert post(server.url, ["a"]).status_code == 200
        assert count(server.url, "frontend_restarts_total") == 1
        server.process.send_signal(signal.SIGHUP)  # the keys are read again, and nothing ends
        assert post(server.url, ["a"]).status_code == 200
    log = server.log.read_text()
    assert "front-end 1 has ended with status -9; another one takes its place" in log
    assert "front-end 2 rtp_llm.server.app: ending" in log and "Traceback" not in log


def test_a_second_signal_stops_at_once(tiny_bert: Path, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    arguments = ["--checkpoint_path", str(tiny_bert), "--start_port", str(port), "--drain_seconds", "600", *TWO]
    process = launch(arguments, log)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process, log)
        wait_until(lambda: "ready on" in log.read_text(), 60)
        for child in front_ends(process):  # as systemd does it, which signals the whole group
            os.kill(child, signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        wait_until(lambda: httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 503)
        assert post(f"http://127.0.0.1:{port}", ["a"]).status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def test_front_ends_do_not_outlive_the_engine(tiny_bert: Path, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    process = launch(["--checkpoint_path", str(tiny_bert), "--start_port", str(port), *TWO], log)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process, log)
        wait_until(lambda: "ready on" in log.read_text(), 60)
        children = front_ends(process)
        assert len(children) == 2
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not any(_is_alive(child) for child in children), 30)
    with pytest.raises(httpx.ConnectError):
        post(f"http://127.0.0.1:{port}", ["a"])


def _is_alive(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_a_batch_thread_that_dies_ends_all(tiny_bert: Path, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    url = f"http://127.0.0.1:{port}"
    arguments = ["--checkpoint_path", str(tiny_bert), "--start_port", str(port), "--host", "127.0.0.1", *TWO]
    with log.open("wb") as stream:
        process = subprocess.Popen([sys.executable, "-c", BREAKS, *arguments], stderr=stream, cwd=ROOT)
    try:
        wait_until_ready(url, process, log)
        wait_until(lambda: "ready on" in log.read_text(), 60)
        answer = httpx.post(f"{url}/v1/embeddings", json={"input": [[5] * 13]}, timeout=30, trust_env=False)
        assert answer.status_code in (500, 503)
        assert process.wait(30) == 1
    finally:
        process.kill()
        process.wait()
    assert "a batch thread has died (SystemExit): the server has ended" in log.read_text()


_NO_START = """
import sys
from rtp_llm.frontends import supervisor
from rtp_llm.start_server import main
supervisor._COMMAND = (sys.executable, "-c", "import sys; sys.exit(3)")
main(sys.argv[1:])
"""


def test_one_that_does_not_start_is_the_end(tiny_bert: Path, tmp_path: Path) -> None:
    arguments = ["--checkpoint_path", str(tiny_bert), "--start_port", str(free_port()), *TWO]
    ended = subprocess.run(
        [sys.executable, "-c", _NO_START, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert "has ended with status 3 before it was ready; its log is above" in ended.stderr


def test_an_address_is_not_shared_with_strangers(server: Running, tiny_bert: Path, tmp_path: Path) -> None:
    port = server.url.rpartition(":")[2]
    for options in (TWO, []):
        log = tmp_path / "log"
        process = launch(["--checkpoint_path", str(tiny_bert), "--start_port", port, *options], log)
        assert process.wait(60) == 1
        assert f"cannot listen on 127.0.0.1:{port}" in log.read_text()


def test_the_environment_and_a_port_of_the_systems_choice(tiny_bert: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = launch(["--checkpoint_path", str(tiny_bert), "--port", "0"], log, FRONTEND_SERVER_COUNT="3")
    try:
        wait_until(lambda: "ready on" in log.read_text() or process.poll() is not None, 60)
        url = log.read_text().partition("ready on ")[2].split()[0].replace("localhost", "127.0.0.1")
        assert len(front_ends(process)) == 3 and count(url, "ready ") == 1
    finally:
        process.terminate()
        assert process.wait(30) == 0
