"""Tasks: from hidden states to what a caller gets; a task knows nothing of architectures."""

from collections.abc import Mapping
from importlib import import_module
from typing import Protocol

from rtp_llm.core import Batch, FloatArray, Params, TaskType
from rtp_llm.errors import ConfigError
from rtp_llm.model_config import ModelConfig
from rtp_llm.ops import Ops, Tensor

# task -> (module, class).
TASKS: dict[TaskType, tuple[str, str]] = {
    TaskType.DENSE: ("rtp_llm.tasks.dense", "Dense"),
}


class Task(Protocol):
    """Post-processing in two steps: once per batch on the device, once per request on the host.

    dimension  columns of a finished row
    """

    dimension: int

    def __call__(self, ops: Ops, hidden_states: Tensor, batch: Batch) -> Tensor:
        """[T, H] -> [B, dimension], the same for every request of the batch."""

    def check(self, params: Params) -> None:
        """Raise InvalidRequest for parameters that this checkpoint cannot serve."""

    def finish(self, rows: FloatArray, params: Params) -> FloatArray:
        """One request's rows [n, dimension] -> its answer, by its own parameters."""


def load_tasks(model_config: ModelConfig, pooling: str, hidden_size: int, ops: Ops) -> Mapping[TaskType, Task]:
    """Every task of the checkpoint; ConfigError for one that does not exist here."""
    tasks = {}
    for task_type in model_config.tasks:
        if task_type not in TASKS:
            offered = ", ".join(task.value for task in TASKS)
            raise ConfigError(
                f"task {task_type.value!r} is not among those of this version: {offered}", param="task_type"
            )
        module, name = TASKS[task_type]
        tasks[task_type] = getattr(import_module(module), name).load(model_config, pooling, hidden_size, ops)
    return tasks
