"""FlagEmbedding itself, where it is installed (`pip install -e '.[flag]'`): BGE-M3 and a reranker on random weights."""

import importlib
import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models.oracle import worst
from tests.tasks.checkpoints import loaded
from tests.tasks.test_bge_m3 import check_sparse
from tests.tasks.test_real_tokenizers import LIMIT, PAIRS, TEXTS, save

torch = pytest.importorskip("torch")

QUERIES, PASSAGES = TEXTS[:3], TEXTS[3:]
WEIGHTS = [(1.0, 1.0, 1.0), (0.4, 0.2, 0.4), (1.0, 0.3, 1.0)]


@pytest.fixture(scope="module")
def flag() -> Iterator[Any]:
    """The module; what it imports warns of its own future."""
    if importlib.util.find_spec("FlagEmbedding") is None:
        pytest.skip("FlagEmbedding is not installed: pip install -e '.[flag]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield importlib.import_module("FlagEmbedding")


@pytest.fixture(scope="module")
def m3(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bge-m3")
    save(folder, assets, "Model")
    for name, rows in (("sparse_linear.pt", 1), ("colbert_linear.pt", 36)):
        torch.save(torch.nn.Linear(36, rows).state_dict(), folder / name)
    return folder


@pytest.mark.filterwarnings("ignore")
def test_bge_m3(flag: Any, m3: Path) -> None:
    theirs = flag.BGEM3FlagModel(str(m3), use_fp16=False, devices="cpu")
    kinds = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}
    expected = theirs.encode(TEXTS, batch_size=4, max_length=LIMIT, **kinds)
    with loaded(m3, "native") as model:
        ours = model.embed_all(TEXTS)
    assert np.abs(np.stack(ours["dense"]) - expected["dense_vecs"]).max() <= 1e-5
    assert worst(ours["colbert"], expected["colbert_vecs"]) <= 1e-5
    check_sparse(
        ours["sparse"], [{int(key): float(w) for key, w in row.items()} for row in expected["lexical_weights"]]
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("weights", WEIGHTS)
def test_scores_of_bge_m3(weights: tuple[float, float, float], flag: Any, m3: Path) -> None:
    theirs = flag.BGEM3FlagModel(str(m3), use_fp16=False, devices="cpu")
    pairs = [(query, passage) for query in QUERIES for passage in PASSAGES]
    lengths = {"max_query_length": LIMIT, "max_passage_length": LIMIT}
    expected = theirs.compute_score(pairs, weights_for_different_modes=list(weights), **lengths)
    without_colbert = (*weights[:2], 0.0)
    chosen: dict[str, dict[str, Any]] = {
        "dense": {"kind": "dense"}, "sparse": {"kind": "sparse"}, "colbert": {"kind": "colbert"},
        "sparse+dense": {"kind": "hybrid", "weights": without_colbert},
        "colbert+sparse+dense": {"kind": "hybrid", "weights": weights},
    }  # fmt: skip
    with loaded(m3, "native") as model:
        for name, options in chosen.items():
            ours = model.similarity(QUERIES, PASSAGES, **options).reshape(-1)
            assert np.abs(ours - np.array(expected[name])).max() <= 1e-5, name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("normalize", "activation"), [(False, "none"), (True, "sigmoid")])
def test_reranker(normalize: bool, activation: Any, flag: Any, assets: Path, tmp_path: Path) -> None:
    save(tmp_path, assets, "ForSequenceClassification", num_labels=1, initializer_range=0.3)
    theirs = flag.FlagReranker(str(tmp_path), use_fp16=False, devices="cpu")
    expected = np.array(theirs.compute_score(PAIRS, max_length=LIMIT, normalize=normalize))
    assert np.ptp(expected) > 0.01, "all scores are alike: the test says nothing"
    options = {"activation": activation, "truncation": "only_second"}
    with loaded(tmp_path, "native") as model:
        ours = [model.rerank(query, [document], **options)[0].score for query, document in PAIRS]
    assert np.abs(np.array(ours) - expected).max() <= 1e-5
