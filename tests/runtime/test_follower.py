"""What a rank says to the first: words alone, whatever the libraries that it loads print."""

import json
import subprocess
import sys

import pytest

from tests.real_server import ROOT

pytest.importorskip("torch")
_NOISY = """
import os, sys
from rtp_llm.runtime import follower

def follow(order, *say):
    os.write(1, b"host:1:1 [0] NCCL INFO Bootstrap\\n")
    print("and from Python", flush=True)
    (say[0] if say else follower._say)("loaded")

follower._follow = follow
follower.main()
"""


def test_what_libraries_print_is_no_word() -> None:
    order = json.dumps({"rank": 1}) + "\n"
    with subprocess.Popen(
        [sys.executable, "-c", _NOISY], cwd=ROOT, stdin=-1, stdout=-1, stderr=-1, text=True
    ) as process:
        assert process.stdin is not None
        process.stdin.write(order)
        process.stdin.flush()
        assert process.wait(60) == 0
        assert process.stdout is not None and process.stdout.read() == "loaded\n"
        assert process.stderr is not None and "NCCL INFO" in process.stderr.read()
