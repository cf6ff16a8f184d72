"""The server over the fake engine, in a process of its own, with any options."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from tests.real_server import ROOT

_PROGRAM = """
import json, sys
from rtp_llm.config import ServerConfig
from rtp_llm.server import serve
from tests.server.fake_engine import FakeEngine

engine = FakeEngine()
engine.delay = float(sys.argv[1])
config = ServerConfig(checkpoint_path="fake", host="127.0.0.1", **json.loads(sys.argv[2]))
serve(engine, config, on_ready=lambda port: print("ready", flush=True))
print("ended", flush=True)
"""


@contextmanager
def process(delay: float = 0.0, **options: Any) -> Iterator["subprocess.Popen[str]"]:
    """A process that has said "ready", and says "ended" at its end; each answer takes `delay` seconds."""
    command = [sys.executable, "-c", _PROGRAM, str(delay), json.dumps(options)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        yield child
    finally:
        child.kill()
        child.communicate()


def running_requests(port: int) -> int:
    """How many requests have reached the engine of the server at `port` and have no answer yet."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False, timeout=10).text
    found = re.search(r'^rtp_llm_requests_in_flight\{.*lane="interactive".*\} (\S+)$', text, re.MULTILINE)
    assert found is not None, text
    return int(float(found[1]))
