"""pplx-embed-v1's last module, which rounds a vector to 8 bits, by the formulas of its authors' code."""

import json
from pathlib import Path

import numpy as np
import pytest

from rtp_llm import Model

TEXTS = ["the weather is lovely today", "", "he drove to stadium"]


@pytest.fixture
def folder(tiny_bert: Path, tmp_path: Path) -> Path:
    """A chain that ends in the module, and no file of its code."""
    for entry in tiny_bert.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    modules = json.loads((tiny_bert / "modules.json").read_text())[:2]
    quantizer = {"idx": 2, "name": "2", "path": "", "type": "st_quantize.FlexibleQuantizer", "kwargs": ["quantization"]}
    (tmp_path / "modules.json").unlink()
    (tmp_path / "modules.json").write_text(json.dumps([*modules, quantizer]))
    return tmp_path


@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_numbers_are_whole(backend: str, folder: Path, tiny_bert: Path) -> None:
    with Model(str(tiny_bert), backend=backend) as plain, Model(str(folder), backend=backend) as model:
        exact = plain.embed(TEXTS, normalize=False)
        expected = np.clip(np.round(np.tanh(exact) * 127), -128, 127)
        ours = model.embed(TEXTS)
        assert np.array_equal(ours, expected) and np.abs(ours).max() > 20
        assert np.array_equal(model.embed(TEXTS, dimensions=8), expected[:, :8])
        unit = model.embed(TEXTS, normalize=True)
        assert np.abs(np.linalg.norm(unit, axis=1) - 1).max() <= 1e-6
