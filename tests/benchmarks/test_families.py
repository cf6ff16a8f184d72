"""benchmarks.families on tiny models, stage by stage in this process."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import families
from benchmarks.families import Family
from tests.backends import BACKENDS

WIDTHS = {"vocab_size": 20000, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY = {
    "tiny-qwen": Family(
        "Qwen3", "float32", {**WIDTHS, "num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 48}
    ),
    "tiny-reranker": Family(
        "XLMRoberta", "float32", {**WIDTHS, "intermediate_size": 48, "num_labels": 1}, "ForSequenceClassification"
    ),
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("family", TINY)
def test_every_column_is_measured(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    BACKENDS["native"]()
    monkeypatch.setattr(families, "MODELS", tmp_path)
    monkeypatch.setitem(families.FAMILIES, family, TINY[family])
    result: dict[str, Any] = {}
    for stage in families._STAGES.values():
        result |= stage(family, 9, 1)
    assert set(result) == set(families._COLUMNS)
    assert result["max_difference"] <= 1e-5 and result["answer_difference"] <= 1e-6
    assert result["our_error"] <= 1e-5 and result["tokens_per_second"] > 0
