"""Which ops a torch device gets: Triton's kernels on a GPU, where triton is installed, plain torch elsewhere."""

import logging

import torch

from rtp_llm.errors import ConfigError
from rtp_llm.ops.torch_ops import TorchOps

logger = logging.getLogger(__name__)

_FP8_CAPABILITY = (8, 9)


def make_ops(backend: str, device: str, dtype: str, *, gelu: str = "erf", fp8: bool = False) -> TorchOps:
    """Ops for a device, their kernels checked on it; `fp8`: whose `fork("fp8")` makes weights in 8 bits.

    ConfigError where the backend that was asked for by name, or fp8, is not there.
    """
    if fp8:
        _check_fp8(backend, device)
    if backend == "torch" or (backend == "auto" and not device.startswith("cuda")):
        return _torch_ops(device, dtype, gelu)
    try:
        from rtp_llm.ops.triton_check import checked_ops
        from rtp_llm.ops.triton_launch import INTERPRETED
    except ImportError:
        if backend == "triton" or fp8:
            raise ConfigError("backend triton: pip install triton", param="backend") from None
        logger.info("triton is not installed: torch's own ops compute, with more passes over memory")
        return _torch_ops(device, dtype, gelu)
    if not device.startswith("cuda") and not INTERPRETED:
        raise ConfigError(f"backend triton: its kernels run on a GPU, and the device is {device}", param="backend")
    return checked_ops(device, dtype, gelu=gelu, rows8=fp8)


def _torch_ops(device: str, dtype: str, gelu: str) -> TorchOps:
    if gelu != "erf":
        raise ConfigError(f"gelu {gelu}: torch alone computes the erf form; backend triton has both", param="gelu")
    return TorchOps(device, dtype)


def _check_fp8(backend: str, device: str) -> None:
    if backend == "torch":
        raise ConfigError("quantization fp8 needs --backend triton, or auto", param="quantization")
    if device.startswith("cpu"):
        raise ConfigError("quantization fp8 needs a GPU; on a CPU there is int8", param="quantization")
    if torch.version.hip is not None or torch.cuda.get_device_capability(device) < _FP8_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        raise ConfigError(f"quantization fp8: {name} has no e4m3 (NVIDIA's have from sm_89 on)", param="quantization")
