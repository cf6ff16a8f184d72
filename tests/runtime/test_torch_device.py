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

    recorded = CudaDevice("cuda:0").capture(computed)
    assert [call for call in called if call != "stream"] == [
        *["compute"] * 3, "begin thread_local", "compute", "end", *["replay"] * 3
    ]  # fmt: skip
    assert len(recorded.output) == 1 and recorded.gain > 0
    recorded.replay()
    assert called[-1] == "replay"


def test_what_is_timed_ends_within_its_time(called: list[str]) -> None:
    CudaDevice("cuda:0")._seconds(lambda: called.append("call"))
    assert called == ["call", *["stream", "call", "stream"] * 2]


def test_a_recording_that_fails_is_ended(called: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """torch leaves it open, and its allocator then gives no memory back, whatever else needs it."""
    ended: list[Any] = []
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *pool: ended.append(pool), raising=False)
    calls = iter(range(3))

    def computed() -> torch.Tensor:
        if next(calls, None) is None:
            raise RuntimeError("operation not permitted when stream is capturing")
        return torch.ones(1)

    device = CudaDevice("cuda:0")
    with pytest.raises(RuntimeError, match="not permitted"):
        device.capture(computed)
    assert ended == [(0, (0, 1))]


def test_streams_are_waited_for_and_not_the_device(called: list[str]) -> None:
    """The device cannot be waited for while another thread records on it."""
    CudaDevice("cuda:0").synchronize()
    assert called == ["stream"] * 4
