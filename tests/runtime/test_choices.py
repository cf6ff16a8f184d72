"""Which device, dtype and ops are chosen from the options."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rtp_llm import runtime
from rtp_llm.config import EngineConfig
from rtp_llm.errors import ConfigError
from rtp_llm.runtime.rounding import rounding


def config(**options: Any) -> EngineConfig:
    return EngineConfig(checkpoint_path="/m", **options)


def pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, cuda: bool, driver: bool = True) -> None:
    monkeypatch.setattr(runtime, "_DRIVERS", (tmp_path if driver else tmp_path / "none",))
    monkeypatch.setattr(runtime, "_import_torch_loading", lambda: SimpleNamespace(has_cuda=lambda: cuda))


@pytest.mark.parametrize(
    ("options", "cuda", "device"),
    [
        ({}, True, "cuda"),
        ({}, False, None),
        ({"backend": "torch"}, True, "cuda"),
        ({"backend": "torch"}, False, "cpu"),
        ({"backend": "native"}, True, None),
        ({"device": "cpu"}, True, None),
        ({"device": "cuda:1"}, False, "cuda:1"),
        ({"device": "cpu", "backend": "torch"}, True, "cpu"),
    ],
)
def test_device(
    options: dict[str, str], cuda: bool, device: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, tmp_path, cuda=cuda)
    assert runtime.choose_device(config(**options)) == device


def test_torch_is_not_asked_without_a_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, tmp_path, cuda=True, driver=False)
    assert runtime.choose_device(config()) is None


def test_a_gpu_without_torch_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(monkeypatch, tmp_path, cuda=True)

    def missing() -> Any:
        raise ConfigError("torch is not installed")

    monkeypatch.setattr(runtime, "_import_torch_loading", missing)
    with caplog.at_level(logging.WARNING):
        assert runtime.choose_device(config()) is None
    assert "the CPU computes: torch is not installed" in caplog.text


def test_devices_need_torch() -> None:
    with pytest.raises(ConfigError, match="'cuda' needs --backend torch"):
        runtime.choose_device(config(backend="native", device="cuda"))


@pytest.mark.parametrize(
    ("model_type", "hf", "act_type", "device", "dtype"),
    [
        ("bert", {}, "auto", "cuda", "fp16"),
        ("bert", {"torch_dtype": "bfloat16"}, "auto", "cuda", "bf16"),
        ("xlm-roberta", {"dtype": "float32"}, "auto", "cuda:1", "fp16"),
        ("nomic_bert", {}, "auto", "cuda", "fp16"),
        ("jina_bert", {}, "auto", "cuda", "fp16"),
        ("ernie", {}, "auto", "cuda", "fp16"),
        *(
            (name, {}, "auto", "cuda", "bf16")
            for name in ("modernbert", "deberta-v2", "deberta", "bart", "t5", "xlm-roberta-xl")
        ),
        ("qwen3", {"torch_dtype": "float16"}, "auto", "cuda", "bf16"),
        ("qwen3", {}, "fp32", "cuda", "fp32"),
        ("qwen3", {}, "bf16", "cpu", "fp32"),
    ],
)
def test_dtype(model_type: str, hf: dict[str, str], act_type: str, device: str, dtype: str) -> None:
    assert runtime.choose_dtype(config(act_type=act_type), model_type, hf, device) == dtype


@pytest.mark.parametrize(
    ("options", "tiles", "pairs", "other"),
    [
        ({}, "none", "none", "none"),
        ({"act_type": "fp32", "weight_dtype": "bf16"}, "bf16", "bf16", "bf16"),
        ({"act_type": "fp16"}, "fp16_products", "none", "none"),
        ({"act_type": "fp16", "weight_dtype": "bf16"}, "bf16", "bf16", "bf16"),
        ({"act_type": "bf16"}, "bf16_products", "bf16_products", "none"),
        ({"act_type": "bf16", "weight_dtype": "bf16"}, "bf16_products", "bf16_products", "bf16"),
    ],
)
def test_rounding_on_a_cpu(
    options: dict[str, str], tiles: str, pairs: str, other: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert rounding(config(**options), "amx") == (tiles, 3)
    assert rounding(config(**options), "avx512_bf16") == (pairs, 3)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert rounding(config(**options), "avx512") == (other, 3)
    assert ("the avx512 kernels compute in fp32" in caplog.text) == (options.get("act_type") in ("fp16", "bf16"))


@pytest.mark.parametrize(
    ("act_type", "instruction_set", "parts"),
    [
        ("bf16", "amx", 1),
        ("fp16", "amx", 2),
        ("bf16", "avx512_bf16", 1),
        ("fp16", "avx512_bf16", 3),
        ("fp32", "amx", 3),
    ],
)
def test_beside_a_quantization_the_act_type_is_of_attention(act_type: str, instruction_set: str, parts: int) -> None:
    quantized, stored = config(act_type=act_type, quantization="int8"), config(act_type=act_type, weight_dtype="bf16")
    assert rounding(quantized, instruction_set) == ("int8", parts)
    assert rounding(stored, instruction_set, is_stored=True) == ("bf16", parts)


def test_a_checkpoint_in_8_bits_stays_so(caplog: pytest.LogCaptureFixture) -> None:
    assert rounding(config(quantization="int8"), "avx2", is_stored=True) == ("none", 3)
    assert not caplog.text
    assert rounding(config(quantization="int4_weights"), "avx2", is_stored=True) == ("none", 3)
    assert "int4_weights: the checkpoint has its layers in 8 bits" in caplog.text
