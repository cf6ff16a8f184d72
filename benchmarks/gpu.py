"""A GPU in ten minutes: `python -m benchmarks.gpu`, or on a CPU with tiny shapes `python -m benchmarks.gpu --dry-run`.

Six parts, each in a process of its own with its share of the time: ceilings (GEMM rates at the shapes used, copy
bandwidth), kernels (benchmarks.gpu_kernels), engine (tokens a second, beside transformers as sentence-transformers runs
it), served (over HTTP), parity (against fp32) and fp8. A part that fails or takes too long loses its own last rows and
nothing else. All rows go to benchmarks/results/gpu-DATE-COMMIT.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import report

# Seconds of each part; together below ten minutes.
PARTS = {"ceilings": 60, "kernels": 100, "engine": 200, "served": 110, "parity": 60, "fp8": 40}
# So much longer may a part take to end by itself: to load libraries, to finish a row.
_GRACE = 25
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
    facts = _device_facts(arguments.device)
    print(f"{facts['name']}, torch {facts['torch']}, triton {facts['triton']}, driver's CUDA {facts['cuda']}")
    results: dict[str, Any] = {}
    for part in arguments.parts:
        rows, problem = _in_process(part, arguments)
        results[part] = {"rows": rows, "problem": problem}
        print(f"\n{part}{f': {problem}' if problem else ''}\n{_table(rows)}", flush=True)
    print(f"\n{_table(_against_bars(results))}")
    path = _write({"device": facts, "machine": report.machine(), "commit": _commit(), "parts": results}, arguments)
    problems = {part: result["problem"] for part, result in results.items() if result["problem"]}
    rows_of = {part: len(result["rows"]) for part, result in results.items()}
    bars = _against_bars(results)
    report.finish({
        "benchmark": "gpu", "device": facts, "rows": rows_of, "problems": problems, "bars": bars, "file": str(path),
    })  # fmt: skip


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--device", default="cuda")
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


def _in_process(part: str, arguments: argparse.Namespace) -> tuple[list[Row], str]:
    """The part's rows, and what went wrong."""
    if part == "kernels":
        return _kernels(arguments)
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows"
        command = [sys.executable, "-m", "benchmarks.gpu", "--part", part, "--rows", str(rows)]
        command += ["--device", arguments.device, *(["--dry-run"] if arguments.dry_run else [])]
        problem, _ = _finish(command, PARTS[part], {})
        lines = rows.read_text().splitlines() if rows.exists() else []
    return [json.loads(line) for line in lines], problem


def _kernels(arguments: argparse.Namespace) -> tuple[list[Row], str]:
    """What benchmarks.gpu_kernels prints last."""
    command = [sys.executable, "-m", "benchmarks.gpu_kernels", *(["--dry-run"] if arguments.dry_run else [])]
    problem, output = _finish(command, PARTS["kernels"], {"TRITON_INTERPRET": "1"} if arguments.dry_run else {})
    try:
        found = json.loads(output.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return [], problem or "it printed no result"
    return list(found.get("rows", [])), problem


def _finish(command: list[str], seconds: float, environ: dict[str, str]) -> tuple[str, str]:
    """What went wrong with a command, and its standard output."""
    try:
        done = subprocess.run(
            command,
            timeout=seconds + _GRACE,
            capture_output=True,
            text=True,
            env={**os.environ, **environ},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds + _GRACE} s", ""
    lines = done.stderr.strip().splitlines()
    return (f"status {done.returncode}: {lines[-1] if lines else ''}" if done.returncode else ""), done.stdout


def _run_part(arguments: argparse.Namespace) -> None:
    """In the part's own process: rows to a file, one by one."""
    from benchmarks import gpu_parts, gpu_served
    from benchmarks.gpu_models import Machine

    parts: dict[str, Callable[[Machine, float], Iterator[Row]]] = {
        "ceilings": gpu_parts.ceilings, "engine": gpu_parts.engine, "served": gpu_served.served,
        "parity": gpu_parts.parity, "fp8": gpu_parts.fp8,
    }  # fmt: skip
    deadline = time.monotonic() + PARTS[arguments.part]
    with Path(arguments.rows).open("w") as file:
        for row in parts[arguments.part](Machine(arguments.device, arguments.dry_run), deadline):
            file.write(json.dumps(row) + "\n")
            file.flush()


def _device_facts(device: str) -> dict[str, Any]:
    """From a process of its own: this one must not hold the device's memory."""
    code = (
        "import json, torch\n"
        "try:\n import triton; version = triton.__version__\nexcept ImportError:\n version = None\n"
        f"name = torch.cuda.get_device_name() if {device!r} != 'cpu' else 'cpu'\n"
        "print(json.dumps({'name': name, 'torch': torch.__version__, 'cuda': torch.version.cuda, 'triton': version}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"device {device}: {done.stderr.strip().splitlines()[-1]} (--dry-run needs none)")
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


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
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _write(result: dict[str, Any], arguments: argparse.Namespace) -> Path:
    kind = "dry-run" if arguments.dry_run else "gpu"
    path: Path = arguments.results / f"{kind}-{date.today()}-{result['commit']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


if __name__ == "__main__":
    main()
