import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cpu, disk
from benchmarks import cpu_tables as tables
from benchmarks.checkpoints import Shape, read_pooling
from benchmarks.corpus import Workload
from benchmarks.peers import OURS

SHAPE = Shape(hidden_size=384, num_layers=6, intermediate_size=1536)
WORKLOADS = {"short": Workload("short", ["a", "b"], [10, 12])}


@pytest.fixture
def results() -> tables.Results:
    def result(second: float, latency: float, precision: str = "fp32") -> tables.Result:
        seconds = {"short": [second, second]}
        latencies = {"short": [latency]}
        return tables.Result("ok", precision, seconds, seconds, latencies, max_difference=0.0, cosines=(0.9, 1.0))

    return {
        OURS: result(1.0, 0.001),
        "slow": result(4.0, 0.002),
        "fast": result(2.0, 0.004),
        f"{OURS} int8": result(0.5, 0.001, "int8"),
        "coarse": result(0.4, 0.003, "int8"),
        "absent": tables.Result(status="not installed (absent)"),
    }


def test_flops_of_minilm() -> None:
    assert SHAPE.matrix_parameters == 6 * 12 * 384 * 384
    assert SHAPE.flops([100, 100]) == 2 * SHAPE.matrix_parameters * 200 + 4 * 6 * 384 * 2 * 100**2


def test_flops_of_a_pooled_first_token() -> None:
    pooled = replace(SHAPE, pooling="cls")
    assert pooled.flops([1, 1]) == SHAPE.flops([1, 1])
    layer = 2 * SHAPE.matrix_parameters // 6 * 200 + 4 * 384 * 2 * 100**2
    keys, first = 2 * 2 * 384**2 * 200, 2 * 10 * 384**2 * 2 + 4 * 384 * 200
    assert pooled.flops([100, 100]) == SHAPE.flops([100, 100]) - layer + keys + first


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
)
def test_the_pooling_that_peers_are_given(tmp_path: Path, config: dict[str, Any], pooling: str) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps(config))
    assert read_pooling(tmp_path) == pooling


def test_a_pooling_that_peers_are_not_given(tmp_path: Path) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(ValueError, match="peers can do mean or cls"):
        read_pooling(tmp_path)


def test_ratios_are_to_the_best_peer_of_each_column(results: tables.Results) -> None:
    summary = tables.summary(results, tables.Peak("test", [100.0]), WORKLOADS, SHAPE)
    ratios = summary["ours_to_best_peer"][OURS]
    assert (ratios["short"]["peer"], ratios["short"]["median"]) == ("fast", 2.0)
    assert (ratios["latency short"]["peer"], ratios["latency short"]["median"]) == ("slow", 2.0)


def test_only_equals_are_compared(results: tables.Results) -> None:
    summary = tables.summary(results, tables.Peak("test", [100.0]), WORKLOADS, SHAPE)
    ratios = summary["ours_to_best_peer"][f"{OURS} int8"]
    assert (ratios["short"]["peer"], ratios["short"]["median"]) == ("coarse", 0.8)


def test_installed_bytes_follow_requirements() -> None:
    assert disk.installed_bytes(["numpy"]) > 10_000_000
    assert disk.installed_bytes(["tokenizers"]) > disk.installed_bytes(["huggingface-hub"]) > 1_000_000
    assert disk.installed_bytes(["no-such-package"]) == 0


def test_share_of_peak(results: tables.Results) -> None:
    summary = tables.summary(results, tables.Peak("test", [100.0]), WORKLOADS, SHAPE)
    assert summary["engines"][OURS]["of_peak"]["short"] == pytest.approx(SHAPE.flops([10, 12]) / 100e9)


def test_tables_leave_out_who_is_absent(results: tables.Results, capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_tables(results, tables.Peak("test", [100.0]), WORKLOADS, SHAPE)
    printed = capsys.readouterr().out
    assert "absent: not installed (absent)" in printed
    assert printed.count("absent") == 2


@pytest.mark.parametrize("wrong", [["--engines", "onx"], ["--workloads", "medium"]])
def test_wrong_options_exit_2(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cpu.main(wrong)
    assert caught.value.code == 2
    assert wrong[1] in capsys.readouterr().err
