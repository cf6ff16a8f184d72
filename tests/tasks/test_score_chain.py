"""CrossEncoders of several modules, as the Ettin rerankers are, against sentence-transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import TaskType
from rtp_llm.errors import CheckpointError
from tests.backends import BACKENDS
from tests.tasks.checkpoints import PAIRS, loaded
from tests.tasks.families import save as save_family

torch = pytest.importorskip("torch")
sentence_transformers = pytest.importorskip("sentence_transformers")
pytest.importorskip("sentence_transformers.cross_encoder.modules")

IDENTITY = torch.nn.Identity()


def save(folder: Path, family: str = "modernbert", shape: str = "odd", columns: int = 1, pooling: str = "cls") -> Path:
    """Pooling, Dense, LayerNorm, Dense."""
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

    hidden = save_family(folder / "plain", family, shape).config.hidden_size
    torch.manual_seed(1)
    norm = LayerNorm(hidden)
    torch.nn.init.normal_(norm.norm.weight)
    torch.nn.init.normal_(norm.norm.bias)
    modules = [
        Transformer(str(folder / "plain"), max_seq_length=33),
        Pooling(hidden, pooling),
        Dense(hidden, hidden, bias=False, activation_function=torch.nn.GELU()),
        norm,
        Dense(hidden, columns, activation_function=IDENTITY, module_output_name="scores"),
    ]
    model = sentence_transformers.CrossEncoder(modules=modules, device="cpu", activation_fn=IDENTITY)
    model.save(str(folder / "saved"), create_model_card=False)
    return folder / "saved"


def theirs(folder: Path, **options: Any) -> Any:
    return sentence_transformers.CrossEncoder(str(folder), device="cpu").predict(PAIRS, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("family", "shape"), [("modernbert", "odd"), ("bert", "tiny")])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_equals_cross_encoder(pooling: str, family: str, shape: str, backend: str, once: Callable[..., Path]) -> None:
    folder = once(save, family, shape, pooling=pooling)
    with loaded(folder, backend) as model:
        assert model.info.tasks == (TaskType.RERANK, TaskType.CLASSIFY) and model.info.labels == ("LABEL_0",)
        scores = np.array([model.rerank(query, [document])[0].score for query, document in PAIRS])
        assert np.abs(scores - theirs(folder)).max() <= 1e-5
        probabilities = np.array([model.rerank(*pair_of(pair), activation="sigmoid")[0].score for pair in PAIRS])
        assert np.abs(probabilities - theirs(folder, activation_fn=torch.nn.Sigmoid())).max() <= 1e-5


def pair_of(pair: tuple[str, str]) -> tuple[str, list[str]]:
    return pair[0], [pair[1]]


def test_several_columns_are_classes(tmp_path: Path) -> None:
    folder = save(tmp_path, columns=3)
    with loaded(folder) as model:
        assert model.info.tasks == (TaskType.CLASSIFY,) and model.info.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
        assert np.abs(model.classify(PAIRS, activation="none") - theirs(folder)).max() <= 1e-5


def test_no_pooling_before_it(tmp_path: Path) -> None:
    folder = save(tmp_path, "bert", "tiny")
    entries = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([entries[0], *entries[2:]]))
    with pytest.raises(CheckpointError, match="the second module is Dense; of a chain that gives scores only Pooling"):
        with loaded(folder):
            pass
