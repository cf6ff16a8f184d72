"""Dense embeddings by routes against sentence-transformers' SentenceTransformer, on random weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm import Model
from rtp_llm.core import FloatArray, Params, Request, TaskType
from rtp_llm.errors import CheckpointError, InvalidRequest
from tests.backends import BACKENDS
from tests.tasks import routers
from tests.tasks.checkpoints import TEXTS, VOCAB, loaded
from tests.tasks.test_static import tokenizer

torch = pytest.importorskip("torch")
sentence_transformers = pytest.importorskip("sentence_transformers")
pytest.importorskip("sentence_transformers.sentence_transformer.modules")

SIDES: dict[str | None, str] = {"query": "encode_query", "document": "encode_document", None: "encode"}


def expected(folder: Path, name: str | None, **options: Any) -> FloatArray:
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    rows: FloatArray = getattr(model, SIDES[name])(TEXTS, **options)
    return rows


def check(folder: Path, backend: str = "numpy") -> None:
    rows = {name: expected(folder, name) for name in SIDES}
    assert np.abs(rows["query"] - rows["document"]).max() > 0.1
    with loaded(folder, backend) as model:
        assert model.info.tasks == (TaskType.DENSE, TaskType.TOKENS) and model.info.dimension == rows[None].shape[1]
        for name, wanted in rows.items():
            assert np.abs(model.embed(TEXTS, prompt_name=name) - wanted).max() <= 1e-5, name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("is_asym", [False, True])
def test_equals_sentence_transformer(is_asym: bool, backend: str, tmp_path: Path) -> None:
    check(routers.save_dense(tmp_path, is_asym=is_asym, default_route="document"), backend)


def test_files_of_asym(tmp_path: Path) -> None:
    """As sentence-transformers 2 to 4 wrote them: another name, config.json, and the first route by default."""
    folder = routers.save_dense(tmp_path, is_asym=True)
    (path,) = folder.glob("2_*/router_config.json")
    settings = json.loads(path.read_text())
    assert settings["parameters"].pop("default_route") == "query"
    path.unlink()
    settings["parameters"] = {"allow_empty_key": True}
    (path.parent / "config.json").write_text(json.dumps(settings))
    modules = (folder / "modules.json").read_text()
    entries = json.loads(modules)
    entries[2]["type"] = "sentence_transformers.models.Asym"
    (folder / "modules.json").write_text(json.dumps(entries))
    check(folder)


def check_packed(model: Model) -> None:
    """Alone, together, backwards, and queries beside documents: the same bits."""
    alone = {name: np.stack([model.embed([text], prompt_name=name)[0] for text in TEXTS]) for name in SIDES}
    for name, rows in alone.items():
        np.testing.assert_array_equal(model.embed(TEXTS, prompt_name=name), rows)
        np.testing.assert_array_equal(model.embed(TEXTS[::-1], prompt_name=name)[::-1], rows)
    for count in (0, 3, len(TEXTS)):
        params = Params(num_queries=count)
        mixed = model._engine.run_sync(Request(inputs=[*TEXTS[:count], *TEXTS], params=params))
        wanted = np.concatenate([alone["query"][:count], alone["document"]])
        np.testing.assert_array_equal(mixed.outputs[TaskType.DENSE], wanted)
    scores = model.similarity(TEXTS[:2], TEXTS)
    np.testing.assert_allclose(scores, alone["query"][:2] @ alone["document"].T, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.parametrize("is_asym", [False, True])
def test_packed_is_alone_in_any_order(is_asym: bool, backend: str, tmp_path: Path) -> None:
    with loaded(routers.save_dense(tmp_path, is_asym=is_asym, default_route="document"), backend) as model:
        check_packed(model)


@pytest.mark.parametrize("name", SIDES)
def test_dimensions_and_prompts(name: str | None, tmp_path: Path) -> None:
    folder = routers.save_dense(tmp_path, default_route="document")
    prompts = {"query": "query : ", "document": "passage : "}
    routers.set_keys(folder / "config_sentence_transformers.json", prompts=prompts, truncate_dim=20)
    with loaded(folder) as model:
        assert (model.info.dimension, model.info.full_dimension) == (20, 24)
        assert np.abs(model.embed(TEXTS, prompt_name=name) - expected(folder, name)).max() <= 1e-5
        cut = expected(folder, name, truncate_dim=7, normalize_embeddings=True)
        assert np.abs(model.embed(TEXTS, prompt_name=name, dimensions=7) - cut).max() <= 1e-5
        with pytest.raises(InvalidRequest, match="dimensions: 25 is not between 1 and 24"):
            model.embed(TEXTS, dimensions=25)


def test_chunks_are_not_served(tmp_path: Path) -> None:
    with loaded(routers.save_dense(tmp_path)) as model:
        for chunking in ("mean", "late"):
            message = f"chunking '{chunking}' is not for this model: each of its routes reads a text whole"
            with pytest.raises(InvalidRequest, match=message):
                model.embed(TEXTS, chunking=chunking)


def test_no_default_route(tmp_path: Path) -> None:
    folder = routers.save_dense(tmp_path, allow_empty_key=False)
    with loaded(folder) as model:
        assert np.abs(model.embed(TEXTS, prompt_name="query") - expected(folder, "query")).max() <= 1e-5
        with pytest.raises(InvalidRequest, match="input_type: say what the inputs are for"):
            model.embed(TEXTS)


def test_vectors_of_two_lengths_are_not_served(tmp_path: Path) -> None:
    folder = routers.save_dense(tmp_path)
    (path,) = folder.glob("query_*_Dense")
    layer = {"in_features": 32, "out_features": 5, "bias": False, "activation_function": "torch.nn.Identity"}
    (path / "config.json").write_text(json.dumps(layer))
    from safetensors.torch import save_file

    save_file({"linear.weight": torch.zeros(5, 32)}, path / "model.safetensors")
    with (
        pytest.raises(CheckpointError, match="must be of one length, but they are query 5, document 24"),
        loaded(folder),
    ):
        pass


def save_table(folder: Path, *after: Any, size: int = 24) -> Path:
    """Queries by a table of vectors, documents as in `save_dense`."""
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    saved = routers.save_dense(folder)
    chain = list(sentence_transformers.SentenceTransformer(str(saved), device="cpu")[0].sub_modules["document"])
    torch.manual_seed(3)
    table = modules.StaticEmbedding(tokenizer(folder / "words", 30), torch.randn(len(VOCAB), size).numpy())
    routes = {"query": [table, *after], "document": chain}
    library = sentence_transformers.SentenceTransformer
    library(modules=[modules.Router(routes, default_route="document"), modules.Normalize()]).save(
        str(folder / "other"), create_model_card=False
    )
    return folder / "other"


@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_a_table_of_vectors(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_table(tmp_path)
    rows = {name: expected(folder, name) for name in SIDES}
    with loaded(folder, backend) as model:
        assert model.info.tasks == (TaskType.DENSE,)
        for name, wanted in rows.items():
            assert np.abs(model.embed(TEXTS, prompt_name=name) - wanted).max() <= 1e-5
        cut = expected(folder, "query", truncate_dim=7, normalize_embeddings=True)
        assert np.abs(model.embed(TEXTS, prompt_name="query", dimensions=7) - cut).max() <= 1e-5
        check_packed(model)
        queries = model.embed(TEXTS, prompt_name="query")

        def run(*_: Any) -> None:
            raise AssertionError("a model pass")

        monkeypatch.setattr(model._engine.runtime, "run", run)
        np.testing.assert_array_equal(model.embed(TEXTS, prompt_name="query"), queries)


def test_what_of_tables_is_not_served(tmp_path: Path) -> None:
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    folder = save_table(tmp_path / "dense", modules.Dense(20, 24), size=20)
    message = "StaticEmbedding, Dense, Normalize; Normalize alone is served after StaticEmbedding. Write each route as"
    with pytest.raises(CheckpointError, match=message), loaded(folder):
        pass
    with pytest.raises(CheckpointError, match="must be of one length, but they are query 20, document 24"):
        with loaded(save_table(tmp_path / "sizes", size=20)):
            pass
    folder = save_table(tmp_path / "rows")
    (path,) = folder.glob("query_0_*/model.safetensors")
    from safetensors.torch import save_file

    save_file({"embedding.weight": torch.zeros(len(VOCAB) - 1, 24)}, path)
    with pytest.raises(CheckpointError, match=f"has {len(VOCAB) - 1} rows for the tokenizer's {len(VOCAB)} ids"):
        with loaded(folder):
            pass


def test_sparse_beside_dense_is_not_served(tmp_path: Path) -> None:
    sparse = pytest.importorskip("sentence_transformers.sparse_encoder.modules")
    folder = routers.save_dense(tmp_path)
    chain = list(sentence_transformers.SentenceTransformer(str(folder), device="cpu")[0].sub_modules["document"])
    table = sparse.SparseStaticEmbedding(tokenizer=chain[0].tokenizer)
    model = sentence_transformers.SentenceTransformer(modules=[sparse.Router({"query": [table], "document": chain})])
    model.save(str(tmp_path / "other"), create_model_card=False)
    with (
        pytest.raises(CheckpointError, match="some routes give sparse vectors and some do not"),
        loaded(tmp_path / "other"),
    ):
        pass
