"""What the torch runtime needs of a device: pinned memory, copies that overlap, events, graphs, memory.

`CudaDevice` is the real one (ROCm's builds of torch answer to the same names); `CpuDevice` does each thing at once.
Kernels of all batches run on one stream, in the order in which they were enqueued; copies have streams of their own.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, NamedTuple, Protocol

import torch

# torch records one graph at a time in a process, on whatever device.
_RECORDING = threading.Lock()


class Event(Protocol):
    """A point in the work of a stream."""

    def synchronize(self) -> None:
        """Wait until the work up to it is done, without the interpreter lock."""


class Recorded(NamedTuple):
    """Kernels that were recorded: `replay` runs them all again and fills `output`, `gain` times as fast as one by one.

    Of few tokens the launches take longer than the kernels, and the gain is large; of many it is 1.
    """

    replay: Callable[[], None]
    output: torch.Tensor
    gain: float


class Device(Protocol):
    """One device.

    num_slots  batches in flight that it likes: one computes while the next is enqueued
    grain      token budgets that are tried are this, doubled; 0: nothing is tried
    launch     held by whoever enqueues kernels, whichever model's: they have one order, and a graph none but its own
    """

    name: str
    torch_device: torch.device
    num_slots: int
    grain: int
    launch: threading.Lock

    def host_buffer(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        """[size] on the host, where copies can overlap with kernels."""

    def copied_buffer(self, size: int) -> torch.Tensor:
        """int32 [size] on the device, for `copy_in` to write."""

    def copy_in(self, target: torch.Tensor, source: torch.Tensor) -> Event:
        """Begin to copy from the host, beside the kernels; neither may be touched until the event."""

    def computing(self) -> AbstractContextManager[None]:
        """Within it, kernels go to the compute stream."""

    def wait(self, event: Event) -> None:
        """What is enqueued for computing from now on runs after the event."""

    def copy_out(self, target: torch.Tensor, source: torch.Tensor, *, in_order: bool) -> Event:
        """Copy to the host what was enqueued for computing; `in_order`: before kernels that are enqueued later."""

    def capture(self, compute: Callable[[], torch.Tensor]) -> Recorded:
        """Record kernels instead of running them; `compute` is called more than once, and `launch` is held."""

    def free_bytes(self) -> int:
        """Memory that is left."""

    def empty_cache(self) -> None:
        """Give back memory that is held for later use."""

    def synchronize(self) -> None:
        """Wait for all that was enqueued; RuntimeError where the device has failed for good."""


class CudaDevice:
    """One CUDA or ROCm device. Three streams: copies in, kernels, copies out."""

    num_slots = 2

    def __init__(self, device: str) -> None:
        self.torch_device = torch.device(device)
        if self.torch_device.index is None:
            self.torch_device = torch.device(self.torch_device.type, torch.cuda.current_device())
        properties = torch.cuda.get_device_properties(self.torch_device)
        self.name = str(properties.name)
        # Whole waves: a tile of the GEMMs has 128 rows, and each multiprocessor works on one.
        self.grain = 8 * int(properties.multi_processor_count)
        new_stream: Callable[[torch.device], Any] = torch.cuda.Stream
        self._compute, self._in, self._out = (new_stream(self.torch_device) for _ in range(3))
        self._pool: Any = None
        self._graphs: list[Any] = []
        self.launch = threading.Lock()

    def host_buffer(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, pin_memory=True)

    def copied_buffer(self, size: int) -> torch.Tensor:
        # NOTE: memory belongs to the stream it was allocated on: what kernels have let go may still be read by them.
        with torch.cuda.stream(self._in):
            return torch.empty(size, dtype=torch.int32, device=self.torch_device)

    def copy_in(self, target: torch.Tensor, source: torch.Tensor) -> Event:
        with torch.cuda.stream(self._in):
            target.copy_(source, non_blocking=True)
            return self._marked(self._in)

    @contextmanager
    def computing(self) -> Iterator[None]:
        with torch.cuda.stream(self._compute):
            yield

    def wait(self, event: Any) -> None:
        self._compute.wait_event(event)

    def copy_out(self, target: torch.Tensor, source: torch.Tensor, *, in_order: bool) -> Event:
        if in_order:
            target.copy_(source, non_blocking=True)
            return self._marked(self._compute)
        self._out.wait_stream(self._compute)
        with torch.cuda.stream(self._out):
            target.copy_(source, non_blocking=True)
        return self._marked(self._out)

    def capture(self, compute: Callable[[], torch.Tensor]) -> Recorded:
        # NOTE: in this thread, which may not have multiplied yet: cuBLAS has a handle a thread, which it makes, and
        # allocates for, at the thread's first product; while a graph is recorded that is an error.
        one_by_one = self._seconds(compute)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # NOTE: torch's allocator goes on asking one whose recording has failed, and must find it; and a pool whose last
        # graph is gone takes no other.
        self._graphs.append(graph)
        # thread_local: other threads may wait for their batches meanwhile.
        recording = torch.cuda.graph(graph, pool=self._pool, stream=self._compute, capture_error_mode="thread_local")
        with _RECORDING:
            try:
                with recording:
                    output = compute()
            except BaseException:
                self._end_recording()
                raise
        return Recorded(graph.replay, output, one_by_one / self._seconds(graph.replay))

    def free_bytes(self) -> int:
        free, _ = torch.cuda.mem_get_info(self.torch_device)
        return int(free)

    def empty_cache(self) -> None:
        torch.cuda.empty_cache()

    def synchronize(self) -> None:
        # NOTE: not the device as a whole, which CUDA forbids while another thread records a graph on some stream of it.
        for stream in (torch.cuda.current_stream(self.torch_device), self._in, self._compute, self._out):
            stream.synchronize()

    def _end_recording(self) -> None:
        """After one that has failed: torch leaves it open, and while one is, the allocator gives nothing back."""
        with suppress(AttributeError, RuntimeError):  # a name of torch's own; it was not open
            torch._C._cuda_endAllocateToPool(self.torch_device.index, self._pool)

    def _seconds(self, call: Callable[[], object]) -> float:
        """The shorter of two calls, after one that is not timed, each with what it has enqueued done."""
        call()
        times = []
        for _ in range(2):
            self._compute.synchronize()
            started = time.perf_counter()
            call()
            self._compute.synchronize()
            times.append(time.perf_counter() - started)
        return min(times)

    def _marked(self, stream: Any) -> Event:
        # blocking: a thread that waits leaves its core to others.
        new_event: Callable[..., Any] = torch.cuda.Event
        event = new_event(blocking=True)
        event.record(stream)
        return event  # type: ignore[no-any-return]


class _Done:
    def synchronize(self) -> None:
        """There is nothing to wait for."""


class CpuDevice:
    """The CPU through the same interface, and what any device without streams gets; a graph is computed anew."""

    num_slots = 1
    grain = 0

    def __init__(self, device: str = "cpu") -> None:
        self.torch_device = torch.device(device)
        self.name = device
        self.launch = threading.Lock()

    def host_buffer(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(size, dtype=dtype)

    def copied_buffer(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.int32, device=self.torch_device)

    def copy_in(self, target: torch.Tensor, source: torch.Tensor) -> Event:
        target.copy_(source)
        return _Done()

    @contextmanager
    def computing(self) -> Iterator[None]:
        yield

    def wait(self, event: Event) -> None:
        event.synchronize()

    def copy_out(self, target: torch.Tensor, source: torch.Tensor, *, in_order: bool) -> Event:
        target.copy_(source)
        return _Done()

    def capture(self, compute: Callable[[], torch.Tensor]) -> Recorded:
        output = compute()

        def replay() -> None:
            output.copy_(compute())

        return Recorded(replay, output, 1.0)

    def free_bytes(self) -> int:
        return 1 << 40

    def empty_cache(self) -> None:
        """Nothing is held."""

    def synchronize(self) -> None:
        """Everything is done at once."""


def open_device(name: str) -> Device:
    """The device that torch knows by this name; RuntimeError where it is not there."""
    return CudaDevice(name) if torch.device(name).type == "cuda" else CpuDevice(name)
