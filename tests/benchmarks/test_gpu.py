"""The GPU's benchmark on tiny shapes: its parts here and now, the whole command when there is time."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
from benchmarks import gpu, gpu_models, gpu_parts

MACHINE = gpu_models.Machine("cpu", dry_run=True)


def test_parity_is_exact_in_fp32() -> None:
    rows = list(gpu_parts.parity(MACHINE, math.inf))
    assert [row["model"] for row in rows] == list(gpu_models.TINY)
    assert all(row["ours_least_cosine"] > 0.999999 for row in rows)


def test_every_engine_row_is_there() -> None:
    rows = list(gpu_parts.engine(MACHINE, math.inf))
    assert [(row["what"], row["length"]) for row in rows] == [
        ("engine", 16),
        ("engine", 64),
        ("peer", 16),
        ("peer", 64),
    ] * 2
    assert all(row["tokens_s"] > 0 for row in rows)


def test_no_row_begins_after_the_deadline() -> None:
    late = time.monotonic() - 1
    assert not list(gpu_parts.engine(MACHINE, late)) and not list(gpu_parts.parity(MACHINE, late))


@pytest.mark.parametrize("name", [*gpu_models.SHAPES, *gpu_models.TINY])
def test_work_counts_the_weights_of_the_model(name: str) -> None:
    hf: dict[str, Any] = (gpu_models.SHAPES | gpu_models.TINY)[name]
    published = {"bge-base": 84.9e6, "bge-large": 302e6, "Qwen3-0.6B": 440e6, "Qwen3-8B": 6.95e9, "Qwen3-4B": 3.63e9}
    work = gpu_models.Work.of(hf)
    parameters = work.num_layers * sum(math.prod(shape) for shape in work.products)
    assert parameters == pytest.approx(published.get(name, parameters), rel=0.01)
    assert work.flops([128] * 10) > 2 * parameters * 1280


def test_a_part_that_fails_says_so(tmp_path: Path) -> None:
    problem, output = gpu._finish(["python3", "-c", "print(1); raise SystemExit('no device')"], 30, {})
    assert "status 1: no device" in problem and output == "1\n"


def test_a_part_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_GRACE", 0)
    problem, _ = gpu._finish(["sleep", "20"], 0.2, {})
    assert "stopped after" in problem


@pytest.mark.slow
def test_the_whole_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], minilm: Path) -> None:
    gpu.main(["--dry-run", "--results", str(tmp_path)])
    line = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert not line["problems"] and set(line["rows"]) == set(gpu.PARTS) and all(line["rows"].values())
    written = json.loads(Path(line["file"]).read_text())
    assert set(written["parts"]) == set(gpu.PARTS)
