import pytest

from benchmarks import cpu
from benchmarks.checkpoints import Shape
from benchmarks.corpus import Workload
from benchmarks.peers import OURS

SHAPE = Shape(hidden_size=384, num_layers=6, intermediate_size=1536)
WORKLOADS = {"short": Workload("short", ["a", "b"], [10, 12])}


@pytest.fixture
def results() -> cpu.Results:
    def result(second: float, latency: float) -> cpu.Result:
        seconds = {"short": [second, second]}
        return cpu.Result(seconds=seconds, cpu_seconds=seconds, latencies={"short": [latency]}, max_difference=0.0)

    return {
        OURS: result(1.0, 0.001),
        "slow": result(4.0, 0.002),
        "fast": result(2.0, 0.004),
        "absent": cpu.Result(status="not installed (absent)"),
    }


def test_flops_of_minilm() -> None:
    assert SHAPE.matrix_parameters == 6 * 12 * 384 * 384
    assert SHAPE.flops([100, 100]) == 2 * SHAPE.matrix_parameters * 200 + 4 * 6 * 384 * 2 * 100**2


def test_ratios_are_to_the_best_peer_of_each_column(results: cpu.Results) -> None:
    summary = cpu.summary(results, cpu.Peak("test", [100.0]), WORKLOADS, SHAPE)
    ratios = summary["ours_to_best_peer"]
    assert (ratios["short"]["peer"], ratios["short"]["median"]) == ("fast", 2.0)
    assert (ratios["latency short"]["peer"], ratios["latency short"]["median"]) == ("slow", 2.0)


def test_share_of_peak(results: cpu.Results) -> None:
    summary = cpu.summary(results, cpu.Peak("test", [100.0]), WORKLOADS, SHAPE)
    assert summary["engines"][OURS]["of_peak"]["short"] == pytest.approx(SHAPE.flops([10, 12]) / 100e9)


def test_tables_leave_out_who_is_absent(results: cpu.Results, capsys: pytest.CaptureFixture[str]) -> None:
    cpu.print_tables(results, cpu.Peak("test", [100.0]), WORKLOADS, SHAPE)
    printed = capsys.readouterr().out
    assert "absent: not installed (absent)" in printed
    assert printed.count("absent") == 2


@pytest.mark.parametrize("wrong", [["--engines", "onx"], ["--workloads", "medium"]])
def test_wrong_options_exit_2(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cpu.main(wrong)
    assert caught.value.code == 2
    assert wrong[1] in capsys.readouterr().err
