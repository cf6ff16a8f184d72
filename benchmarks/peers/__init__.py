"""The engines that are compared: each turns texts into normalised, pooled vectors, tokenising included.

A module of this package has `prepare(setup)`, which converts the checkpoint where the engine needs it (once, in a
process that then ends, so that it weighs on nobody's memory), and `load(setup, **settings) -> Embed`. Engines are
imported only there. One peer may stand in the table with several settings, since the best for many texts is not the
best for one: "wide" computes one batch on all threads, "streams" as many batches at once as there are threads.
"""

import importlib
import importlib.util
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchmarks.checkpoints import read_pooling

FloatArray: TypeAlias = NDArray[np.float32]
Embed: TypeAlias = Callable[[list[str]], FloatArray]  # texts -> [n, dim], in the texts' order


@dataclass(frozen=True)
class Setup:
    """What is equal for all engines of a run; `models` is the folder for converted checkpoints."""

    checkpoint: Path
    models: Path
    max_seq_len: int = 512
    num_threads: int = 2

    def workers(self, layout: str) -> int:
        """Batches at once: 1 when `layout` is "wide", one a thread when it is "streams"."""
        return self.num_threads if layout == "streams" else 1

    @property
    def pooling(self) -> str:
        """ "mean" or "cls": what the checkpoint makes a vector of."""
        return read_pooling(self.checkpoint)

    @property
    def label(self) -> str:
        """The checkpoint's folder and the one it lies in."""
        return f"{self.checkpoint.parent.name}/{self.checkpoint.name}"

    def converted(self, form: str) -> Path:
        """Where this checkpoint is kept in another engine's form."""
        key = zlib.crc32(str(self.checkpoint.resolve()).encode())
        return self.models / f"{self.checkpoint.name}-{key:08x}-{form}"


@dataclass(frozen=True)
class Engine:
    """One row of the table: a module, the packages it needs, what it computes in, and the settings it is given.

    precision       "fp32" or less; only equals are compared with each other
    distributions   what somebody who serves with it installs, whose disk space the table shows
    """

    module: str
    packages: tuple[str, ...]
    distributions: tuple[str, ...]
    settings: Mapping[str, int | str] = field(default_factory=lambda: MappingProxyType({}))
    precision: str = "fp32"

    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]

    def prepare(self, setup: Setup) -> None:
        """Convert the checkpoint, unless that has been done."""
        importlib.import_module(self.module).prepare(setup)

    def load(self, setup: Setup) -> Embed:
        """The engine's text-to-vectors function, on `setup.num_threads` threads in all."""
        embed: Embed = importlib.import_module(self.module).load(setup, **self.settings)
        return embed


OURS = "rtp_llm"
_EXPORT = ("tokenizers", "onnx", "transformers", "torch")


def _ours(precision: str = "fp32", /, **settings: str) -> Engine:
    return Engine("benchmarks.peers.ours", (), ("rtp-llm",), settings, precision)


def _torch(**settings: int) -> Engine:
    packages = ("sentence_transformers", "torch")
    return Engine("benchmarks.peers.torch_peer", packages, ("sentence-transformers", "torch"), settings)


def _onnx(precision: str = "fp32", /, **settings: str) -> Engine:
    packages = ("onnxruntime", *_EXPORT)
    return Engine("benchmarks.peers.onnx_peer", packages, ("onnxruntime", "tokenizers"), settings, precision)


def _openvino(precision: str = "fp32", /, **settings: str) -> Engine:
    packages = ("openvino", "onnxruntime", *_EXPORT, *(("nncf",) if precision == "int8" else ()))
    return Engine("benchmarks.peers.openvino_peer", packages, ("openvino", "tokenizers"), settings, precision)


def _ctranslate2(precision: str = "fp32", /, **settings: str) -> Engine:
    packages = ("ctranslate2", "tokenizers", "transformers", "torch")
    return Engine("benchmarks.peers.ctranslate2_peer", packages, ("ctranslate2", "tokenizers"), settings, precision)


ENGINES: dict[str, Engine] = {
    OURS: _ours(),
    f"{OURS} int8": _ours("int8", quantization="int8"),
    # In fp32 where a CPU has nothing quicker: docs/numerics.md. OpenVINO's int8 has bf16 beside it by default.
    f"{OURS} int8 bf16": _ours("int8", quantization="int8", act_type="bf16"),
    f"{OURS} fp16": _ours("fp16", act_type="fp16"),
    f"{OURS} bf16": _ours("bf16", act_type="bf16"),
    "sentence-transformers bs32": _torch(batch_size=32),
    "sentence-transformers bs8": _torch(batch_size=8),
    "onnxruntime wide": _onnx(layout="wide"),
    "onnxruntime streams": _onnx(layout="streams"),
    "onnxruntime fused wide": _onnx(layout="wide", graph="fused"),
    "onnxruntime fused streams": _onnx(layout="streams", graph="fused"),
    "onnxruntime int8 wide": _onnx("int8", layout="wide", graph="int8"),
    "onnxruntime int8 streams": _onnx("int8", layout="streams", graph="int8"),
    "openvino wide": _openvino(layout="wide"),
    "openvino streams": _openvino(layout="streams"),
    # What OpenVINO does unless it is told otherwise: on a CPU with AMX it computes in bf16.
    "openvino default wide": _openvino("bf16", layout="wide", precision="default"),
    "openvino default streams": _openvino("bf16", layout="streams", precision="default"),
    "openvino int8 wide": _openvino("int8", layout="wide", precision="int8"),
    "openvino int8 streams": _openvino("int8", layout="streams", precision="int8"),
    "ctranslate2 wide": _ctranslate2(layout="wide"),
    "ctranslate2 streams": _ctranslate2(layout="streams"),
    "ctranslate2 int8 wide": _ctranslate2("int8", layout="wide", compute_type="int8"),
    "ctranslate2 int8 streams": _ctranslate2("int8", layout="streams", compute_type="int8"),
}


def select(patterns: str) -> dict[str, Engine]:
    """Engines whose name contains one of the comma-separated words; empty: all. ValueError lists what exists."""
    wanted = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]
    for pattern in wanted:
        if not any(pattern in name for name in ENGINES):
            raise ValueError(f"--engines: no engine is called {pattern!r}; there are: {', '.join(ENGINES)}")
    return {name: engine for name, engine in ENGINES.items() if not wanted or any(p in name for p in wanted)}
