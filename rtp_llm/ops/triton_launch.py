"""What the kernels' launches need to know of the device."""

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
import triton
from triton.runtime import driver

# What a program may use on the smallest of the devices that are served (sm_86, sm_89).
_LEAST_SHARED_MEMORY = 99 << 10
INTERPRETED: bool = triton.knobs.runtime.interpret


def is_hip() -> bool:
    """Whether torch was built for AMD."""
    return torch.version.hip is not None


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Within it kernels are launched on this device: on which one is the thread's affair, not that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@lru_cache
def shared_memory(device: torch.device) -> int:
    """Bytes that one program may use, as Triton counts them."""
    if device.type != "cuda":
        return _LEAST_SHARED_MEMORY
    index = torch.cuda.current_device() if device.index is None else device.index
    return int(driver.active.utils.get_device_properties(index)["max_shared_mem"])
