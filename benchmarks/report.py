"""What every benchmark prints: the machine, a table, and one JSON line at the end."""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_PACKAGES = (
    "rtp-llm", "numpy", "tokenizers", "torch", "transformers", "sentence-transformers", "onnxruntime", "openvino",
    "nncf", "ctranslate2",
)  # fmt: skip
_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd")


def machine() -> dict[str, Any]:
    """The processor, the cores this process may use, and the load that others put on them."""
    facts = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if line.count(":") == 1)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    present = set(facts.get("flags", facts.get("Features", "")).split())
    return {
        "cpu": facts.get("model name", platform.processor()),
        "family_model": f"{facts.get('cpu family', '?')}/{facts.get('model', '?')}",
        "flags": [flag for flag in _FLAGS if flag in present],
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
    }


def processor(facts: Mapping[str, Any]) -> str:
    """Its name and family/model, where they were recorded: AMD's of several generations share one name."""
    name = str(facts["cpu"]).replace("(R)", "").removesuffix(" Processor")
    return f"{name} {facts['family_model']}" if "family_model" in facts else name


def describe(facts: dict[str, Any]) -> str:
    """The machine in one line."""
    return (
        f"{facts['cpu']} (family/model {facts['family_model']}: {' '.join(facts['flags'])}), {facts['cores']} cores, "
        f"load average {facts['load_average']:.2f}, Python {facts['python']}"
    )


def busy_seconds() -> float:
    """CPU seconds that all processes together have used since the machine started, what a hypervisor took included."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process so far, in steps of a clock tick (10 ms)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def versions() -> dict[str, str]:
    """Versions of the engines and what they stand on, where installed."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def provenance() -> dict[str, str]:
    """The day, and the commit of this checkout, with a + where files differ from it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"], capture_output=True, text=True, check=False
    )
    return {"date": datetime.date.today().isoformat(), "commit": described.stdout.strip() or "unknown"}


def read(path: str) -> dict[str, Any]:
    """An earlier result; {} where there is none."""
    found: dict[str, Any] = json.loads(Path(path).read_text()) if path and Path(path).exists() else {}
    return found


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (headers, *rows)) for column in range(len(headers))]
    lines = []
    for row in (headers, ["-" * width for width in widths], *rows):
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[0] = row[0].ljust(widths[0])
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def finish(result: dict[str, Any], path: str = "") -> None:
    """Prints the result as the last line, and writes it to `path` when one is given."""
    line = json.dumps(result, sort_keys=True)
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(line + "\n")
    print(line)
