"""Data parallel: a copy of the model on each of several devices, behind one queue."""

import threading
from collections.abc import Callable, Mapping, Sequence

from rtp_llm.core import Item, Rows, TaskType
from rtp_llm.errors import DeviceLost
from rtp_llm.runtime.torch import TorchRuntime
from rtp_llm.tasks import Task


class DataParallelRuntime:
    """The replicas' slots as one pool; a batch goes to the device with the fewest in flight."""

    def __init__(self, replicas: Sequence[TorchRuntime]) -> None:
        first = replicas[0]
        self.replicas = tuple(replicas)
        self.model_type, self.model, self.ops, self.dtype = first.model_type, first.model, first.ops, first.dtype
        self.num_devices = len(replicas)
        self.num_cores = sum(replica.num_cores for replica in replicas)
        self.batch_tokens = first.batch_tokens
        self._in_flight = [0] * len(replicas)
        self._lock = threading.Lock()

    @property
    def tasks(self) -> Mapping[TaskType, Task]:
        """The first replica's; the others' are the same on their own devices."""
        return self.replicas[0].tasks

    @property
    def counts(self) -> Mapping[str, float]:
        """The replicas' together."""
        total: dict[str, float] = {}
        for replica in self.replicas:
            for name, count in replica.counts.items():
                total[name] = total.get(name, 0.0) + count
        return total

    def start(self, max_seq_len: int) -> None:
        """The devices are alike: what one finds out is true of all."""
        for replica in self.replicas:
            replica.start(max_seq_len)
        self.batch_tokens = min(replica.batch_tokens for replica in self.replicas)

    def watch(self, on_lost: Callable[[DeviceLost], None]) -> None:
        """Whatever a replica loses is lost for all."""
        for replica in self.replicas:
            replica.watch(on_lost)

    def close(self) -> None:
        for replica in self.replicas:
            replica.close()

    def run(self, items: Sequence[Item], num_cores: int) -> dict[TaskType, Rows]:
        """Compute one batch on the device that has least to do."""
        with self._lock:
            place = min(range(len(self._in_flight)), key=self._in_flight.__getitem__)
            self._in_flight[place] += 1
        try:
            return self.replicas[place].run(items, num_cores)
        finally:
            with self._lock:
                self._in_flight[place] -= 1
