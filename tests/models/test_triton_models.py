"""Whole models on the Triton kernels, in Triton's interpreter, beside NumpyOps; in fp8, beside themselves."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.checkpoint import open_tensors, read_json
from rtp_llm.core import Item, Prefixes, pack
from rtp_llm.errors import ConfigError
from rtp_llm.ops.numpy_ops import NumpyOps
from tests.models.jina_bert import save as save_jina_bert
from tests.models.oracle import hidden_states, load, make_items, worst
from tests.models.test_adapted import adapted_items
from tests.models.test_adapted import save as save_adapted
from tests.models.test_bert import save_bert
from tests.models.test_deberta import save as save_deberta
from tests.models.test_encoders import save as save_encoder
from tests.models.test_gemma import KINDS
from tests.models.test_gemma import save as save_gemma
from tests.models.test_gemma2 import save as save_gemma2
from tests.models.test_lfm2 import save as save_lfm2
from tests.models.test_modernbert import save as save_modernbert
from tests.models.test_qwen import save as save_qwen
from tests.ops import interpreter as _  # noqa: F401

torch = pytest.importorskip("torch")

from rtp_llm.ops.joined_arrays import offsets_of, write  # noqa: E402
from rtp_llm.ops.triton_ops import FUSED, TritonOps  # noqa: E402
from rtp_llm.runtime import torch_fp8  # noqa: E402

LENGTHS = (5, 1, 33, 70, 2)
# Interpreted, a BERT takes ten seconds.
BERT = pytest.param("Bert", marks=pytest.mark.slow)


def save(folder: Path, family: str) -> None:
    if family == "Bert":
        save_bert(folder)
    elif family == "Gemma3":
        save_gemma(folder, layer_types=KINDS, head_dim=16)
    elif family == "Gemma2":
        save_gemma2(folder, "gemma 2", head_dim=16)
    elif family == "JinaBert":
        save_jina_bert(folder)
    elif family == "ModernBert":
        save_modernbert(folder)
    elif family == "Lfm2":
        save_lfm2(folder)
    elif family == "deberta":
        save_deberta(folder, "v3")
    elif family == "mpnet":
        save_encoder(folder, family)
    else:
        save_qwen(folder, family)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", ["Bert", "mpnet", "JinaBert", "ModernBert", "deberta", "Qwen2", "Qwen3", "Gemma2", "Gemma3", "Lfm2"]
)
def test_hidden_states(family: str, tmp_path: Path) -> None:
    save(tmp_path, family)
    items, ops, exact = make_items(LENGTHS), TritonOps("cpu", "fp16"), NumpyOps()
    ours = hidden_states(load(tmp_path, ops), ops, items)
    assert worst(ours, hidden_states(load(tmp_path, exact), exact, items)) <= 2e-2
    assert not ops.replaced


# The interpreter's exp, which is numpy's, overflows to what a sigmoid near 0 needs.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("kind", ["v3", "v5 Qwen3"])
def test_adapters(kind: str, tmp_path: Path) -> None:
    save_adapted(tmp_path, kind)
    items = [item for item in adapted_items() if item.num_tokens < 20]
    ops, exact = TritonOps("cpu", "fp16"), NumpyOps()
    ours = hidden_states(load(tmp_path, ops), ops, items)
    assert worst(ours, hidden_states(load(tmp_path, exact), exact, items)) <= 2e-2
    assert not ops.replaced


@pytest.mark.parametrize("family", ["Qwen3", "Gemma3"])
def test_wanted_rows_behind_a_shared_prefix(family: str, tmp_path: Path) -> None:
    save(tmp_path, family)
    ids = np.arange(60, dtype=np.int32)
    items = [Item(np.r_[ids[:20], ids[40 : 41 + i]], i, prefix=ids[:20].tobytes()) for i in range(3)]
    batch, ops, exact = pack(items, "last", Prefixes.find(items, {})), TritonOps("cpu", "fp16"), NumpyOps()
    ours, expected = (
        np.asarray(backend.to_numpy(load(tmp_path, backend)(backend, backend.upload(batch))))
        for backend in (ops, exact)
    )
    assert ours.shape == (3, 64) and np.abs(ours - expected).max() <= 2e-2 and not ops.replaced


@pytest.mark.parametrize("family", [BERT, "Qwen3", "Lfm2"])
def test_the_arrays_of_a_bucket_fit_any_batch(family: str, tmp_path: Path) -> None:
    """As a CUDA graph has them: nothing is read on the host, and all arrays have the bucket's lengths."""
    save(tmp_path, family)
    ops = TritonOps("cpu", "fp16")
    model, sizes = load(tmp_path, ops), []
    for lengths in ((5, 1, 33, 9), (12, 12, 12, 12)):
        batch = model.prepare(pack(make_items(lengths), "last"))
        arrays = ops.arrays(batch, fixed=True)
        sizes.append({name: len(array) for name, array in arrays.items()})
        offsets, size = offsets_of(arrays.values())
        joined = np.zeros(size, np.int32)
        write(joined, arrays.values(), offsets)
        fixed = replace(ops.place(batch, arrays, offsets, torch.from_numpy(joined)), host=None, max_seqlen=48)
        expected = ops.to_numpy(model(ops, ops.upload(batch)))
        np.testing.assert_array_equal(ops.to_numpy(model(ops, fixed)), expected)
    assert sizes[0] == sizes[1]


def fp8_ops(**options: Any) -> TritonOps:
    """By torch alone: the kernels are tested elsewhere, and this has many sequences."""
    return TritonOps("cpu", "bf16", replaced=frozenset(FUSED), rows8=True, **options)


def load_fp8(folder: Path, ops: TritonOps) -> Any:
    hf = read_json(folder, "config.json")
    return torch_fp8.load_fp8(str(hf["model_type"]), hf, open_tensors(folder), ops)


@pytest.mark.parametrize("family", [BERT, "Qwen3"])
def test_fp8_passes_its_gate(family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    save(tmp_path, family)
    model = load_fp8(tmp_path, fp8_ops())
    assert type(model.layers[0].qkv).__name__ == "Matrix8"
    assert "fp8: cosine with the model in 16 bits, 128 sequences: mean 0.99" in caplog.text


def test_fp8_that_is_too_far_off_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_fp8, "LEAST_MEAN", 0.99999)
    save(tmp_path, "Qwen3")
    with pytest.raises(ConfigError, match="leave out --quantization"):
        load_fp8(tmp_path, fp8_ops())
