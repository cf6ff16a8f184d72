"""The sweep of step sizes on modelled devices, and the file it is kept in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import TaskType
from rtp_llm.runtime.token_budget import TokenBudget, sweep


@pytest.mark.parametrize(("fixed", "best"), [(0.0, 100), (1e-4, 1600), (1e-3, 12_800)])
def test_doubling_ends_where_the_rate_does(fixed: float, best: int) -> None:
    assert sweep(lambda tokens: fixed + tokens * 1e-6, 100, 20_000) == best


def test_memory_ends_it() -> None:
    def seconds(tokens: int) -> float:
        if tokens > 500:
            raise MemoryError
        return 1.0

    assert sweep(seconds, 100) == 400


class Recorder:
    """Takes longer for each batch than a step twice as large is worth."""

    tasks = (TaskType.DENSE,)

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.model: Any = type("Model", (), {"vocab_size": 30})

    def run(self, items: Any, num_cores: int) -> Any:
        assert max(int(np.max(item.input_ids)) for item in items) < 30
        self.steps.append(sum(item.num_tokens for item in items))
        return {}


def test_found_once_for_a_device(tmp_path: Path) -> None:
    file = tmp_path / "sub" / "budgets.json"
    first, second, other = Recorder(), Recorder(), Recorder()
    found = TokenBudget(grain=256, key="a", cache=file).find(first, 64)
    assert first.steps and found % 256 == 0
    assert TokenBudget(grain=256, key="a", cache=file).find(second, 64) == found and not second.steps
    TokenBudget(grain=256, key="b", cache=file).find(other, 64)
    assert other.steps and '"a"' in file.read_text()


def test_without_a_grain_nothing_is_tried() -> None:
    recorder = Recorder()
    assert TokenBudget().find(recorder, 64) == TokenBudget().tokens == 1024 and not recorder.steps


def test_a_damaged_or_closed_file_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "budgets.json").write_text("{")
    assert TokenBudget(grain=256, key="a", cache=tmp_path / "budgets.json").find(Recorder(), 64) > 0
    (tmp_path / "file").write_text("")
    assert TokenBudget(grain=256, key="a", cache=tmp_path / "file" / "x.json").find(Recorder(), 64) > 0
