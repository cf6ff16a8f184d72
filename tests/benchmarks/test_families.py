"""benchmarks.families on a tiny model, stage by stage in this process."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import families
from tests.backends import BACKENDS

SHAPE = {
    "vocab_size": 20000, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 16, "intermediate_size": 48,
}  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_every_column_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    BACKENDS["native"]()
    monkeypatch.setattr(families, "MODELS", tmp_path)
    monkeypatch.setitem(families.FAMILIES, "tiny-qwen", ("Qwen3", "float32", SHAPE))
    result: dict[str, Any] = {}
    for stage in families._STAGES.values():
        result |= stage("tiny-qwen", 9, 1)
    assert set(result) == set(families._COLUMNS)
    assert result["max_difference"] <= 1e-5 and result["tokens_per_second"] > 0
