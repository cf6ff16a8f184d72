"""The CPU: each running batch has its own stream of ops, on one core at load and on all when it is alone."""

from collections.abc import Mapping, Sequence
from queue import SimpleQueue

from rtp_llm.core import FloatArray, Item, TaskType, pack
from rtp_llm.models import Model
from rtp_llm.ops import Ops
from rtp_llm.tasks import Task

# Activations of 1024 tokens of a base-sized model stay in the second-level cache; larger steps only add latency.
BATCH_TOKENS = 1024


class CpuRuntime:
    """`num_cores` streams that share the weights; also what a torch device without its own runtime gets."""

    batch_tokens = BATCH_TOKENS

    def __init__(
        self, *, model_type: str, model: Model, tasks: Mapping[TaskType, Task], ops: Ops, num_cores: int
    ) -> None:
        self.model_type = model_type
        self.model = model
        self.tasks = tasks
        self.ops = ops
        self.num_cores = num_cores
        self._streams: SimpleQueue[Ops] = SimpleQueue()
        for stream in [ops, *(ops.fork() for _ in range(num_cores - 1))]:
            self._streams.put(stream)

    def run(self, items: Sequence[Item], num_cores: int) -> dict[TaskType, FloatArray]:
        """Pack, run the model once and every task on its hidden states; rows in the items' order."""
        ops = self._streams.get()
        try:
            ops.num_threads = num_cores
            batch = ops.upload(self.model.prepare(pack(items)))
            hidden_states = self.model(ops, batch)
            rows = {name: task(ops, hidden_states, batch) for name, task in self.tasks.items()}
            return {name: ops.to_numpy(tensor) for name, tensor in rows.items()}
        finally:
            self._streams.put(ops)
