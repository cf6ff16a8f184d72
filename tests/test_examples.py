"""The examples, as users run them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm import Model
from rtp_llm.errors import ConfigError, InvalidRequest
from tests.real_server import ROOT
from tests.tasks.test_dense import TEXTS, pooling, save

st = pytest.importorskip("sentence_transformers")
torch = pytest.importorskip("torch")
modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")

EXAMPLES = ROOT / "examples"
MAXSIM = f"{EXAMPLES / 'maxsim_top_k.py'}:MaxSim"
LAYERS = f"{EXAMPLES / 'weighted_layer_pooling.py'}:WeightedLayerPooling"
TENANTS = f"{EXAMPLES / 'tenant_projection.py'}:TenantProjection"


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_are_short(example: Path) -> None:
    assert example.read_text().count("\n") <= 60


def test_maxsim(tmp_path: Path) -> None:
    theirs = save(tmp_path, pooling("mean"))
    tokens = theirs.encode(TEXTS, output_value="token_embeddings")
    query, *documents = (torch.nn.functional.normalize(states, dim=1) for states in tokens)
    scores = np.array([float((query @ document.T).max(dim=1).values.mean()) for document in documents])
    order = np.argsort(-scores)
    with Model(str(tmp_path / "saved"), custom_module=MAXSIM) as model:
        everything, best = model.custom(TEXTS), model.custom(TEXTS, top_k=2)
        for inputs, top_k in ((TEXTS[:1], 1), (TEXTS, 0)):
            with pytest.raises(InvalidRequest, match="at least"):
                model.custom(inputs, top_k=top_k)
    assert everything["indices"].tolist() == order.tolist() and best["indices"].tolist() == order[:2].tolist()
    assert np.abs(everything["scores"] - scores[order]).max() <= 1e-5


@pytest.mark.parametrize("trained", [False, True])
def test_weighted_layers_equal_sentence_transformers(trained: bool, tmp_path: Path) -> None:
    weights = np.array([0.5, 2.0] if trained else [1, 1], np.float32)
    layers = modules.WeightedLayerPooling(
        32, num_hidden_layers=2, layer_start=1, layer_weights=torch.from_numpy(weights)
    )
    theirs = save(tmp_path, layers, pooling("mean"))
    theirs[0].model.config.output_hidden_states = True
    with torch.no_grad():
        expected = theirs.encode(TEXTS)
    class_file = tmp_path / "layers.py"
    class_file.write_text((EXAMPLES / "weighted_layer_pooling.py").read_text().replace("start = 4", "start = 1"))
    plain = tmp_path / "plain"
    if trained:
        np.save(plain / "layer_weights.npy", weights)
    with Model(str(plain), custom_module=f"{class_file}:WeightedLayerPooling", max_seq_len=48) as model:
        vectors, alone = model.embed(TEXTS), [model.embed([text])[0] for text in TEXTS]
        assert model.info.dimension == 32 and np.array_equal(vectors, np.stack(model.custom(TEXTS)))
    assert np.abs(vectors - expected).max() <= 1e-5
    assert np.array_equal(vectors, np.stack(alone))


def test_a_projection_for_each_tenant(tmp_path: Path) -> None:
    theirs = save(tmp_path, pooling("cls"), modules.Normalize())
    random = np.random.default_rng(0)
    matrices: dict[str, Any] = {name: random.standard_normal((7, 32)).astype(np.float32) for name in ("acme", "emca")}
    np.savez(tmp_path / "saved" / "tenants.npz", **matrices)
    with Model(str(tmp_path / "saved"), custom_module=TENANTS) as model:
        for name, matrix in matrices.items():
            expected = theirs.encode(TEXTS) @ matrix.T
            assert np.abs(model.embed(TEXTS, extra={"tenant": name}) - expected).max() <= 1e-5
        short = model.embed(TEXTS, extra={"tenant": "acme"}, dimensions=3, normalize=True)
        assert np.allclose(np.linalg.norm(short, axis=1), 1)
        for extra in ({"tenant": "nobody"}, {}):
            with pytest.raises(InvalidRequest, match="is not one of acme, emca"):
                model.embed(TEXTS, extra=extra)


def test_what_is_missing_is_told_by_file_and_line(tmp_path: Path) -> None:
    save(tmp_path, pooling("cls"))
    with pytest.raises(ConfigError, match=r"tenant_projection.py:20: FileNotFoundError: .*tenants.npz"):
        Model(str(tmp_path / "saved"), custom_module=TENANTS)
