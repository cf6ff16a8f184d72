"""What stops a command half way is one line, and leaves no half of a file."""

import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import FAST, Shell
from tests.real_server import ROOT
from tests.tasks.checkpoints import save

pytest.importorskip("torch")
pytest.importorskip("transformers")

TEXT = b"the weather\nso sunny\n"


# As in a terminal: what a shell runs in the background ignores interrupts.
MAIN = """import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
from rtp_llm.cli import main
main()"""


def command(*arguments: Any, **streams: Any) -> "subprocess.Popen[bytes]":
    """A command in a process of its own, which can be interrupted."""
    line = [sys.executable, "-c", MAIN, *map(str, arguments)]
    return subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, **streams)


@contextmanager
def limited(num_bytes: int) -> Iterator[None]:
    """No file may become longer: as a disk that is full, but for the error's name."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def interrupt(
    process: "subprocess.Popen[bytes]", is_time: Callable[[], bool], number: int = signal.SIGINT
) -> tuple[int, bytes]:
    """-> status and standard error of a process that gets this signal when it is time."""
    deadline = time.monotonic() + 60
    while not is_time():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    return process.wait(20), process.communicate()[1]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts"
    path.write_text("".join(f"{number} so sunny {number} the weather is lovely\n" for number in range(200_000)))
    return path


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What takes a while to quantise."""
    save(folder := tmp_path_factory.mktemp("larger"), hidden_size=64, num_hidden_layers=12)
    return folder


@pytest.mark.parametrize(
    ("name", "later", "number", "ended"),
    [
        ("out.jsonl", 1.5, signal.SIGINT, (130, b"rtp-llm embed: interrupted\n")),
        ("out.npy", 0.0, signal.SIGINT, (130, b"rtp-llm embed: interrupted\n")),
        ("out.jsonl", 1.5, signal.SIGTERM, (143, b"")),
        ("out.npy", 0.0, signal.SIGHUP, (129, b"")),
        ("out.jsonl", 0.0, signal.SIGQUIT, (131, b"")),
    ],
    ids=["computing", "loading", "SIGTERM", "SIGHUP", "SIGQUIT"],
)
def test_an_interrupt_leaves_no_file(
    name: str, later: float, number: int, ended: tuple[int, bytes], m3: Path, texts: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("an hour's work")
    process, started = command("embed", m3, texts, tmp_path / name, *FAST), list[float]()

    def is_time() -> bool:
        if len([*tmp_path.iterdir()]) == 2:
            started.append(time.monotonic())
        return bool(started) and time.monotonic() - started[0] >= later

    assert interrupt(process, is_time, number) == ended
    assert [path.read_text() for path in tmp_path.iterdir()] == ["an hour's work"]


@pytest.mark.parametrize(
    ("number", "ended"),
    [(signal.SIGINT, (130, b"rtp-llm quantize: interrupted\n")), (signal.SIGTERM, (143, b""))],
    ids=["SIGINT", "SIGTERM"],
)
def test_an_interrupt_leaves_no_folder(number: int, ended: tuple[int, bytes], larger: Path, tmp_path: Path) -> None:
    process = command("quantize", larger, tmp_path / "out", "--mean_cosine", "0.99999", *FAST)
    assert interrupt(process, (tmp_path / "out").exists, number) == ended
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["out.jsonl", "out.npy"])
def test_a_file_that_becomes_too_large(name: str, shell: Shell, m3: Path, tmp_path: Path) -> None:
    with limited(1 << 10):
        done = shell("embed", m3, "-", tmp_path / name, *FAST, stdin=TEXT * 20)
    assert done == (1, "", f"rtp-llm embed: {tmp_path / name}: File too large\n")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("limit", [1 << 8, 1 << 13], ids=["files", "weights"])
@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_that_becomes_too_large(
    is_there: bool, limit: int, shell: Shell, classifier: Path, tmp_path: Path
) -> None:
    if is_there:
        (tmp_path / "out").mkdir()
    with limited(limit):
        done = shell("quantize", classifier, tmp_path / "out", *FAST)
    assert done.status == 1 and done.err.startswith(f"rtp-llm quantize: {tmp_path / 'out'}"), done.err
    assert "File too large" in done.err and len(done.err.splitlines()) == 1
    assert [path.name for path in tmp_path.rglob("*")] == (["out"] if is_there else [])


PRINTING = [("embed", "{m3}", "-", "-", *FAST), ("classify", "{classifier}", *FAST), ("--version",)]


@pytest.mark.parametrize("arguments", PRINTING, ids=["embed", "classify", "version"])
def test_standard_output_that_is_full(arguments: tuple[str, ...], m3: Path, classifier: Path) -> None:
    told = [argument.format(m3=m3, classifier=classifier) for argument in arguments]
    with open("/dev/full", "wb") as full:
        process = command(*told, stdin=subprocess.PIPE, stdout=full)
        err = process.communicate(TEXT, timeout=60)[1].decode()
    name = "rtp-llm" if told[0] == "--version" else f"rtp-llm {told[0]}"
    assert (process.returncode, err) == (1, f"{name}: standard output: No space left on device\n")


@pytest.mark.parametrize("arguments", PRINTING, ids=["embed", "classify", "version"])
def test_a_reader_that_has_gone(arguments: tuple[str, ...], m3: Path, classifier: Path) -> None:
    told = [argument.format(m3=m3, classifier=classifier) for argument in arguments]
    process = command(*told, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    err = process.communicate(TEXT, timeout=60)[1]
    assert (process.returncode, err) == (141, b"")


VERIFYING = """
import os, signal, sys
import rtp_llm.verify
from rtp_llm.cli import main

def verify(config, options):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        print("tidied", flush=True)

rtp_llm.verify.verify = verify
main(["verify", "checkpoint"])
"""


def test_verify_takes_its_links_away_when_it_is_ended() -> None:
    done = subprocess.run([sys.executable, "-c", VERIFYING], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (143, "tidied\n"), done.stderr
