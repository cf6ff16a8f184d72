"""Devices: a runtime takes Items to rows; it owns the model, the tasks and the ops they run on."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rtp_llm.checkpoint import open_tensors
from rtp_llm.config import EngineConfig
from rtp_llm.core import Item, Rows, TaskType
from rtp_llm.errors import ConfigError
from rtp_llm.model_config import ModelConfig, stored_quantization
from rtp_llm.models import Model, find_model_type, load_model
from rtp_llm.ops import Ops
from rtp_llm.runtime.cpu import CpuRuntime
from rtp_llm.tasks import Task

logger = logging.getLogger(__name__)


class Runtime(Protocol):
    """One model on one device.

    tasks         what it computes; filled once, before the first batch
    num_cores     units of the device that batches share; a batch is granted one or more
    batch_tokens  the step's token budget that this device likes best
    """

    model_type: str
    model: Model
    tasks: Mapping[TaskType, Task]
    ops: Ops
    num_cores: int
    batch_tokens: int

    def run(self, items: Sequence[Item], num_cores: int) -> dict[TaskType, Rows]:
        """Compute one batch for the tasks of its items, in the items' order. Called from several threads at once."""


def load_runtime(config: EngineConfig, model_config: ModelConfig, beside: Runtime | None = None) -> Runtime:
    """Choose the backend and load the model; `tasks` are for the caller to fill, when it has the vocabulary.

    `beside` computes on the same device: its streams, and with them the memory of activations, are shared.
    """
    streams = beside.streams if isinstance(beside, CpuRuntime) and config.backend != "torch" else None
    ops = _load_ops(config) if beside is None or streams is None else beside.ops
    model_type = find_model_type(config.model_type, model_config.hf)
    # What the checkpoint keeps in fp32 beside layers in 8 bits is meant to stay so.
    is_stored = stored_quantization(model_config.hf) != "none"
    quantization: Any = "none" if is_stored else config.quantization
    if quantization == "none" and config.weight_dtype == "bf16":
        quantization = "bf16"
    source = open_tensors(model_config.transformer_folder)
    model = load_model(model_type, model_config.hf, source, ops.fork(quantization))
    source.close()
    num_cores = available_cores(config) if ops.name == "native" else 1
    return CpuRuntime(
        model_type=model_type,
        model=model,
        ops=ops,
        num_cores=num_cores,
        prefix_cache_bytes=config.prefix_cache_mb << 20,
        streams=streams,
    )


def available_cores(config: EngineConfig) -> int:
    """Cores to compute on: the flag, but never more than this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(config.num_threads or usable, usable)


def _load_ops(config: EngineConfig) -> Ops:
    if config.device not in ("auto", "cpu") and config.backend != "torch":
        raise ConfigError(f"device {config.device!r} needs --backend torch", param="device")
    if config.backend == "torch":
        return _torch_ops(config)
    if config.act_type in ("fp16", "bf16"):
        logger.info("act_type %s: a CPU computes in fp32, which is at least as exact", config.act_type)
    if config.backend == "numpy":
        from rtp_llm.ops.numpy_ops import NumpyOps

        return NumpyOps()
    return _native_ops(config)


def _native_ops(config: EngineConfig) -> Ops:
    from rtp_llm.ops.native_ops import NativeOps

    try:
        return NativeOps(instruction_set=config.instruction_set)
    except ConfigError as error:
        if config.backend == "native" or config.instruction_set != "auto":
            raise
        from rtp_llm.ops.numpy_ops import NumpyOps

        logger.warning("native kernels are not there (%s); falling back to numpy, several times slower", error.message)
        return NumpyOps()


def _torch_ops(config: EngineConfig) -> Ops:
    try:
        from rtp_llm.ops.torch_ops import TorchOps
    except ImportError:
        raise ConfigError(
            "backend torch: torch is not installed; pip install 'rtp-llm[gpu]'", param="backend"
        ) from None
    device = "cpu" if config.device == "auto" else config.device
    dtype = "fp32" if config.act_type == "auto" or device == "cpu" else config.act_type
    return TorchOps(device=device, dtype=dtype)
