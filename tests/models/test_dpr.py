"""DPR's encoders against transformers' DPRQuestionEncoder and DPRContextEncoder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm import Model
from rtp_llm.checkpoint import read_json
from rtp_llm.errors import CheckpointError
from tests.backends import BACKENDS
from tests.models.oracle import saved
from tests.tasks.checkpoints import VOCAB

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SHAPE = {
    "vocab_size": len(VOCAB), "hidden_size": 60, "num_attention_heads": 5, "intermediate_size": 77,
    "num_hidden_layers": 3, "max_position_embeddings": 40, "initializer_range": 0.1,
}  # fmt: skip
INPUTS: list[Any] = [[2, 8, 9, 3], [2, 3], [7], [2, *range(5, 18), 3], [2, 10, 0, 11, 3]]


def save(folder: Path, kind: str, **changes: Any) -> Any:
    config = transformers.DPRConfig(**{**SHAPE, **changes})
    theirs = saved(folder, getattr(transformers, f"DPR{kind}Encoder"), config)
    (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    settings = {"tokenizer_class": f"DPR{kind}EncoderTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return theirs


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["Question", "Context"])
def test_a_vector_is_the_first_tokens(kind: str, backend: str, tmp_path: Path) -> None:
    theirs = save(tmp_path, kind)
    BACKENDS[backend]()
    with torch.no_grad():
        # With its tokenizer's mask: without one it passes over padding tokens, also those that stand in a text.
        expected = np.concatenate(
            [theirs(torch.tensor([ids]), torch.ones(1, len(ids))).pooler_output.numpy() for ids in INPUTS]
        )
    with Model(str(tmp_path), backend=backend) as model:
        assert (model.info.model_type, model.info.max_seq_len) == ("dpr", 40)
        assert np.abs(model.embed(INPUTS) - expected).max() <= 1e-5
        assert np.array_equal(model.embed(["the weather"])[0], model.embed([[2, *_ids("the weather"), 3]])[0])


def _ids(text: str) -> list[int]:
    return [VOCAB.index(word) for word in text.split()]


def test_a_projection_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "Question", projection_dim=20)
    assert read_json(tmp_path, "config.json")["projection_dim"] == 20
    with pytest.raises(CheckpointError, match="projection_dim 20; a DPR is served whose vectors are not projected"):
        Model(str(tmp_path))
