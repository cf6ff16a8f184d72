"""What the server costs before it does any work: `python -m benchmarks.footprint` (Linux).

Seconds from the start of the process to the first right answer, memory at rest against the weights' bytes, seconds of
imports, and the disk space of everything that `pip install` brings.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks import checkpoints, corpus, report
from benchmarks.disk import disk_bytes
from benchmarks.peers import OURS, FloatArray, Setup
from benchmarks.peers.process import EngineProcess, pin
from benchmarks.server_process import ServerProcess

_ROOT = Path(__file__).resolve().parents[1]
_TEXT = "What does this server cost at rest?"
_TOLERANCE = 1e-5
_SETTLE_SECONDS = 2.0
_IMPORTS = ("import rtp_llm", "from rtp_llm import Model", "import rtp_llm.start_server, rtp_llm.server.app")
_NOT_OURS = ("pip", "setuptools", "wheel", "_distutils_hack", "pkg_resources", "distutils-precedence.pth")
_BUILD_LEFTOVERS = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "*.so")


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parse(argv)
    pin(arguments.threads)
    checkpoint = checkpoints.choose(arguments.checkpoint, arguments.shape)
    facts = report.machine()
    weights = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    print(f"{report.describe(facts)}\n{checkpoint.name}: weights of {weights / 1e6:.1f} MB")
    result: dict[str, Any] = {"benchmark": "footprint", "machine": facts, "weights_bytes": weights}
    result |= measure_server(checkpoint, arguments.rounds)
    result["import_seconds"] = {code: import_seconds(code, arguments.rounds) for code in _IMPORTS}
    if not arguments.skip_install:
        result["installed_bytes"] = installed_bytes(arguments.install)
    print(_table(result))
    report.finish(result, arguments.json)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.footprint", description=__doc__)
    parser.add_argument("--checkpoint", default="", help="folder; default: all-MiniLM-L6-v2")
    parser.add_argument("--shape", default="", choices=("", *checkpoints.SHAPES), help="random weights")
    parser.add_argument("--rounds", type=int, default=5, help="starts of the server; medians are reported")
    parser.add_argument("--threads", type=int, default=0, help="cores; 0: all of this process")
    parser.add_argument("--install", default="", help="wheel or requirement to install; default: this source tree")
    parser.add_argument("--skip-install", action="store_true", help="leave out pip install, which needs an index")
    parser.add_argument("--json", default="", help="also write the JSON line to this file")
    return parser.parse_args(argv)


def measure_server(checkpoint: Path, rounds: int) -> dict[str, Any]:
    """Cold starts, and the memory of the last server at rest: after its first answer, and after some hundred texts."""
    passages = corpus.load(checkpoint)["passages"].texts
    setup = Setup(checkpoint, checkpoints.MODELS, max_seq_len=0)
    with closing(EngineProcess(OURS, setup, {"text": [_TEXT]})) as engine:
        expected = engine.vectors("text")
    seconds = []
    for number in tqdm(range(rounds), desc="cold starts", file=sys.stderr, leave=False):
        with ServerProcess(checkpoint) as server:
            seconds.append(_first_answer(server, expected))
            if number == rounds - 1:
                time.sleep(_SETTLE_SECONDS)
                started = server.memory()
                for start in range(0, len(passages), 64):
                    server.embed(passages[start : start + 64])
                time.sleep(_SETTLE_SECONDS)
                used = server.memory()
    return {"cold_start_seconds": seconds, "memory_started": started, "memory_used": used}


def _first_answer(server: ServerProcess, expected: FloatArray) -> float:
    vectors, seconds = server.wait_for_embedding(_TEXT)
    difference = float(np.abs(vectors - expected).max())
    if difference > _TOLERANCE:
        raise SystemExit(f"the server's first answer is {difference:.1e} from Model.embed's: it is wrong")
    return seconds


def import_seconds(code: str, rounds: int) -> float:
    """Median seconds of a new interpreter that runs `code`, beyond those of one that runs nothing."""
    return _interpreter_seconds(code, rounds) - _interpreter_seconds("pass", rounds)


def _interpreter_seconds(code: str, rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def installed_bytes(requirement: str) -> dict[str, int]:
    """Disk space of each entry of a new environment's site-packages, pip and setuptools left out, largest first."""
    with tempfile.TemporaryDirectory() as folder:
        if not requirement:  # a copy, since a build writes into its source tree
            requirement = str(shutil.copytree(_ROOT, Path(folder) / "source", ignore=_BUILD_LEFTOVERS))
        environment = Path(folder) / "environment"
        venv.create(environment, with_pip=True)
        install = [str(environment / "bin/python"), "-m", "pip", "install", "-qq", requirement]
        print(f"installing {requirement} …", file=sys.stderr)
        subprocess.run(install, check=True)
        (packages,) = environment.glob("lib/python*/site-packages")
        kept = [entry for entry in packages.iterdir() if not entry.name.startswith(_NOT_OURS)]
        sizes = {entry.name: disk_bytes(entry) for entry in kept}
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _table(result: dict[str, Any]) -> str:
    seconds, weights = result["cold_start_seconds"], result["weights_bytes"]
    rows = [
        ["start to first right answer", f"{statistics.median(seconds):.2f} s", f"{min(seconds):.2f}-{max(seconds):.2f}"]
    ]
    for key, label in (("memory_started", "after the first answer"), ("memory_used", "after 256 passages")):
        for kind, size in result[key].items():
            rows.append([f"{kind} {label}", f"{size / 1e6:.1f} MB", f"{size / weights:.2f} x weights"])
    rows += [[code, f"{seconds * 1e3:.0f} ms", ""] for code, seconds in result["import_seconds"].items()]
    if "installed_bytes" in result:
        sizes = result["installed_bytes"]
        rows.append(["pip install, in all", f"{sum(sizes.values()) / 1e6:.1f} MB", f"{len(sizes)} entries"])
        rows += [[f"  {name}", f"{size / 1e6:.1f} MB", ""] for name, size in list(sizes.items())[:8]]
    return report.table(("", "median", "range or ratio"), rows)


if __name__ == "__main__":
    main()
