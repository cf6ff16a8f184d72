"""Devices: a runtime takes Items to rows; it owns the model, the tasks and the ops they run on."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rtp_llm.checkpoint import open_tensors
from rtp_llm.config import EngineConfig
from rtp_llm.config_files import stored_quantization
from rtp_llm.core import Item, Rows, TaskType
from rtp_llm.errors import ConfigError, DeviceLost
from rtp_llm.model_config import ModelConfig
from rtp_llm.models import Model, find_model_type, load_model, model_class
from rtp_llm.ops import Ops
from rtp_llm.ops.native_ops import NativeOps
from rtp_llm.ops.numpy_ops import NumpyOps
from rtp_llm.runtime.cores import usable_cores
from rtp_llm.runtime.cpu import CpuRuntime
from rtp_llm.runtime.rounding import rounding
from rtp_llm.tasks import Task

logger = logging.getLogger(__name__)

# One of these is there where a driver of NVIDIA's or AMD's is loaded; to ask torch takes seconds.
_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/kfd"))


class Runtime(Protocol):
    """One model on one device, or on several.

    tasks         what it computes; filled once, before the first batch
    replicas      each copy of the model, which needs the tasks on its own device; itself where there is one
    dtype         of the activations: fp32, fp16 or bf16
    num_cores     units of the device that batches share; a batch is granted one or more
    num_devices   0: a CPU, whose cores may work on one batch together; else on so many devices `num_cores` batches are
                  in flight
    batch_tokens  the step's token budget that this device likes best; known when `start` has been called
    counts        what an operator may want to know of the device, by name, as it is now
    """

    model_type: str
    model: Model
    ops: Ops
    dtype: str
    num_cores: int
    num_devices: int
    batch_tokens: int

    @property
    def tasks(self) -> Mapping[TaskType, Task]: ...

    @property
    def replicas(self) -> Sequence[Any]: ...

    @property
    def counts(self) -> Mapping[str, float]: ...

    def start(self, max_seq_len: int) -> None:
        """Get ready, once, when the tasks are there."""

    def run(self, items: Sequence[Item], num_cores: int) -> dict[TaskType, Rows]:
        """Compute one batch for the tasks of its items, in the items' order. Called from several threads at once.

        DeviceLost: nothing can be computed any more.
        """

    def watch(self, on_lost: Callable[[DeviceLost], None]) -> None:
        """Be told, on another thread, when nothing can be computed any more, though no batch has shown it."""

    def close(self) -> None:
        """End what the runtime has started; after the last batch."""


def load_runtime(config: EngineConfig, model_config: ModelConfig, beside: Runtime | None = None) -> Runtime:
    """Choose the backend and load the model; `tasks` are for the caller to fill, when it has the vocabulary.

    `beside` computes on the same device: its streams, and with them the memory of activations, are shared.
    """
    device = choose_device(config)
    if device is not None:
        if config.weight_dtype == "bf16":
            raise ConfigError("weight_dtype bf16 is for a CPU without torch: --act_type bf16", param="weight_dtype")
        torch_loading = _import_torch_loading()
        return torch_loading.load(config, model_config, device, beside)  # type: ignore[no-any-return]
    if config.quantization == "fp8":
        raise ConfigError("quantization fp8 needs a GPU; on a CPU there is int8", param="quantization")
    if config.gelu != "erf":
        raise ConfigError(f"gelu {config.gelu}: a CPU computes the erf form", param="gelu")
    if config.tp_size * config.dp_size > 1:
        name = "tp_size" if config.tp_size > 1 else "dp_size"
        raise ConfigError(f"{name} {getattr(config, name)}: several devices need --backend torch", param=name)
    streams = beside.streams if isinstance(beside, CpuRuntime) else None
    ops = _load_ops(config) if beside is None or streams is None else beside.ops
    model_type = find_model_type(config.model_type, model_config.hf)
    quantization, parts = rounding(config, ops.instruction_set, stored_quantization(model_config.hf) != "none")
    source = open_tensors(model_config.transformer_folder, model_config.lora_modules)
    model = load_model(model_type, model_config.hf, source, ops.fork(quantization, parts))
    source.close()
    num_cores = available_cores(config) if ops.name == "native" else 1
    if streams is None and config.num_threads > num_cores:
        reason = "all this process may use" if ops.name == "native" else f"all that {ops.name} ops use"
        logger.warning("num_threads %d: %d compute, %s", config.num_threads, num_cores, reason)
    return CpuRuntime(
        model_type=model_type,
        dtype={"bf16_products": "bf16", "fp16_products": "fp16"}.get(quantization, "fp32"),
        model=model,
        ops=ops,
        num_cores=num_cores,
        prefix_cache_bytes=config.prefix_cache_mb << 20,
        streams=streams,
    )


def available_cores(config: EngineConfig) -> int:
    """Cores to compute on: the flag, but never more than this process may use."""
    usable = usable_cores()
    return min(config.num_threads or usable, usable)


def choose_device(config: EngineConfig) -> str | None:
    """The torch device to compute on; None: the CPU without torch.

    auto is a GPU where a driver and torch find one, unless the backend is one of the CPU's.
    """
    if config.backend in ("native", "numpy") or (config.backend == "auto" and config.device == "cpu"):
        if config.device not in ("auto", "cpu"):
            raise ConfigError(f"device {config.device!r} needs --backend torch", param="device")
        return None
    if config.device != "auto":
        return config.device
    if any(driver.exists() for driver in _DRIVERS):
        try:
            torch_loading = _import_torch_loading()
        except ConfigError as error:
            logger.warning("there is a GPU, but the CPU computes: %s", error.message)
            return None
        if torch_loading.has_cuda():
            return "cuda"
    return None if config.backend == "auto" else "cpu"


def choose_dtype(config: EngineConfig, model_type: str, hf: Mapping[str, Any], device: str) -> str:
    """fp32 on a CPU; elsewhere what was asked for, else bf16 where config.json says so, else the architecture's own."""
    if device.startswith("cpu"):
        if config.act_type in ("fp16", "bf16"):
            logger.info("act_type %s: a CPU computes in fp32, which is at least as exact", config.act_type)
        return "fp32"
    if config.quantization == "fp8":
        if config.act_type in ("fp32", "fp16"):
            logger.info("act_type %s: with fp8 activations are bf16, as torch's product gives them", config.act_type)
        return "bf16"
    if config.act_type != "auto":
        return config.act_type
    if str(hf.get("dtype", hf.get("torch_dtype"))) == "bfloat16":
        return "bf16"
    return model_class(model_type).gpu_dtype


def _import_torch_loading() -> Any:
    try:
        from rtp_llm.runtime import torch_loading
    except ImportError:
        raise ConfigError(
            "backend torch: torch is not installed; pip install 'rtp-llm[gpu]'", param="backend"
        ) from None
    return torch_loading


def _load_ops(config: EngineConfig) -> Ops:
    if config.backend == "numpy":
        return NumpyOps()
    try:
        return NativeOps(instruction_set=config.instruction_set)
    except ConfigError as error:
        if config.backend == "native" or config.instruction_set != "auto":
            raise
        logger.warning("native kernels are not there (%s); falling back to numpy, several times slower", error.message)
        return NumpyOps()
