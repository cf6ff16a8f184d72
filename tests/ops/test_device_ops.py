"""Which ops a device gets."""

import sys
from typing import Any

import pytest

from rtp_llm.errors import ConfigError
from tests.ops import interpreter as _  # noqa: F401

torch = pytest.importorskip("torch")

from rtp_llm.ops import device_ops, triton_check  # noqa: E402


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_a_cpu_has_torch(backend: str) -> None:
    assert device_ops.make_ops(backend, "cpu", "fp32").name == "torch"


def test_torch_has_one_gelu() -> None:
    with pytest.raises(ConfigError, match="gelu tanh"):
        device_ops.make_ops("torch", "cpu", "fp32", gelu="tanh")


def test_a_gpu_has_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(triton_check, "checked_ops", lambda *args, **options: asked.append((args, options)))
    device_ops.make_ops("auto", "cuda:1", "fp16", gelu="tanh")
    assert asked == [(("cuda:1", "fp16"), {"gelu": "tanh", "rows8": False})]


def test_without_triton_a_gpu_has_torch(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    monkeypatch.setitem(sys.modules, "rtp_llm.ops.triton_check", None)
    ops = device_ops.make_ops("auto", "cuda", "fp16")
    assert (ops.name, str(ops.device), ops.dtype) == ("torch", "cuda", torch.float16)
    assert "triton is not installed" in caplog.text
    with pytest.raises(ConfigError, match="pip install triton"):
        device_ops.make_ops("triton", "cuda", "fp16")


def test_triton_by_name_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtp_llm.ops.triton_launch.INTERPRETED", False)
    with pytest.raises(ConfigError, match="the device is cpu"):
        device_ops.make_ops("triton", "cpu", "fp32")


@pytest.mark.parametrize(("capability", "right"), [((8, 0), False), ((8, 9), True), ((9, 0), True)])
def test_fp8_needs_a_device_that_has_it(
    capability: tuple[int, int], right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(triton_check, "checked_ops", lambda *args, **options: options)
    if right:
        made: Any = device_ops.make_ops("auto", "cuda", "bf16", fp8=True)
        assert made["rows8"]
    else:
        with pytest.raises(ConfigError, match="a GPU has no e4m3"):
            device_ops.make_ops("auto", "cuda", "bf16", fp8=True)


@pytest.mark.parametrize(("backend", "device"), [("torch", "cuda"), ("auto", "cpu")])
def test_fp8_elsewhere_is_refused(backend: str, device: str) -> None:
    with pytest.raises(ConfigError, match="quantization fp8 needs"):
        device_ops.make_ops(backend, device, "bf16", fp8=True)
