"""From configuration to a torch runtime: on one device, a copy on each of several, or a part on each."""

import importlib.metadata
import logging
from pathlib import Path
from typing import Any

import torch

from rtp_llm.checkpoint import open_tensors
from rtp_llm.config import EngineConfig
from rtp_llm.errors import ConfigError, one_line
from rtp_llm.model_config import ModelConfig
from rtp_llm.models import find_model_type, load_model
from rtp_llm.ops.device_ops import make_ops
from rtp_llm.ops.torch_ops import TorchOps
from rtp_llm.runtime import choose_dtype, rank_weights
from rtp_llm.runtime.data_parallel import DataParallelRuntime
from rtp_llm.runtime.ranks import Ranks
from rtp_llm.runtime.token_budget import TokenBudget
from rtp_llm.runtime.torch import TorchRuntime
from rtp_llm.runtime.torch_device import Device, open_device
from rtp_llm.runtime.torch_parallel import Group, Leader, load_rank

logger = logging.getLogger(__name__)

# What config.json calls the sizes that decide a device's best budget.
_SHAPE = (
    "model_type", "hidden_size", "num_hidden_layers", "intermediate_size", "dim", "n_layers", "hidden_dim", "d_model",
    "num_layers", "d_ff",
)  # fmt: skip


def has_cuda() -> bool:
    """Whether torch finds a GPU."""
    return torch.cuda.is_available()


def load(
    config: EngineConfig, model_config: ModelConfig, device: str, beside: Any = None
) -> TorchRuntime | DataParallelRuntime:
    """ConfigError where the devices are not there, or the model cannot be on them as was asked.

    beside  another runtime: where it computes on the same devices, so does this, on the same streams
    """
    if config.tp_size > 1 and config.dp_size > 1:
        raise ConfigError("tp_size and dp_size are both above 1: choose one of them", param="tp_size")
    devices = _devices(device, max(config.tp_size, config.dp_size), "tp_size" if config.tp_size > 1 else "dp_size")
    if config.quantization in ("int8", "int8_weights", "int4_weights"):
        TorchOps("cpu").fork(config.quantization)  # type: ignore[arg-type]
    if config.tp_size > 1 and config.quantization == "fp8":
        raise ConfigError("quantization fp8: a model in parts (tp_size) has no weights in 8 bits", param="quantization")
    if config.tp_size > 1 and config.lora_modules:
        raise ConfigError("lora_modules: a model in parts (tp_size) takes no adapters by request", param="lora_modules")
    if config.tp_size > 1:
        return _load_parts(config, model_config, devices, beside)
    replicas = [_load_one(config, model_config, name, beside) for name in devices]
    return replicas[0] if len(replicas) == 1 else DataParallelRuntime(replicas)


def _load_one(config: EngineConfig, model_config: ModelConfig, name: str, beside: Any) -> TorchRuntime:
    device = _open(name, beside)
    model_type = find_model_type(config.model_type, model_config.hf)
    dtype, fp8 = choose_dtype(config, model_type, model_config.hf, name), config.quantization == "fp8"
    ops = make_ops(config.backend, name, dtype, gelu=config.gelu, fp8=fp8)
    source = open_tensors(model_config.transformer_folder, model_config.lora_modules)
    if fp8:
        from rtp_llm.runtime.torch_fp8 import load_fp8

        model = load_fp8(model_type, model_config.hf, source, ops)
    else:
        model = load_model(model_type, model_config.hf, source, ops)
    source.close()
    return TorchRuntime(
        model_type=model_type,
        model=model,
        ops=ops,
        device=device,
        budget=_budget(config, model_config, device, ops),
        prefix_cache_bytes=config.prefix_cache_mb << 20,
        graph_bytes=config.cuda_graph_mb << 20,
    )


def _load_parts(config: EngineConfig, model_config: ModelConfig, devices: list[str], beside: Any) -> TorchRuntime:
    """Rank 0's part here, the others in processes of their own."""
    size, hf = config.tp_size, dict(model_config.hf)
    model_type = find_model_type(config.model_type, hf)
    rank_weights.check(model_type, hf, size)
    dtype = choose_dtype(config, model_type, hf, devices[0])
    order = {
        "backend": config.backend, "gelu": config.gelu, "dtype": dtype,
        "folder": str(model_config.transformer_folder), "hf": hf,
        "model_type": model_type, "size": size,
    }  # fmt: skip
    ranks = Ranks([{**order, "rank": rank, "device": devices[rank]} for rank in range(1, size)])
    try:
        device = _open(devices[0], beside)
        ranks.wait_for("imported")
        group = Group(0, size, ranks.rendezvous, device.torch_device)
        ops = make_ops(config.backend, devices[0], dtype, gelu=config.gelu)
        source = open_tensors(model_config.transformer_folder)
        model, ops = load_rank(model_type, hf, source, ops, group, 0, size)
        source.close()
        ranks.wait_for("loaded")
    except BaseException:
        ranks.close()
        raise
    ranks.watch()
    # What is kept of prefixes would have to be kept, and let go, by all ranks alike.
    return TorchRuntime(
        model_type=model_type,
        model=model,
        ops=ops,
        device=device,
        budget=_budget(config, model_config, device, ops),
        leader=Leader(group, ranks),
    )


def _budget(config: EngineConfig, model_config: ModelConfig, device: Device, ops: TorchOps) -> TokenBudget:
    """Found out for this device, shape and these versions, unless an option says it."""
    hf = model_config.hf
    shape = [hf[key] for key in _SHAPE if hf.get(key) is not None]
    versions = [f"{name} {_version(name)}" for name in ("rtp-llm", "torch", "triton")]
    parts: list[Any] = [device.name, ops.name, *shape, str(ops.dtype), f"tp {config.tp_size}", *versions]
    folder = Path(config.device_cache_dir) if config.device_cache_dir else Path.home() / ".cache" / "rtp_llm"
    return TokenBudget(
        # The option is in units of max_seq_len, which the tokenizer decides: the engine does the sum.
        grain=0 if config.max_context_batch_size else device.grain,
        key=", ".join(map(str, parts)),
        cache=folder / "token_budgets.json",
    )


def _devices(device: str, count: int, option: str) -> list[str]:
    """Names of so many devices like this one."""
    kind = device.partition(":")[0]
    if kind != "cuda" or count == 1:
        return [device] * count
    if device != kind or count > torch.cuda.device_count():
        raise ConfigError(
            f"{option} {count}: there are {torch.cuda.device_count()} CUDA devices, and --device is {device}",
            param=option,
        )
    return [f"{kind}:{place}" for place in range(count)]


def _open(name: str, beside: Any) -> Device:
    """The device; that of `beside` where it is the same."""
    try:
        opened = open_device(name)
        others = (replica.device for replica in getattr(beside, "replicas", ()) if isinstance(replica, TorchRuntime))
        return next((other for other in others if other.torch_device == opened.torch_device), opened)
    except (RuntimeError, AssertionError) as error:
        problem = one_line(error)
        raise ConfigError(f"device {name!r} cannot be used: {problem:.200}", param="device") from error


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"
