"""The layout's rules: imports point down, and each heavy library has one door."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "rtp_llm"
SOURCES = sorted(ROOT.rglob("*.py"))

FLOORS = [  # top to bottom: a file imports its own package or a floor below
    {"__main__", "__init__"},
    {"cli"},
    {"start_server", "verify", "quantize"},
    {"frontends", "offline"},
    {"server"},
    {"engine"},
    {"runtime"},
    {"tasks", "models"},
    {"model_config"},
    {"task_choice"},
    {"adapter_head", "late_interaction", "m3_heads", "modules", "transformer_settings"},
    {"config_files"},
    {"ops", "checkpoint"},
    {"served_models"},
    {"flags"},
    {"arguments"},
    {"adapter_choice", "config", "custom", "entities", "ignored_options", "observability", "similarity"},
    {"option"},
    {"core", "errors"},
    {"architectures", "chat_format", "child_process", "end_signals", "sides", "standard_streams", "timings"},
    {"records"},
]
DOORS = {  # library -> the only files that may import it
    "torch": {"ops/torch_", "ops/device_ops.py", "ops/triton_", "runtime/torch", "verify/"},
    "triton": {"ops/triton_"},
    "transformers": {"verify/"},
    "sentence_transformers": {"verify/"},
    "FlagEmbedding": {"verify/"},
    "ctypes": {"ops/native_library.py"},
    "tokenizers": {"engine/tokenizer"},
    "starlette": {"server/"},
    "uvicorn": {"server/"},
    "grpc": {"server/grpc/"},
    "google": {"server/grpc/"},
    "prometheus_client": {
        f"observability/{name}.py" for name in ("metrics", "process_metrics", "families", "histogram")
    },
    "opentelemetry": {"observability/tracing.py"},
    "huggingface_hub": {"checkpoint/hub.py", "checkpoint/onnx.py"},  # the second reads model cards
    "yaml": {"served_models.py"},
}


def part(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def floor(name: str) -> int:
    return next(i for i, names in enumerate(FLOORS) if name in names)


@cache
def nodes(path: Path) -> list[ast.AST]:
    return [*ast.walk(ast.parse(path.read_text()))]


@cache
def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return names


def own_parts(path: Path) -> set[str]:
    parts = {name.split(".")[1] for name in imported(path) if name.startswith("rtp_llm.")}
    return {name for name in parts if (ROOT / name).is_dir() or (ROOT / f"{name}.py").exists()}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    own = part(path)
    wrong = [name for name in own_parts(path) if name != own and floor(name) <= floor(own)]
    assert not wrong, f"{path} imports sideways or up: {wrong}"


@pytest.mark.parametrize("library", DOORS)
def test_each_library_has_one_door(library: str) -> None:
    users = {
        str(path.relative_to(ROOT)) for path in SOURCES if any(name.split(".")[0] == library for name in imported(path))
    }
    assert not [user for user in users if not any(user.startswith(door) for door in DOORS[library])]


def test_import_rtp_llm_is_light() -> None:
    heavy = "{'numpy', 'tokenizers', 'starlette', 'torch', 'huggingface_hub'}"
    code = f"import sys, rtp_llm; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path) -> None:
    assert path.read_text().count("\n") <= 400
    functions = (node for node in nodes(path) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
    assert not [n.name for n in functions if (n.end_lineno or 0) - n.lineno > 50]
