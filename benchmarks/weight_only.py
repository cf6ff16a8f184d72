"""Weights in fewer bits on large decoders: `python -m benchmarks.weight_only`.

Some layers of the shapes of Qwen3-Embedding-4B and 8B with random weights of bf16, as those checkpoints have them, in
each form that a CPU can keep them in: memory, tokens a second alone and together, and the least cosine of a token's
state to fp32. A layer is like any other: the whole model's figures are those of a layer times their number.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.peers import FloatArray
from benchmarks.peers.process import pin
from rtp_llm.checkpoint import TensorInfo
from rtp_llm.core import Item, pack
from rtp_llm.models.decoder import Decoder, parameters
from rtp_llm.models.decoder_config import DecoderConfig
from rtp_llm.models.qwen import Qwen3
from rtp_llm.ops import Quantization
from rtp_llm.ops.native_library import FEWER_PARTS
from rtp_llm.ops.native_ops import NativeOps
from rtp_llm.ops.weight_only import to_bf16

_KINDS: tuple[Quantization, ...] = ("none", "int8_weights", "int4_weights", "int8")
_VOCAB = 1000
_SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-4b": {
        "hidden_size": 2560, "intermediate_size": 9728, "num_attention_heads": 32, "num_key_value_heads": 8,
        "num_hidden_layers": 36,
    },
    "qwen3-8b": {
        "hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32, "num_key_value_heads": 8,
        "num_hidden_layers": 36,
    },
}  # fmt: skip


class RandomTensors:
    """A checkpoint that nobody stores: each tensor is drawn when it is read, the same every time."""

    path = Path("random")

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.tensors = {name: TensorInfo("fp32", shape) for name, shape in shapes.items()}

    def read(self, name: str) -> FloatArray:
        """Norms of 1; all else as trained layers are spread, a few rows wider than the others."""
        shape = self.tensors[name].shape
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        rng = np.random.default_rng(list(name.encode()))
        spread = np.exp(0.3 * rng.standard_normal((shape[0], 1), dtype=np.float32))
        return to_bf16(rng.standard_normal(shape, dtype=np.float32) * spread / np.float32(np.sqrt(shape[1])))

    def read_part(self, name: str, axis: int, start: int, stop: int) -> FloatArray:
        return self.read(name).take(range(start, stop), axis)

    def read_int8(self, name: str) -> Any:
        raise AssertionError("no tensor here is int8")

    def file(self, name: str) -> Path:
        return self.path

    def close(self) -> None:
        """Nothing is kept."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weight_only", description=__doc__)
    parser.add_argument("shapes", nargs="*", default=list(_SHAPES), help=f"of {', '.join(_SHAPES)}")
    parser.add_argument("--layers", type=int, default=2, help="that are made of each")
    parser.add_argument("--tokens", default="1,16,512", help="of a sequence, by commas")
    parser.add_argument("--instruction-set", default="auto")
    parser.add_argument("--json", default="", help="also write the JSON line to this file")
    arguments = parser.parse_args(argv)
    cores, lengths = pin(0), [int(length) for length in arguments.tokens.split(",")]
    facts = report.machine()
    print(f"{report.describe(facts)}\n{arguments.layers} layers, {len(cores)} threads")
    results: dict[str, Any] = {}
    for shape in arguments.shapes:
        results[shape] = _measure_shape(shape, arguments.layers, lengths, len(cores), arguments.instruction_set)
        print(f"\n{shape}, per layer; whole: {_SHAPES[shape]['num_hidden_layers']} layers\n{_table(results[shape])}")
    about = {"benchmark": "weight_only", "machine": facts, "layers": arguments.layers, "threads": len(cores)}
    report.finish({**about, "shapes": results}, arguments.json)


def _measure_shape(shape: str, layers: int, lengths: list[int], threads: int, instruction_set: str) -> dict[str, Any]:
    hf = {**_SHAPES[shape], "num_hidden_layers": layers, "vocab_size": _VOCAB, "head_dim": 128}
    config = Qwen3.read_config(hf)
    source = RandomTensors(_tensor_shapes(config))
    measured: dict[str, Any] = {}
    exact: FloatArray | None = None
    base = NativeOps(num_threads=threads, instruction_set=instruction_set)
    for kind in (*_KINDS, *FEWER_PARTS.get(base.instruction_set, ())):
        ops = base.fork(kind)
        started = time.perf_counter()
        model = Qwen3.load(hf, source, ops)
        loading = time.perf_counter() - started
        state = _last_states(model, ops, 64)
        exact = state if exact is None else exact
        cosines = (state * exact).sum(1) / np.linalg.norm(state, axis=1) / np.linalg.norm(exact, axis=1)
        weights = [getattr(layer, name) for layer in model.layers for name in ("qkv", "out", "gate_up", "down")]
        measured[kind] = {
            "layer_mb": sum(weight.memory.nbytes for weight in weights) / layers / 1e6,
            "load_seconds": loading / layers,
            "layer_tokens_per_second": {str(n): layers * n / _seconds(model, ops, n) for n in lengths},
            "cosine_least": float(cosines.min()),
        }
    return measured


def _tensor_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Of the checkpoint's own tensors: a fused parameter's parts."""
    queries, keys = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    rows = {"q_proj": queries, "k_proj": keys, "v_proj": keys, "gate_proj": config.intermediate_size}
    rows["up_proj"] = config.intermediate_size
    shapes = {}
    for parameter in parameters(config).values():
        for name in parameter.sources:
            part = name.rpartition(".weight")[0].rpartition(".")[2]
            shapes[name] = (rows.get(part, parameter.shape[0]), *parameter.shape[1:])
    return shapes


def _items(length: int) -> list[Item]:
    ids = np.random.default_rng(length).integers(0, _VOCAB, length, dtype=np.int32)
    return [Item(input_ids=ids, index=0)]


def _last_states(model: Decoder, ops: NativeOps, length: int) -> FloatArray:
    batch = ops.upload(model.prepare(pack(_items(length))))
    return ops.to_numpy(model(ops, batch))


def _seconds(model: Decoder, ops: NativeOps, length: int) -> float:
    """The least of some runs, about a second of them."""
    _last_states(model, ops, length)
    found: list[float] = []
    while sum(found) < 1.0 and len(found) < 30:
        started = time.perf_counter()
        _last_states(model, ops, length)
        found.append(time.perf_counter() - started)
    return min(found)


def _table(measured: dict[str, Any]) -> str:
    rows = []
    for kind, found in measured.items():
        speeds = found["layer_tokens_per_second"]
        name = "bf16 (exact)" if kind == "none" else kind
        cells = [f"{found['layer_mb']:.1f}", f"{found['load_seconds']:.2f}", *(f"{v:.0f}" for v in speeds.values())]
        rows.append([name, *cells, f"{found['cosine_least']:.5f}"])
    lengths = next(iter(measured.values()))["layer_tokens_per_second"]
    headers = ("weights", "MB", "load s", *(f"tok/s at {n}" for n in lengths), "least cosine")
    return report.table(headers, rows)


if __name__ == "__main__":
    main()
