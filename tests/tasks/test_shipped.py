"""Modules that come with a checkpoint, against sentence-transformers with trust_remote_code."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm import Model
from rtp_llm.checkpoint.hub import wanted_files
from rtp_llm.errors import CheckpointError, ConfigError, CustomModuleError, InvalidRequest
from tests.tasks.test_dense import TEXTS, dense, pooling, save

st = pytest.importorskip("sentence_transformers")
torch = pytest.importorskip("torch")
modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")

WEIGHTED = '''
import json
import torch
from pathlib import Path

class WeightedPooling(torch.nn.Module):
    """A weight for each token by its id, then the mean."""

    def __init__(self, scale):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale))

    def forward(self, features):
        weights = (1 + self.scale * features["input_ids"].float()) * features["attention_mask"]
        states = features["token_embeddings"] * weights.unsqueeze(-1)
        features["sentence_embedding"] = states.sum(1) / weights.sum(1, keepdim=True)
        return features

    @classmethod
    def load(cls, path):
        return cls(json.loads((Path(path) / "config.json").read_text())["scale"])
'''
LAYERS = '''
from sentence_transformers.sentence_transformer.modules import WeightedLayerPooling as Theirs

class WeightedLayerPooling(Theirs):
    """As sentence-transformers' own, which is loaded by many arguments."""
'''
SHIFT = '''
class Shift:
    """In numpy, with a parameter of the request."""

    def forward(self, features, shift=0.0):
        return {**features, "sentence_embedding": features["sentence_embedding"] + shift}
'''


@pytest.fixture(autouse=True)
def path_as_before() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before


def ship(folder: Path, source: str, entries: dict[int, dict[str, Any]], file: str = "custom.py") -> Path:
    """The saved checkpoint with a Python file, and `entries` put into its modules.json, by their place."""
    saved = folder / "saved"
    (saved / file).write_text(source)
    chain = json.loads((saved / "modules.json").read_text())
    for place, entry in sorted(entries.items()):
        chain.insert(place, {"path": "", **entry})
    for place, entry in enumerate(chain):
        entry |= {"idx": place, "name": str(place)}
    (saved / "modules.json").write_text(json.dumps(chain))
    return saved


def weighted(folder: Path, *chain: Any) -> Path:
    save(folder, *chain)
    (folder / "saved" / "weighted").mkdir()
    (folder / "saved" / "weighted" / "config.json").write_text('{"scale": 0.25}')
    return ship(folder, WEIGHTED, {1: {"type": "custom.WeightedPooling", "path": "weighted"}})


def same(folder: Path, **options: Any) -> None:
    theirs = st.SentenceTransformer(str(folder), device="cpu", trust_remote_code=True, local_files_only=True)
    expected = theirs.encode(TEXTS)
    with Model(str(folder), trust_remote_code=True, **options) as model:
        ours = model.embed(TEXTS)
        assert model.info.dimension == ours.shape[1]
        for order in (range(len(TEXTS)), range(len(TEXTS))[::-1]):
            assert np.array_equal(model.embed([TEXTS[i] for i in order]), ours[list(order)])
        assert all(np.array_equal(model.embed([text])[0], row) for text, row in zip(TEXTS, ours, strict=True))
    assert np.abs(ours - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_a_pooling_of_its_own_between_native_modules(backend: str, tmp_path: Path) -> None:
    save(tmp_path, pooling("mean"), modules.LayerNorm(32), dense(32, 12, torch.nn.Tanh()), modules.Normalize())
    saved = tmp_path / "saved"
    chain = json.loads((saved / "modules.json").read_text())
    chain[1]["type"] = "custom.WeightedPooling"
    (saved / "modules.json").write_text(json.dumps(chain))
    (saved / chain[1]["path"] / "config.json").write_text('{"scale": 0.25}')
    same(ship(tmp_path, WEIGHTED, {}), backend=backend)


def test_a_pooling_of_its_own_alone(tmp_path: Path) -> None:
    save(tmp_path)
    saved = tmp_path / "saved"
    chain = json.loads((saved / "modules.json").read_text())[:1]
    (saved / "modules.json").write_text(json.dumps(chain))
    (saved / "w").mkdir()
    (saved / "w" / "config.json").write_text('{"scale": 0.5}')
    same(ship(tmp_path, WEIGHTED, {1: {"type": "custom.WeightedPooling", "path": "w"}}))


def test_all_layers(tmp_path: Path) -> None:
    layers = modules.WeightedLayerPooling(32, num_hidden_layers=2, layer_start=1, layer_weights=None)
    layers.layer_weights.data = torch.tensor([0.5, 2.0])
    save(tmp_path, layers, pooling("mean", "max"))
    saved = ship(tmp_path, LAYERS, {})
    chain = json.loads((saved / "modules.json").read_text())
    chain[1]["type"] = "custom.WeightedLayerPooling"
    (saved / "modules.json").write_text(json.dumps(chain))
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "output_hidden_states": True}))
    same(saved)


def test_a_request_s_own_parameters_and_a_nested_file(tmp_path: Path) -> None:
    plain = save(tmp_path, pooling("mean")).encode(TEXTS)
    (tmp_path / "saved" / "code").mkdir()
    entry = {"type": "code.shift.Shift", "kwargs": ["shift"]}
    saved = ship(tmp_path, SHIFT, {2: entry}, file="code/shift.py")
    with Model(str(saved), trust_remote_code=True) as model:
        assert np.abs(model.embed(TEXTS) - plain).max() <= 1e-5
        assert np.abs(model.embed(TEXTS, extra={"shift": 2.0, "else": 1}) - plain - 2).max() <= 1e-5
        assert np.allclose(np.linalg.norm(model.embed(TEXTS, dimensions=5, normalize=True), axis=1), 1)
        with pytest.raises(InvalidRequest, match="dimensions"):
            model.embed(TEXTS, dimensions=33)
        with pytest.raises(CustomModuleError, match=r"^shift.py:6: .*Error: "):
            model.embed(TEXTS, extra={"shift": "far"})
        assert len(model.embed(TEXTS)) == len(TEXTS)


def test_it_needs_trust(tmp_path: Path) -> None:
    saved = weighted(tmp_path)
    (saved / "custom.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(
        CheckpointError, match=r"modules.json: custom.WeightedPooling \(custom.py\) .*trust_remote_code"
    ):
        Model(str(saved))
    # What does not need it runs without.
    with Model(str(saved), task_type="ALL_EMBEDDING") as model:
        assert model.embed_all(["a"])["tokens"][0].shape[1] == 32


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("class WeightedPooling:\n    def load(path): return path['a']", r"custom.py:2: TypeError: "),
        ("class Other: pass", "no class WeightedPooling; it has Other"),
        ("class WeightedPooling:\n    def forward(self, features): return features", "no sentence_embedding"),
        ("import no_such_library", "custom.py:1: ModuleNotFoundError"),
        (
            "class WeightedPooling:\n    def forward(self, features): return fetures",
            "custom.py:2: NameError: name 'fetur",
        ),
        ("class WeightedPooling(:", "custom.py:1: SyntaxError"),
        ("class WeightedPooling: pass", "custom.py:1: WeightedPooling has neither __call__ nor forward"),
        (
            "class WeightedPooling:\n    def forward(self, features):\n        x = features['token_embeddings'][:, 0]\n"
            "        return {'sentence_embedding': x * float('nan')}",
            "custom.py:4: WeightedPooling's sentence_embedding has NaN or infinity",
        ),
    ],
)
def test_what_goes_wrong_at_the_start(
    source: str, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved = weighted(tmp_path)
    chain = json.loads((saved / "modules.json").read_text())
    (saved / "modules.json").write_text(json.dumps(chain[:2]))
    (saved / "custom.py").write_text(source)
    with pytest.raises(ConfigError, match=message) as caught:
        Model(str(saved), trust_remote_code=True)
    assert "\n" not in caught.value.message
    assert not [record for record in caplog.records if record.name.startswith("rtp_llm")]


def test_a_file_that_is_not_there_and_one_behind_a_link(tmp_path: Path) -> None:
    saved = weighted(tmp_path)
    (saved / "custom.py").unlink()
    with pytest.raises(ConfigError, match="custom.py is not there; WeightedPooling should be a class in it"):
        Model(str(saved), trust_remote_code=True)
    (tmp_path / "elsewhere.py").write_text(WEIGHTED)
    (saved / "custom.py").symlink_to(tmp_path / "elsewhere.py")
    with Model(str(saved), trust_remote_code=True) as model:
        assert model.embed(["a"]).shape == (1, model.info.dimension)


def test_code_is_fetched_only_with_trust() -> None:
    names = ["config.json", "model.safetensors", "custom.py", "onnx/x.py"]
    assert wanted_files(names) == names[:2]
    assert wanted_files(names, with_code=True) == names[:3]
