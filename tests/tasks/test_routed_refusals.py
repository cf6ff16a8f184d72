"""Routers of sparse vectors that are not served, each refused by what is wrong with it."""

import json
from pathlib import Path
from typing import Any

import pytest

from rtp_llm.errors import CheckpointError, ConfigError
from tests.tasks import routers
from tests.tasks.checkpoints import VOCAB, loaded

torch = pytest.importorskip("torch")
sentence_transformers = pytest.importorskip("sentence_transformers")
modules = pytest.importorskip("sentence_transformers.sparse_encoder.modules")


def test_weights_must_fit_their_words(tmp_path: Path) -> None:
    folder = routers.save_sparse(tmp_path)
    infinite = torch.ones(len(VOCAB))
    infinite[3] = float("inf")
    for weights, name, message in (
        (torch.ones(len(VOCAB) - 1), "weight", "of the wrong shape: weight"),
        (torch.ones(len(VOCAB)), "idf", "1 missing: weight; 1 unexpected: idf"),
        (infinite, "weight", "1 of the .* numbers of tensor 'weight' are NaN or infinite"),
    ):
        routers.save_token_weights(folder, weights, name)
        with pytest.raises(CheckpointError, match=message), loaded(folder):
            pass


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"default_route": "document"',
            '"default_route": "passage"',
            "the routes are query, document, but .'passage'. are needed",
        ),
        ('"route_mappings": {}', '"route_mappings": {"text": "query"}', "route_mappings: 'text' is no pair"),
        ('"route_mappings": {}', '"route_mappings": {"(1, [])": "query"}', "is no pair of a task and a modality"),
        ('"route_mappings": {}', '"route_mappings": {"(None, None)": null}', "but .None. are needed"),
        ('"allow_empty_key": true', '"allow_empty_key": 1', "allow_empty_key is 1; true or false is needed"),
        (
            "SparseStaticEmbedding.SparseStaticEmbedding",
            "Pooling.Pooling",
            "route query begins with Pooling; ",
        ),
        (
            "SparseStaticEmbedding.SparseStaticEmbedding",
            "StaticEmbedding.StaticEmbedding",
            "some routes give sparse vectors",
        ),
        (
            "sentence_transformers.sparse_encoder.modules.sparse_static",
            "own.sparse_static",
            "own.sparse_static.*not served in a Router",
        ),
    ],
)
def test_what_is_not_served(old: str, new: str, message: str, tmp_path: Path) -> None:
    folder = routers.save_sparse(tmp_path)
    path = folder / "router_config.json"
    text = json.dumps(json.loads(path.read_text()))
    text = (
        text.replace("sparse_static_embedding.SparseStaticEmbedding", "SparseStaticEmbedding.SparseStaticEmbedding")
        if "SparseStaticEmbedding.S" in old
        else text
    )
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(CheckpointError, match=message), loaded(folder):
        pass


def test_two_transformers_are_not_served(tmp_path: Path) -> None:
    chains = {name: routers.encoder_modules(tmp_path / name) for name in ("query", "document")}
    sentence_transformers.SparseEncoder(modules=[modules.Router(chains)]).save(
        str(tmp_path / "saved"), create_model_card=False
    )
    message = (
        "transformers: .*document_0_Transformer, .*query_0_Transformer; .* Write each route as a checkpoint of its own"
    )
    with pytest.raises(CheckpointError, match=message), loaded(tmp_path / "saved"):
        pass


@pytest.mark.parametrize(
    "options", [{"task_type": "DENSE_EMBEDDING"}, {"task_type": "ALL_EMBEDDING"}, {"embedding_model": 1}]
)
def test_other_tasks_are_not_served(options: dict[str, Any], tmp_path: Path) -> None:
    folder = routers.save_sparse(tmp_path)
    with (
        pytest.raises(CheckpointError, match="a Router's routes are served for sparse, not"),
        loaded(folder, **options),
    ):
        pass


def test_a_table_alone_is_not_served(tmp_path: Path) -> None:
    transformer, _ = routers.encoder_modules(tmp_path)
    table = modules.SparseStaticEmbedding(tokenizer=transformer.tokenizer)
    sentence_transformers.SparseEncoder(modules=[table]).save(str(tmp_path / "saved"), create_model_card=False)
    with pytest.raises(CheckpointError, match="the first module is SparseStaticEmbedding"), loaded(tmp_path / "saved"):
        pass


def test_custom_modules_are_not_served(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("class Own: ...\n")
    folder = routers.save_sparse(tmp_path)
    with pytest.raises((CheckpointError, ConfigError), match="served for sparse, not custom"):
        with loaded(folder, custom_module=f"{tmp_path / 'own.py'}:Own"):
            pass
