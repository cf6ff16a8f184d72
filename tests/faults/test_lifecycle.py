"""From start to end: when the port opens, how a signal drains, what a second does, and what cannot start says why."""

import logging
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from rtp_llm.runtime.cpu import CpuRuntime
from rtp_llm.start_server import main
from tests.checkpoint.hub_server import Repository, serve
from tests.real_server import ROOT, free_port, launch, running
from tests.server.conftest import wait_until
from tests.server.process import process, running_requests

pytestmark = pytest.mark.faults

BODY = {"input": "a"}


def get(port: int, path: str) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False, timeout=10)


def post(port: int) -> httpx.Response:
    return httpx.post(f"http://127.0.0.1:{port}/v1/embeddings", json=BODY, trust_env=False, timeout=30)


def is_ending(port: int) -> bool:
    """Whether a first signal has been heeded, so that a second one is not taken for the same."""
    try:
        return get(port, "/health").status_code == 503
    except httpx.TransportError:
        return True


def test_the_port_opens_when_requests_can_be_answered(tiny_bert: Path, tmp_path: Path) -> None:
    port = free_port()
    child = launch([str(tiny_bert), "--port", str(port)], tmp_path / "log")
    try:
        refused, first = 0, None
        while first is None:
            try:
                first = post(port)
            except httpx.ConnectError:
                refused += 1
                time.sleep(0.01)
        assert refused > 0 and first.status_code == 200
        assert get(port, "/health").status_code == get(port, "/live").status_code == 200
    finally:
        child.terminate()
        assert child.wait(20) == 0


def test_draining_serves_on_and_says_so() -> None:
    port = free_port()
    with process(start_port=port, drain_seconds=60) as child:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=10) as kept:
            assert "connection" not in kept.post("/v1/embeddings", json=BODY).headers
            child.send_signal(signal.SIGTERM)
            wait_until(lambda: get(port, "/health").status_code == 503)
            health = get(port, "/health")
            assert health.headers["retry-after"] == "1" and "about to shut down" in health.text
            assert get(port, "/live").status_code == 200
            assert "rtp_llm_ready 0.0" in get(port, "/metrics").text
            for answer in (kept.post("/v1/embeddings", json=BODY), post(port)):
                assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        child.send_signal(signal.SIGTERM)  # a drain that is long enough for a busy machine is not waited for
        assert child.communicate(timeout=30) == ("ended\n", "")
        with pytest.raises(httpx.ConnectError):
            post(port)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("drain_seconds", [0, 60])
def test_a_second_signal_stops_at_once(number: signal.Signals, drain_seconds: int) -> None:
    port = free_port()
    with process(60, start_port=port, drain_seconds=drain_seconds, shutdown_timeout=60) as child:
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(post(port)))
        thread.start()
        wait_until(lambda: running_requests(port) == 1)
        child.send_signal(number)
        wait_until(lambda: is_ending(port))
        assert child.poll() is None
        child.send_signal(number)
        assert child.wait(30) == 0  # half of what the answer, the drain and the shutdown would take
        thread.join()
    assert answers[0].status_code == 503 and "shutting down" in answers[0].text


def test_a_port_of_the_systems_choice_and_more_threads_than_cores_are_told(tiny_bert: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = launch([str(tiny_bert), "--port", "0", "--num_threads", "10000"], log)
    try:
        wait_until(lambda: "ready on" in log.read_text() or child.poll() is not None, 60)
        (port,) = set(re.findall(r"http://localhost:(\d+)", log.read_text()))
        assert get(int(port), "/live").status_code == 200
        assert re.search(r"WARNING .*num_threads 10000: \d+ compute", log.read_text())
    finally:
        child.terminate()
        assert child.wait(20) == 0


def test_clients_that_do_not_read_are_told_of_at_the_end() -> None:
    """Each has an answer, so nothing that the server does is an error."""
    port, inputs = free_port(), b",".join([b'"a"'] * 50_000)
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (len(inputs) + 12)
    with process(start_port=port, shutdown_timeout=1, max_client_batch_size=50_000) as child:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(head + b'{"input":[' + inputs + b"]}")
            wait_until(lambda: 'route="/v1/embeddings",status="200"} 1.0' in get(port, "/metrics").text)
            child.send_signal(signal.SIGTERM)
            out, log = child.communicate(timeout=20)
    assert out == "ended\n" and "Cancel" not in log
    assert "which get 503: 0; connections that are closed with an answer that their client has not read: 1" in log


def test_a_second_signal_does_not_wait_for_a_long_step(tiny_bert: Path, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    code = (
        "import sys, time\nfrom rtp_llm.runtime.cpu import CpuRuntime\nfrom rtp_llm.start_server import main\n"
        "run = CpuRuntime.run\n"
        "CpuRuntime.run = lambda *given: (time.sleep(60 * (len(given[1]) == 7)), run(*given))[1]\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", code, str(tiny_bert), "--port", str(port), "--host", "127.0.0.1"]
    with log.open("wb") as stream:
        child = subprocess.Popen(command, stderr=stream, cwd=ROOT)
    try:
        wait_until(lambda: "ready on" in log.read_text(), 60)
        answers: list[httpx.Response] = []
        url, body = f"http://127.0.0.1:{port}/v1/embeddings", {"input": [[n] for n in range(7)]}
        thread = threading.Thread(target=lambda: answers.append(httpx.post(url, json=body, trust_env=False)))
        thread.start()
        wait_until(lambda: running_requests(port) == 1)
        child.send_signal(signal.SIGTERM)
        wait_until(lambda: is_ending(port))
        child.send_signal(signal.SIGTERM)
        child.wait(30)  # half of what the step would take
        thread.join()
    finally:
        child.kill()
        child.wait()
    assert "Traceback" not in log.read_text() and answers[0].status_code == 503
    # The one that looks whether it is ending may be under way too.
    assert re.search(r"ending: requests under way, which have \d+ s \(shutdown_timeout\): [12]$", log.read_text(), re.M)


def test_an_interrupt_before_the_server_is_ready(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom rtp_llm.engine import loading\nfrom rtp_llm.start_server import main\n"
        "loading.load_engines = lambda *_: (print('loading', flush=True), time.sleep(60))\nmain(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), "--port", "0", "--host", "127.0.0.1"]
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        # What a shell starts in the background ignores it, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert child.stdout is not None and child.stdout.readline() == "loading\n"
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=30)  # half of what the loading would take
    assert child.returncode == 130 and "interrupted before the server was ready" in errors and "Trace" not in errors


def starts_badly(arguments: list[str], before: Callable[[], Any] | None = None, **environ: str) -> str:
    """The last line that a server says which exits with status 1, and without a traceback."""
    command = [sys.executable, "-m", "rtp_llm.start_server", *arguments, "--port", "0", "--host", "127.0.0.1"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "NO_PROXY": "127.0.0.1", **environ},
        preexec_fn=before,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    return next(line for line in reversed(done.stderr.splitlines()) if line)


def test_no_memory(minilm: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (256 << 20, 256 << 20))

    line = starts_badly([str(minilm)], limit, OPENBLAS_NUM_THREADS="1")
    assert "ERROR rtp_llm" in line and ("not enough memory" in line or "Cannot allocate memory" in line)


def test_no_memory_for_the_canary(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def run(self: CpuRuntime, *_: Any) -> Any:
        raise MemoryError("no memory for the activations of a batch; lower max_context_batch_size")

    monkeypatch.setattr(CpuRuntime, "run", run)
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    with pytest.raises(SystemExit) as ended:
        main([str(tiny_bert), "--port", "0", "--host", "127.0.0.1"])
    for handler in root.handlers:
        handler.flush()
    assert ended.value.code == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "ERROR rtp_llm: " in line and f"{tiny_bert}: the warm-up failed" in line and "lower max_context" in line


@pytest.mark.parametrize("home", ["/proc/nowhere", "/dev/full"])
def test_a_home_that_cannot_be_written_to(home: str, tiny_bert: Path, tmp_path: Path) -> None:
    """What is on the disk is served all the same; what must be fetched has nowhere to go."""
    environ = {"HOME": home, "XDG_CACHE_HOME": f"{home}/cache", "HF_HOME": f"{home}/hub", "TMPDIR": home}
    port = free_port()
    with running([str(tiny_bert), "--port", str(port)], tmp_path / "log", port, **environ):
        assert post(port).status_code == 200
    repository = Repository({"main": {"config.json": b"{}", "model.safetensors": b"x" * 1000}})
    with serve({"org/model": repository}) as hub:
        line = starts_badly(["org/model", "--hf_endpoint", hub.endpoint], None, **environ)
    assert "ERROR rtp_llm: org/model cannot be written to" in line and "set download_dir" in line


def test_a_full_disk_while_fetching(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    repository = Repository({"main": {"config.json": b"{}", "model.safetensors": b"x" * 1_000_000}})
    with serve({"org/model": repository}) as hub:
        arguments = ["org/model", "--hf_endpoint", hub.endpoint, "--download_dir", str(tmp_path)]
        line = starts_badly(arguments, limit)
    assert f"ERROR rtp_llm: org/model cannot be written to {tmp_path}" in line


def test_a_log_on_a_full_disk(tiny_bert: Path) -> None:
    """Every line is lost, and every request is answered."""
    port = free_port()
    command = [sys.executable, "-m", "rtp_llm.start_server", str(tiny_bert), "--port", str(port), "--log_requests", "1"]
    with open("/dev/full", "wb") as full:
        child = subprocess.Popen([*command, "--host", "127.0.0.1"], stderr=full, cwd=ROOT)
    check_serving(child, port)


def test_a_log_whose_reader_has_gone(tiny_bert: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "rtp_llm.start_server", str(tiny_bert), "--port", str(port), "--log_requests", "1"]
    child = subprocess.Popen([*command, "--host", "127.0.0.1"], stderr=subprocess.PIPE, cwd=ROOT)
    assert child.stderr is not None
    child.stderr.close()
    check_serving(child, port)


def test_standard_streams_that_the_caller_has_closed(tiny_bert: Path) -> None:
    """Their numbers were those of sockets, one of which got the log, and whose closing ended the process."""
    port = free_port()
    command = [sys.executable, "-m", "rtp_llm.start_server", str(tiny_bert), "--port", str(port)]
    child = subprocess.Popen([*command, "--host", "127.0.0.1"], cwd=ROOT, preexec_fn=lambda: os.closerange(0, 3))
    try:
        wait_until(lambda: is_serving(port), 60)
        streams = [os.readlink(f"/proc/{child.pid}/fd/{number}") for number in range(3)]
        child.terminate()
        assert child.wait(20) == 0 and streams == ["/dev/null"] * 3
    finally:
        child.kill()
        child.wait()


def is_serving(port: int) -> bool:
    try:
        return get(port, "/health").status_code == 200
    except httpx.ConnectError:
        time.sleep(0.05)
        return False


def check_serving(child: "subprocess.Popen[bytes]", port: int) -> None:
    try:
        wait_until(lambda: is_serving(port), 60)
        assert [post(port).status_code for _ in range(20)] == [200] * 20
        lost = next(line for line in get(port, "/metrics").text.splitlines() if line.startswith("rtp_llm_lost_log"))
        assert float(lost.split()[1]) >= 20
        child.terminate()
        assert child.wait(20) == 0
    finally:
        child.kill()
        child.wait()


def test_what_is_open_at_a_signal_without_draining() -> None:
    """A body that has not come gets 503, one that comes is answered, half a head is closed: none is left waiting."""
    port, body = free_port(), b'{"input": "a"}'
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n"
    firsts = (head + body[:5], head + body[:5], b"POST /v1/emb", b"")
    with process(start_port=port, shutdown_timeout=60) as child, ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 30)) for _ in firsts]
        for client, first in zip(clients, firsts, strict=True):
            client.sendall(first)
        wait_until(lambda: get(port, "/live").status_code == 200)
        child.send_signal(signal.SIGTERM)
        clients[1].sendall(body[5:])
        answers = [stack.enter_context(client.makefile("rb")).read() for client in clients]
        assert child.wait(30) == 0
    assert answers[0].startswith(b"HTTP/1.1 503 ") and b"body did not arrive" in answers[0]
    assert answers[1].startswith(b"HTTP/1.1 200 ") and answers[2:] == [b"", b""]
