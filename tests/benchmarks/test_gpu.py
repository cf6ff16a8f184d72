"""The GPU's benchmark on tiny shapes: its parts here and now, the whole command when there is time."""

import importlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
from benchmarks import (
    checkpoints,
    gpu,
    gpu_fp8,
    gpu_models,
    gpu_parity,
    gpu_parts,
    gpu_profile,
    gpu_rows,
    gpu_served,
    gpu_small,
)
from rtp_llm import Model

MACHINE = gpu_models.Machine("cpu", dry_run=True)


def test_parity_is_exact_in_fp32() -> None:
    rows = list(gpu_parity.parity(MACHINE, math.inf))
    assert [row["model"] for row in rows] == ["MiniLM", *gpu_models.TINY]
    assert all(row["ours_least_cosine"] > 0.999999 < row["peer_least_cosine"] for row in rows)


def test_every_engine_row_is_there() -> None:
    rows = list(gpu_parts.engine(MACHINE, math.inf))
    assert [(row["length"], row["what"]) for row in rows] == [
        (length, what) for length in (16, 64) for _ in gpu_models.TINY for what in ("engine", "peer")
    ]
    assert all(row["tokens_s"] > 0 for row in rows)


def test_no_row_begins_after_the_deadline() -> None:
    late = time.monotonic() - 1
    assert not list(gpu_parts.engine(MACHINE, late)) and not list(gpu_parts.ceilings(MACHINE, late))


@pytest.mark.parametrize("name", [*gpu_models.SHAPES, *gpu_models.TINY])
def test_work_counts_the_weights_of_the_model(name: str) -> None:
    hf: dict[str, Any] = (gpu_models.SHAPES | gpu_models.TINY)[name]
    published = {"bge-base": 84.9e6, "bge-large": 302e6, "Qwen3-0.6B": 440e6, "Qwen3-8B": 6.95e9, "Qwen3-4B": 3.63e9}
    work = gpu_models.Work.of(hf)
    parameters = work.num_layers * sum(math.prod(shape) for shape in work.products)
    assert parameters == pytest.approx(published.get(name, parameters), rel=0.01)
    assert work.flops([128] * 10) > 2 * parameters * 1280


def test_a_part_that_fails_says_so(tmp_path: Path) -> None:
    command = ["python3", "-c", "import sys; print('first', file=sys.stderr); raise SystemExit('no device')"]
    assert gpu._finish(command, 30, {}) == ("status 1: no device", ["first", "no device"])


def test_a_part_that_takes_too_long_is_stopped_with_what_it_has_started() -> None:
    started = time.monotonic()
    problem = gpu._finish(["sh", "-c", "echo why >&2; sleep 20 & sleep 20"], 0.2, {})
    assert problem == ("stopped after 0 s", ["why"])
    assert time.monotonic() - started < 10


def test_a_benchmark_that_is_told_to_stop_keeps_what_it_has(tmp_path: Path) -> None:
    """The rows of the part that ran, and all that ran before it."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--parts", "engine", "--results", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not (files := list(tmp_path.glob("*.rows"))) or not files[0].read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    printed, _ = process.communicate(timeout=60)
    written = json.loads(next(tmp_path.glob("*.json")).read_text())["parts"]["engine"]
    assert written["problem"] == "interrupted" and written["rows"] and "engine: interrupted" in printed
    assert not list(tmp_path.glob("*.rows"))


def test_a_part_ends_with_who_has_started_it() -> None:
    """Killed at once, a benchmark says nothing to its part, which would keep the device."""
    part = "from benchmarks import gpu; gpu._end_with_starter()"
    starter = f"import sys; from benchmarks import gpu; gpu._finish([sys.executable, '-c', {part!r}], 60, {{}})"
    with subprocess.Popen([sys.executable, "-c", starter]) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (found := children.read_text().split()):
            time.sleep(0.01)
        process.kill()
    stat = Path(f"/proc/{found[0]}/stat")
    until = time.monotonic() + 30
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < until, "the part is still there"
        time.sleep(0.05)


def test_what_fails_is_a_row_and_the_next_ones_follow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build = gpu_models.build

    def breaks(hf: Any, ops: Any) -> Any:
        if hf["model_type"] == "bert":
            raise AttributeError("no such name in this version")
        return build(hf, ops)

    monkeypatch.setattr(gpu_models, "build", breaks)
    monkeypatch.setattr(gpu_models, "peer", lambda *_: 1 / 0)
    rows = list(gpu_parts.engine(MACHINE, math.inf))
    assert [(row["what"], row["model"], "failed" in row) for row in rows] == [
        ("engine", "tiny-bert", True),
        ("peer", "tiny-bert", True),
        ("engine", "tiny-qwen3", False),
        ("peer", "tiny-qwen3", True),
    ] * 2
    assert rows[0]["failed"].startswith("AttributeError: no such name in this version (test_gpu.py:")
    assert "Traceback" in capsys.readouterr().err


def test_rows_before_a_failure_stay() -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield {"what": 1}
        raise RuntimeError("two\nlines")

    first, second = gpu_rows.attempt({"model": "x"}, rows)
    assert first == {"what": 1} and second["model"] == "x" and second["failed"].startswith("RuntimeError: two lines (")


@pytest.mark.parametrize("part", gpu.PARTS)
def test_every_part_has_its_module(part: str) -> None:
    assert callable(getattr(importlib.import_module(f"benchmarks.{gpu._MODULES[part]}"), part))


def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert gpu._commit() == "unknown"


def test_batches_in_flight_are_those_of_each_alone() -> None:
    rows = list(gpu_small.small(MACHINE, math.inf))
    assert [row["what"] for row in rows] == ["in flight", "small", "small"] * 2
    assert all(row["ok"] and row["least_cosine"] > 0.999999 for row in rows)


def test_a_step_is_told_by_kinds_of_kernels() -> None:
    rows = list(gpu_profile.profiled(MACHINE, math.inf))
    assert [row["model"] for row in rows if "step_us" in row] == list(gpu_models.TINY)
    assert all(row["us"] > 0 < row["launches"] for row in rows if "kind" in row)
    kernels = {"nvjet_hsh_128": (30.0, 12), "attention_kernel": (6.0, 3), "void GeluCUDAKernelImpl": (3.0, 3)}
    kernels["cudaLaunchKernel"] = (0.0, 20)
    found = gpu_profile._by_kind(kernels | {"sm90_xmma_gemm_gelu": (3.0, 3)})
    assert set(found) == {"product", "attention", "gelu"}
    assert found["product"] == (11.0, 5.0, "nvjet_hsh_128") and found["gelu"].us == found["attention"].us / 2 == 1.0


def test_parts_share_what_time_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    shares = {}
    for part, seconds in gpu._shares(["ceilings", "served", "kernels"], 100.0):
        shares[part] = round(seconds)
        now[0] += {"ceilings": 60.0, "served": 10.0}.get(part, 0.0)
    assert shares == {"ceilings": 16, "served": 21, "kernels": 30}


def test_fp8_tells_the_gates_cosines() -> None:
    rows = list(gpu_fp8.fp8(MACHINE, math.inf))
    assert [row["model"] for row in rows] == ["MiniLM", *gpu_models.TINY]
    assert all(row["p1_cosine"] > 0.9 for row in rows) and rows[0]["mean_cosine"] > 0.99


def test_without_the_servers_libraries_nothing_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_served, "SERVING", ("json", "no_such_module"))
    assert list(gpu_served.served(MACHINE, math.inf)) == [
        {"what": "served", "skipped": "not installed: no_such_module"}
    ]


def test_a_tokenizer_is_made_where_none_is_at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(checkpoints.SHAPES, "tiny", (32, 1, 64, 4, 512, "cls"))
    folder = checkpoints.random_weights("tiny", tmp_path, tokenizer=checkpoints.made_up(tmp_path / "made-up"))
    texts = gpu_served._texts(folder, 3)
    with Model(folder) as model:
        assert model.embed(texts).shape == (3, 32)


@pytest.mark.slow
def test_the_whole_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], minilm: Path) -> None:
    gpu.main(["--dry-run", "--results", str(tmp_path)])
    line = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert not line["problems"] and set(line["rows"]) == set(gpu.PARTS) and all(line["rows"].values())
    written = json.loads(Path(line["file"]).read_text())
    assert set(written["parts"]) == set(gpu.PARTS)
