"""What the kernels' launches need to know of the device."""

from functools import lru_cache

import torch
import triton

# What a program may use on the smallest of the devices that are served (sm_86, sm_89).
_LEAST_SHARED_MEMORY = 99 << 10
INTERPRETED: bool = triton.knobs.runtime.interpret


def is_hip() -> bool:
    """Whether torch was built for AMD."""
    return torch.version.hip is not None


@lru_cache
def shared_memory(device: torch.device) -> int:
    """Bytes that one program may use."""
    if device.type != "cuda" or is_hip():
        return 64 << 10 if is_hip() else _LEAST_SHARED_MEMORY
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", _LEAST_SHARED_MEMORY))
