"""The head of every family end to end, against transformers' *ForSequenceClassification."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import TaskType
from tests.backends import BACKENDS
from tests.models.oracle import add_noise
from tests.tasks.checkpoints import VOCAB, loaded

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ENCODER = {"num_attention_heads": 5, "max_position_embeddings": 96, "pad_token_id": 1}
DECODER = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 14, "pad_token_id": 1}
FAMILIES: dict[str, dict[str, Any]] = {
    "Roberta": ENCODER, "XLMRoberta": ENCODER, "Camembert": ENCODER, "Qwen2": DECODER, "Qwen3": DECODER,
}  # fmt: skip


def save(folder: Path, family: str, num_labels: int) -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 60, "intermediate_size": 77, "num_hidden_layers": 2, "vocab_size": len(VOCAB)}
    config = getattr(transformers, f"{family}Config")(**shape, **FAMILIES[family], num_labels=num_labels)
    model = getattr(transformers, f"{family}ForSequenceClassification")(config).eval()
    add_noise(model)
    model.save_pretrained(folder)
    transformers.BertTokenizer(vocab={word: i for i, word in enumerate(VOCAB)}).save_pretrained(folder)
    return model


def inputs() -> list[list[int]]:
    random = np.random.default_rng(4)
    return [random.integers(2, len(VOCAB), length).tolist() for length in (1, 2, 17, 64, 7, 90)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_labels", [1, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_transformers(family: str, num_labels: int, backend: str, tmp_path: Path) -> None:
    theirs = save(tmp_path, family, num_labels)
    with torch.no_grad():
        expected = np.concatenate([theirs(torch.tensor([ids])).logits.numpy() for ids in inputs()])
    with loaded(tmp_path, backend) as model:
        assert (model.info.tasks[0] is TaskType.RERANK) == (num_labels == 1)
        ours = model.classify(inputs(), activation="none")
        alone = np.concatenate([model.classify([ids], activation="none") for ids in inputs()])
    assert np.abs(ours - expected).max() <= 1e-5
    assert backend == "torch" or np.array_equal(ours, alone)
