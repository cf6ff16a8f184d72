"""The real device's calls, in their order, without the device."""

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
from rtp_llm.runtime.torch_device import CudaDevice  # noqa: E402


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What torch.cuda was asked for."""
    calls: list[str] = []

    @contextmanager
    def graph(*_: Any, **options: Any) -> Any:
        calls.append(f"begin {options['capture_error_mode']}")
        yield
        calls.append("end")

    def stream(*_: Any) -> Any:
        return SimpleNamespace(synchronize=lambda: calls.append("stream"))

    replaced = {
        "get_device_properties": lambda device: SimpleNamespace(name="a GPU", multi_processor_count=132),
        "Stream": stream, "current_stream": stream, "graph": graph, "graph_pool_handle": lambda: (0, 1),
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: calls.append("replay")),
        "synchronize": lambda *_: calls.append("device"),
    }  # fmt: skip
    for name, value in replaced.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return calls


def test_the_thread_that_records_has_computed_before(called: list[str]) -> None:
    """cuBLAS makes a thread's handle at its first product, which a recording does not allow."""

    def computed() -> torch.Tensor:
        called.append("compute")
        return torch.ones(1)

    device = CudaDevice("cuda:0")
    replay, output = device.capture(computed)
    assert called == ["compute", "begin thread_local", "compute", "end"] and len(output) == 1
    replay()
    assert called[-1] == "replay"


def test_streams_are_waited_for_and_not_the_device(called: list[str]) -> None:
    """The device cannot be waited for while another thread records on it."""
    CudaDevice("cuda:0").synchronize()
    assert called == ["stream"] * 4
