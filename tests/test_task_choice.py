"""Rerankers that are known by their names alone, and those whose prompt no file tells."""

import json
from pathlib import Path

import pytest

from rtp_llm.config import EngineConfig
from rtp_llm.core import TaskType
from rtp_llm.errors import CheckpointError
from rtp_llm.model_config import read_model_config


def tasks_of(folder: Path, architecture: str, task_type: str = "auto") -> tuple[TaskType, ...]:
    folder.mkdir(exist_ok=True)
    hf = {"model_type": "qwen3", "architectures": [architecture]}
    (folder / "config.json").write_text(json.dumps(hf))
    return read_model_config(folder, EngineConfig(checkpoint_path=str(folder), task_type=task_type)).tasks


@pytest.mark.parametrize(
    ("name", "architecture", "expected"),
    [
        ("Qwen3-Reranker-0.6B", "Qwen3ForCausalLM", TaskType.RERANK),
        ("my-qwen3-reranker", "Qwen3ForCausalLM", TaskType.RERANK),
        ("bge-reranker-v2-gemma", "GemmaForCausalLM", TaskType.RERANK),
        ("Qwen3-Embedding-0.6B", "Qwen3ForCausalLM", TaskType.DENSE),
        ("mxbai-rerank-base-v2-seq", "Qwen2ForSequenceClassification", TaskType.CLASSIFY),
    ],
)
def test_names_that_tell(name: str, architecture: str, expected: TaskType, tmp_path: Path) -> None:
    assert tasks_of(tmp_path / name, architecture)[0] is expected


@pytest.mark.parametrize(
    "architecture", ["Qwen2ForRewardModel", "Qwen2ForProcessRewardModel", "InternLM2ForRewardModel"]
)
def test_reward_models_are_refused(architecture: str, tmp_path: Path) -> None:
    """Their head would be left out, and texts would get vectors."""
    with pytest.raises(CheckpointError, match=f"config.json: a {architecture} scores conversations, by a head that is"):
        tasks_of(tmp_path, architecture)
    assert tasks_of(tmp_path, architecture, "DENSE_EMBEDDING")[0] is TaskType.DENSE


@pytest.mark.parametrize(
    ("architecture", "is_told"),
    [("BertForQuestionAnswering", True), ("BertForNextSentencePrediction", True), ("BertForMaskedLM", False)],
)
def test_a_head_that_is_left_out_gets_a_word(
    architecture: str, is_told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert tasks_of(tmp_path, architecture)[0] is TaskType.DENSE
    assert (f"a {architecture}, whose head is not served" in caplog.text) == is_told


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("mxbai-rerank-base-v2", "Qwen2ForCausalLM"),
        ("zerank-2", "Qwen3ForCausalLM"),
        ("zerank-1-small-reranker", "Qwen3ForCausalLM"),
        ("ctxl-rerank-v2-instruct-multilingual-1b", "Qwen3ForCausalLM"),
        ("llama-reranker", "LlamaForCausalLM"),
    ],
)
def test_a_reranker_whose_prompt_no_file_tells(name: str, architecture: str, tmp_path: Path) -> None:
    """It would be served as an embedder, or asked another model's question."""
    with pytest.raises(CheckpointError, match=f"{name}: a reranker by its name, a {architecture} .* LogitScore"):
        tasks_of(tmp_path / name, architecture)
    assert tasks_of(tmp_path / name, architecture, "DENSE_EMBEDDING")[0] is TaskType.DENSE
