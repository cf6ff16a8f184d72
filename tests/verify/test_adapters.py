"""Verification of a model whose adapter each request chooses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rtp_llm.config import EngineConfig
from rtp_llm.verify import Options, Verdict, verify
from rtp_llm.verify.outcome import Sample
from rtp_llm.verify.samples import with_adapters
from rtp_llm.verify.sbert import _asked
from tests.engine.fakes import INFO
from tests.engine.test_adapters import save

pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")


@pytest.mark.parametrize(
    ("facts", "adapters"),
    [
        ({}, [None] * 4),
        ({"adapters": ("a", "b")}, [None] * 4 + ["a"] * 3 + ["b"] * 3),
        ({"adapters": ("a", "b"), "needs_adapter": True}, ["a"] * 4 + ["b"] * 3),
        ({"merged_adapter": "b"}, ["b"] * 4),
    ],
)
def test_samples(facts: dict[str, Any], adapters: list[str | None]) -> None:
    samples = with_adapters([Sample(text, "query") for text in "wxyz"], replace(INFO, **facts))
    assert [sample.adapter for sample in samples] == adapters
    assert {sample.prompt_name for sample in samples} == {"query"}


def test_what_the_authors_code_is_asked() -> None:
    assert _asked(Sample("a", "query"), None, False) == {"prompt_name": "query"}
    assert _asked(Sample("a", None, "separation"), None, False) == {"prompt_name": None, "task": "separation"}


@pytest.mark.parametrize("kind", ["v3", "v5 Qwen3"])
def test_ours_alone_and_together(kind: str, tmp_path: Path) -> None:
    """What compares them comes with the checkpoint, and is not there."""
    config = EngineConfig(checkpoint_path=str(save(tmp_path, kind)), backend="numpy")
    report = verify(config, Options(lines=["the weather is lovely", "he drove", "so sunny"]))
    assert len(report.checks) == 2 and {check.verdict for check in report.checks} == {Verdict.EQUAL}
    assert "12 inputs" in report.checks[-1].detail if kind == "v5 Qwen3" else "18 inputs" in report.checks[-1].detail
