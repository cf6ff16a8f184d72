"""Compile every kernel in every configuration for a target that is not there: a table of what ptxas and LLVM say.

TRITON_INTERPRET=0 python -m tests.ops.compiled TARGET [KERNEL…]: one JSON line a kernel; targets: sm_80, sm_89, sm_90,
sm_100, gfx942.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rtp_llm.ops import (
    triton_attention,
    triton_experts,
    triton_fp8,
    triton_gated,
    triton_norm,
    triton_pool,
    triton_rotary,
)

# Shared memory is what one program may use.
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), 163 << 10),
    "sm_89": (GPUTarget("cuda", 89, 32), 99 << 10),
    "sm_90": (GPUTarget("cuda", 90, 32), 227 << 10),
    "sm_100": (GPUTarget("cuda", 100, 32), 227 << 10),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 64 << 10),
}
INT32 = {"tiles_ptr", "cu_seqlens", "seen_lens", "wanted_ptr", "prompt_lens", "ids0", "ids1", "ids2"}
FLOATS = {"eps", "q_eps", "k_eps", "scale", "cap"}
INTEGERS = {"stride", "reach", "relative_reach", "size", "num_rows"}
INT64 = {"addresses", "places_ptr"}
FP32 = {"scales_ptr", "weights_ptr"}


class Kernel(NamedTuple):
    """One kernel and what its launch would give it."""

    name: str
    function: Any
    dtype: str
    constants: dict[str, Any]
    options: dict[str, int]
    types: dict[str, str] = {}


def attention_kernels(memory: int, hip: bool) -> Iterator[Kernel]:
    for rows in (16, 64, 128):
        for head_dim in (32, 64, 96, 128, 256):
            block_d = triton.next_power_of_2(head_dim)
            decodes = head_dim >= 128
            # A prefix comes with a decoder, a bias with an encoder.
            for has_prefix, has_bias, has_cap in itertools.product((False, True), repeat=3):
                # A cap is Gemma 2's, whose heads have 256 numbers.
                if has_prefix > decodes or has_bias > (not decodes) or has_cap > (head_dim == 256):
                    continue
                config = triton_attention.config_of(rows, block_d, 2, memory, hip, has_bias)
                constants = {
                    "NUM_HEADS": 16, "NUM_KV_HEADS": 8 if decodes else 16, "HEAD_DIM": head_dim, "CAUSAL": decodes,
                    "WINDOW": 128 if head_dim == 96 else 0, "HAS_PREFIX": has_prefix, "HAS_SEEN": not decodes,
                    "HAS_WANTED": rows == 16, "HAS_CAP": has_cap, "HAS_BIAS": has_bias, "RELATIVE": "", "SPAN": 0,
                    "PARTS": rows // config.block_m, "BLOCK_M": config.block_m, "BLOCK_N": config.block_n,
                    "BLOCK_D": block_d,
                }  # fmt: skip
                extras = {"prefix": has_prefix, "bias": has_bias, "cap": has_cap}
                name = " ".join(
                    (f"attention {rows} x {head_dim}", *(extra for extra, there in extras.items() if there))
                )
                options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
                yield Kernel(name, triton_attention.attention_kernel, "bf16" if decodes else "fp16", constants, options)


def relative_kernels(memory: int, hip: bool) -> Iterator[Kernel]:
    """Attention with vectors of distances, an encoder's; no model has a bias or a cap beside them."""
    for rows, head_dim in itertools.product((16, 64, 128), (32, 64, 96, 128)):
        block_d = triton.next_power_of_2(head_dim)
        for kind, dtype, has_seen in (
            ("both", "fp16", False), ("both", "bf16", True), ("keys", "fp16", False), ("queries", "fp16", False),
        ):  # fmt: skip
            config = triton_attention.relative_config_of(rows, block_d, 2, memory, hip)
            constants = {
                "NUM_HEADS": 12, "NUM_KV_HEADS": 12, "HEAD_DIM": head_dim, "CAUSAL": False, "WINDOW": 0,
                "HAS_PREFIX": False, "HAS_SEEN": has_seen, "HAS_WANTED": rows == 16, "HAS_CAP": False,
                "HAS_BIAS": False, "RELATIVE": kind, "SPAN": triton_attention.span_of(config, rows == 16),
                "PARTS": rows // config.block_m, "BLOCK_M": config.block_m, "BLOCK_N": config.block_n,
                "BLOCK_D": block_d,
            }  # fmt: skip
            name = f"relative {rows} x {head_dim} {kind}{' unseen' if has_seen else ''}"
            options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
            yield Kernel(name, triton_attention.attention_kernel, dtype, constants, options)


def row_kernels() -> Iterator[Kernel]:
    for size in (384, 1024, 4096, triton_norm.MAX_COLUMNS):
        shape: dict[str, Any] = triton_norm.shape_of(size)
        options = {"num_warps": shape.pop("num_warps")}
        for rms in (False, True):
            constants = {"size": size, "RMS": rms, "HAS_BIAS": not rms, **shape}
            yield Kernel(f"norm {size}", triton_norm.norm_kernel, "bf16" if rms else "fp16", {
                **constants, "HAS_RESIDUAL": True, "STORES_SUM": rms}, options)  # fmt: skip
            yield Kernel(f"embed {size}", triton_norm.embed_kernel, "fp16", {
                **constants, "TABLES": 1 if rms else 3, "HAS_NORM": not rms}, options)  # fmt: skip
    for head_dim in (64, 128):
        constants = {"NUM_HEADS": 16, "NUM_KV_HEADS": 8, "HALF": head_dim // 2, "NORMS_Q": True, "NORMS_K": True,
                     "HEADS": 8, "BLOCK": head_dim // 2}  # fmt: skip
        yield Kernel(f"rotary {head_dim}", triton_rotary.rotary_kernel, "bf16", constants, {"num_warps": 4})
    for activation in triton_gated.ACTIVATIONS:
        constants = {"ACTIVATION": activation, "BLOCK": 1024}
        yield Kernel(f"gated {activation}", triton_gated.gated_kernel, "bf16", constants, {"num_warps": 4})
    for mode in ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"):
        constants = {"MODE": mode, "SKIPS": True, "ROWS": 32, "COLUMNS": 64}
        yield Kernel(f"pool {mode}", triton_pool.pool_kernel, "fp16", constants, {"num_warps": 4}, {"out_ptr": "*fp32"})
    yield Kernel("l2", triton_pool.l2_kernel, "fp32", {"BLOCK": 4096}, {"num_warps": 8})


def expert_kernels(memory: int) -> Iterator[Kernel]:
    """nomic-embed-text-v2-moe's, in tiles for few rows and for many."""
    for rows, dtype in itertools.product((64, 1 << 14), ("fp16", "bf16")):
        config = triton_experts.config_of(rows, 2, memory)
        blocks = {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k}
        options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
        for n, k, gathers in ((3072, 768, True), (768, 3072, False)):
            activation = "gelu" if gathers else ""
            constants = {"N": n, "K": k, "TOP_K": 2, "GATHERS": gathers, "ACTIVATION": activation, **blocks}
            name = f"experts {config.block_m} x {n} x {k}"
            yield Kernel(name, triton_experts.product_kernel, dtype, constants, options, {"tiles_ptr": "*i64"})
    shape: dict[str, Any] = triton_norm.shape_of(768)
    options = {"num_warps": shape.pop("num_warps")}
    constants = {"size": 768, "TOP_K": 2, "HAS_BIAS": True, **shape}
    yield Kernel("sum of experts", triton_experts.sum_kernel, "fp16", constants, options)


def fp8_kernels() -> Iterator[Kernel]:
    types = {"values_ptr": "*fp8e4nv"}
    for size in (1024, 4096, 12288):
        shape: dict[str, Any] = triton_norm.shape_of(size)
        options = {"num_warps": shape.pop("num_warps")}
        shape["size"] = size
        for rms in (False, True):
            constants = {**shape, "RMS": rms, "HAS_BIAS": not rms, "HAS_RESIDUAL": True, "STORES_SUM": rms}
            yield Kernel(f"norm fp8 {size}", triton_fp8.norm_kernel, "bf16", constants, options, types)
        for gated, activation in ((True, "silu"), (False, "gelu"), (False, "")):
            constants = {**shape, "ACTIVATION": activation, "GATED": gated}
            yield Kernel(f"rows fp8 {activation} {size}", triton_fp8.rows_kernel, "bf16", constants, options, types)


def compiled(kernel: Kernel, target: GPUTarget) -> dict[str, Any]:
    """Shared memory in bytes, registers, bytes or registers spilt, and how matrices are multiplied."""
    names = kernel.function.arg_names
    signature = {name: kernel.types.get(name, _type_of(name, kernel)) for name in names}
    aligned = [name for name in names if signature[name].startswith("*") or name in ("stride", "size")]
    attributes = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(names)
        if name in aligned and name not in kernel.constants
    }
    source = ASTSource(kernel.function, signature, kernel.constants, attributes)
    binary = triton.compile(source, target=target, options=kernel.options)
    row = {"kernel": kernel.name, "shared": binary.metadata.shared, **kernel.options}
    if target.backend == "hip":
        text = binary.asm["amdgcn"]
        registers, spilt = (
            int(re.findall(rf"\.{key}:\s+(\d+)", text)[0]) for key in ("vgpr_count", "vgpr_spill_count")
        )
        return {**row, "registers": registers, "spilt": spilt, "products": _first(text, ("mfma",))}
    registers, spilt = _resources(binary.asm["cubin"])
    products = _first(binary.asm["ptx"], ("tcgen05.mma", "wgmma", "mma.sync"))
    return {**row, "registers": registers, "spilt": spilt, "products": products}


def _type_of(name: str, kernel: Kernel) -> str:
    if name in kernel.constants:
        return "constexpr"
    if name in FLOATS:
        return "fp32"
    if name in INTEGERS:
        return "i32"
    if name in INT64:
        return "*i64"
    return "*i32" if name in INT32 else "*fp32" if name in FP32 else f"*{kernel.dtype}"


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of its stack, which is where they are spilt to."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found is not None, text
    return int(found[1]), int(found[2])


def _first(text: str, names: tuple[str, ...]) -> str:
    return next((name for name in names if name in text), "")


def main() -> None:
    name, *only = sys.argv[1:]
    target, memory = TARGETS[name]
    is_hip = target.backend == "hip"
    kernels = [*attention_kernels(memory, is_hip), *relative_kernels(memory, is_hip), *row_kernels()]
    kernels += expert_kernels(memory)
    if name not in ("sm_80", "gfx942"):  # sm_80 has no e4m3, gfx942 another one
        kernels += fp8_kernels()
    for kernel in kernels:
        if not only or kernel.name in only:
            print(json.dumps({"target": name, "memory": memory, **compiled(kernel, target)}), flush=True)


if __name__ == "__main__":
    main()
