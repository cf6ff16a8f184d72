"""What the load benchmarks make of what the client saw."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import checkpoints
from benchmarks.goodput import make_window
from benchmarks.load import Window, _bars, make_mixes
from benchmarks.load_client import Seen
from benchmarks.load_plots import plot_latencies
from benchmarks.peers import OURS
from benchmarks.soak import Sample, summary


def window(share: float, texts: float, server: str = OURS) -> Window:
    p50, p99 = 1.0, 5.0
    return Window(server, "queries", share, 0, texts, texts, p50, p99, None, {200: 9}, 0, 0, 0, 0, 0)


def seen(**statuses: int) -> Seen:
    counts = {int(status.removeprefix("s")): count for status, count in statuses.items()}
    return Seen(np.full(counts.get(200, 0), 0.01), counts, 7, 20.0, 0.0, 1.0)


def soak(*slices: Seen, megabytes: tuple[int, ...] = (100, 100)) -> bool:
    samples = [Sample(61.0 + second, size * 10**6) for second, size in enumerate(megabytes)]
    held = summary(list(slices), [Sample(1.0, 10**6), *samples], 100.0, 400.0)["held"]
    assert isinstance(held, bool)
    return held


def test_bars_are_held_or_missed() -> None:
    windows = [window(0.0, 95.0), window(0.75, 70.0), window(0.0, 50.0, "infinity")]
    bars = _bars(windows, {"queries": {"texts_per_second": 100.0, "cpu_us": 1.0}})
    assert [(bar[0], bar[2], bar[4]) for bar in bars] == [
        ("of the engine's texts/s", "0.95", "held"),
        ("p99 / p50 at 75 %", "5.00", "missed"),
        ("times Infinity", "1.90", "missed"),
    ]


def test_a_soak_holds_with_refusals_and_late_answers() -> None:
    assert soak(seen(s200=5, s429=90), seen(s200=5, s504=3))


def test_a_soak_fails_with_any_other_answer_or_none() -> None:
    assert not soak(seen(s200=500, s500=1))
    assert not soak(seen(s200=500, s0=1))


def test_a_soak_fails_when_memory_moves_after_the_first_minute() -> None:
    assert soak(seen(s200=5), megabytes=(100, 104))
    assert not soak(seen(s200=5), megabytes=(100, 106))


def test_goodput_is_what_is_answered_before_its_deadline() -> None:
    answers = Seen(np.array([0.1, 0.3, 0.31]), {200: 3, 429: 4, 504: 2, 500: 1}, 10, 2.0, 0.0, 1.0)
    window = make_window("queries", 0.3, 2.0, 4.0, 2.0, answers)
    assert (window.offered, window.in_time, window.late, window.share) == (10.0, 1.0, 0.5, 0.25)
    assert (window.refused, window.expired, window.unsent, window.others) == (2.0, 1.0, 5.0, 1)


def test_no_two_texts_in_flight_are_the_same() -> None:
    mixes = {mix.name: mix for mix in make_mixes(checkpoints.minilm())}
    texts = [text for group in mixes["bulk"].groups for text in group]
    assert len(set(texts)) == len(texts)
    assert {len(group) for group in mixes["bulk"].groups} <= {64, 128, 256, 1000}
    assert len({group[0] for group in mixes["queries"].groups}) >= 256


def test_a_picture_a_mix(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [{"mix": "queries", "share": 0.5, "server": OURS, "offered": 9.0, "p50_ms": 1.0, "p99_ms": None}]
    plot_latencies(rows, tmp_path)
    assert (tmp_path / "load-queries.png").read_bytes().startswith(b"\x89PNG")
