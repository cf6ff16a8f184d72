"""Builds the CPU kernels, once per instruction set; everything else stands in pyproject.toml.

A machine without a C++ compiler still installs: the extensions are optional, and the numpy backend remains.
"""

import copy
import os
import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("rtp_llm/ops/native")
TARGETS = {"generic": []}
if platform.machine().lower() == "aarch64":  # an Apple compiler has integer dot products in generic
    TARGETS["neon_dotprod"] = ["-march=armv8.2-a+dotprod"]
    TARGETS["neon_bf16"] = ["-march=armv8.2-a+dotprod+bf16"]
if platform.machine().lower() in ("x86_64", "amd64"):
    TARGETS["avx2"] = ["-mavx2", "-mfma"]
    TARGETS["avx2_vnni"] = [*TARGETS["avx2"], "-mavxvnni"]
    TARGETS["avx512"] = [
        "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mprefer-vector-width=512",
    ]  # fmt: skip
    TARGETS["avx512_vnni"] = [*TARGETS["avx512"], "-mavx512vnni"]
    TARGETS["avx512_bf16"] = [*TARGETS["avx512_vnni"], "-mavx512bf16"]
    TARGETS["amx"] = [*TARGETS["avx512_vnni"], "-mamx-tile", "-mamx-bf16", "-mamx-int8"]
# NOTE: newer GCCs (16 was seen to) take multiply-adds apart where they follow one another, in tiles of some heights and
# not in others, so that a row's bits would depend on its neighbours; the parameter forbids it. clang (14 and 22) has
# none, needs none, and says that it was not used.
FLAGS = [
    "-std=c++17", "-O3", "-g0", "-pthread", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno",
    "-fno-trapping-math", "--param=avoid-fma-max-bits=0",
]  # fmt: skip


class BuildKernels(build_ext):
    """Plain shared libraries, `_native_<instruction set>.so`: no Python headers, no Python symbols, no ABI tag."""

    def get_ext_filename(self, fullname: str) -> str:
        return f"{fullname.replace('.', '/')}.so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extension(self, ext: Extension) -> None:
        # NOTE: each set has its own objects; with a shared folder a parallel build would link another set's.
        alone = copy.copy(self)
        alone.build_temp = f"{self.build_temp}/{ext.name}"
        super(BuildKernels, alone).build_extension(ext)


setup(
    cmdclass={"build_ext": BuildKernels},
    ext_modules=[
        Extension(
            f"rtp_llm.ops._native_{name}",
            sources=[str(SOURCES / "library.cpp")],
            depends=[str(path) for path in sorted(SOURCES.glob("*.h"))],
            extra_compile_args=FLAGS + flags,
            extra_link_args=["-pthread"],
            language="c++",
            optional=True,
        )
        for name, flags in TARGETS.items()
    ],
)
