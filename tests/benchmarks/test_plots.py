"""Pictures of made-up results; the families and the best of their settings."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import ENGINES

pytest.importorskip("matplotlib")
from benchmarks import plots

ENGINE = {"status": "ok", "precision": "fp32"}
RUN: dict[str, Any] = {
    "engines": {
        "onnxruntime wide": {**ENGINE, "throughput": {"short": 3.0}, "latencies": {"short": {"p50": 0.002}}},
        "onnxruntime fused streams": {**ENGINE, "throughput": {"short": 5.0}, "latencies": {"short": {"p50": 0.004}}},
        "rtp_llm": {**ENGINE, "throughput": {"short": 9.0}, "latencies": {"short": {"p50": 0.001}}},
        "absent": {"status": "not installed", "precision": "fp32"},
    },
    "workloads": {"short": {}},
    "machine": {"cpu": "a CPU"},
    "threads": 2,
    "date": "2026-01-01",
}
GROWTH: dict[str, Any] = {
    "machine": {"cpu": "a CPU"},
    "parts": {"cores": [{"engine": "rtp_llm", "cores": n, "texts_per_second": 10.0 * n} for n in (1, 2)]},
}


def test_the_best_of_a_family() -> None:
    assert plots.best(RUN, "throughput", "short") == {("onnxruntime", "fp32"): 5.0, ("rtp_llm", "fp32"): 9.0}
    assert plots.best(RUN, "latencies", "short")["onnxruntime", "fp32"] == 0.002


def test_processors_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for name, family_model in (("zen3", "25/1"), ("zen5", "26/2")):
        run = {**RUN, "machine": {"cpu": "AMD EPYC", "family_model": family_model}}
        (tmp_path / f"cpu-minilm-{name}.json").write_text(json.dumps(run))
    (tmp_path / "cpu-minilm.json").write_text(json.dumps(RUN))
    assert [*plots.read_runs(tmp_path)] == ["minilm, AMD EPYC 25/1", "minilm, AMD EPYC 26/2", "minilm, a CPU"]


def test_every_family_has_a_colour() -> None:
    assert {plots.family(name) for name in ENGINES} <= set(plots._COLOURS)


def test_pictures_are_drawn(tmp_path: Path) -> None:
    for name, figure in (
        ("a", plots.throughput({"minilm": RUN})),
        ("b", plots.latency({"minilm": RUN})),
        ("c", plots.growth(GROWTH)),
    ):
        figure.savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
