"""Our kernels against torch (MKL), shape by shape, in one run: python -m benchmarks.kernels [--seconds 0.3]

GFLOP/s, the best of many interleaved calls; `% of peak` is ours on one core against the multiply-adds that the same
core does between registers; `% of tiles`, where there is AMX, against a sixth of its bf16 tile products, six of which
make an fp32 product. Ends with one JSON line.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from rtp_llm.core import Batch, FloatArray, Item, pack
from rtp_llm.ops import Norm
from rtp_llm.ops.native_library import measure_peak, measure_tile_peak
from rtp_llm.ops.native_ops import NativeOps

SHAPES = [
    (10, 384, 1536), (64, 384, 1536), (512, 384, 1536), (1024, 1536, 384), (512, 384, 1152), (512, 768, 3072),
    (512, 3072, 768), (512, 1024, 4096), (512, 4096, 1024),
]  # fmt: skip
LAYERS, HIDDEN, HEADS, INTERMEDIATE = 6, 384, 12, 1536
LENGTHS = {"10 tokens": [10], "5 x 100 tokens": [100] * 5, "10 x 100 tokens": [100] * 10, "2 x 512 tokens": [512] * 2}


@dataclass(frozen=True)
class Row:
    """GFLOP/s of one piece of work."""

    name: str
    ours_1: float
    ours_2: float
    torch_1: float
    torch_2: float


def normal(*shape: int) -> FloatArray:
    return np.random.default_rng(shape).standard_normal(shape, dtype=np.float32)


def best_seconds(functions: Sequence[Callable[[], object]], seconds: float) -> list[float]:
    """The shortest call of each function; they take turns for `seconds` each."""
    best = [float("inf")] * len(functions)
    end = time.perf_counter() + seconds * len(functions)
    while time.perf_counter() < end:
        for i, function in enumerate(functions):
            for _ in range(3):
                start = time.perf_counter()
                function()
                best[i] = min(best[i], time.perf_counter() - start)
    return best


def on_threads(num_threads: int, ops: NativeOps, function: Callable[[], object]) -> Callable[[], object]:
    """The call on so many cores, ours and torch's alike."""

    def call() -> object:
        ops.num_threads = num_threads
        if torch.get_num_threads() != num_threads:
            torch.set_num_threads(num_threads)
        return function()

    return call


def measure(name: str, flops: float, ops: NativeOps, ours: Callable[[], object], theirs: Callable[[], object],
            seconds: float) -> Row:  # fmt: skip
    calls = [on_threads(threads, ops, function) for function in (ours, theirs) for threads in (1, 2)]
    for call in calls:
        call()
    return Row(name, *(round(flops / best * 1e-9, 1) for best in best_seconds(calls, seconds)))


def linear_rows(seconds: float, activation: str | None) -> list[Row]:
    rows = []
    for m, k, n in SHAPES:
        ops, arrays = NativeOps(), (normal(m, k), normal(n, k), normal(n))
        x, weight, bias = ops.vector(arrays[0]), ops.matrix(arrays[1]), ops.vector(arrays[2])
        tensors = [torch.from_numpy(array) for array in arrays]

        def ours(ops=ops, x=x, weight=weight, bias=bias) -> object:  # type: ignore[no-untyped-def]
            y = ops.linear(x, weight, bias, activation)
            ops.run()
            return y

        def theirs(tensors=tensors) -> object:  # type: ignore[no-untyped-def]
            y = F.linear(*tensors)
            return y if activation is None else F.gelu(y)

        name = f"{m} x {k} x {n}" + (f" {activation}" if activation else "")
        rows.append(measure(name, 2 * m * k * n, ops, ours, theirs, seconds))
    return rows


class Encoder:
    """A BERT of MiniLM's shape with random weights, in our ops and in torch's."""

    def __init__(self) -> None:
        sizes = [(3 * HIDDEN, HIDDEN), (HIDDEN, HIDDEN), (INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)]
        self.arrays = [(normal(n, k) / np.float32(k**0.5), normal(n)) for n, k in sizes]
        self.table, self.gain = normal(1000, HIDDEN), normal(HIDDEN)

    def bind(self, ops: NativeOps) -> Callable[[Batch], FloatArray]:
        layers = [[(ops.matrix(w), ops.vector(bias)) for w, bias in self.arrays] for _ in range(LAYERS)]
        table, norm = ops.table(self.table), Norm(ops.vector(self.gain), ops.vector(self.gain), 1e-12)

        def run(batch: Batch) -> FloatArray:
            batch = ops.upload(batch)
            x = ops.embed([(table, batch.input_ids)], norm)
            for qkv, out, up, down in layers:
                y = ops.attention(
                    ops.linear(x, *qkv),
                    batch,
                    num_heads=HEADS,
                    num_kv_heads=HEADS,
                    head_dim=HIDDEN // HEADS,
                    scale=0.18,
                )
                x = ops.norm(ops.linear(y, *out, residual=x), norm)
                x = ops.norm(ops.linear(ops.linear(x, *up, "gelu"), *down, residual=x), norm)
            return ops.to_numpy(ops.pool(x, batch, "mean"))

        return run

    def bind_torch(self) -> Callable[[Batch], torch.Tensor]:
        layers = [[tuple(map(torch.tensor, pair)) for pair in self.arrays] for _ in range(LAYERS)]
        table, gain = torch.from_numpy(self.table), torch.from_numpy(self.gain)

        def norm(x: torch.Tensor) -> torch.Tensor:
            return F.layer_norm(x, (HIDDEN,), gain, gain, 1e-12)

        def run(batch: Batch) -> torch.Tensor:
            x = norm(table[batch.input_ids].view(batch.num_seqs, -1, HIDDEN))
            for qkv, out, up, down in layers:
                q, k, v = F.linear(x, *qkv).view(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
                y = F.scaled_dot_product_attention(q, k, v, scale=0.18).transpose(1, 2).flatten(2)
                x = norm(F.linear(y, *out) + x)
                x = norm(F.linear(F.gelu(F.linear(x, *up)), *down) + x)
            return x.mean(1)

        return run


def encoder_rows(seconds: float) -> list[Row]:
    """Six layers, end to end; torch has sequences of one length, so it needs no padding."""
    encoder, rows = Encoder(), []
    ops = NativeOps()
    ours, theirs = encoder.bind(ops), encoder.bind_torch()
    for name, lengths in LENGTHS.items():
        batch = pack([Item(input_ids=np.arange(length, dtype=np.int32), index=0) for length in lengths])
        weights = sum(weight.size for weight, _ in encoder.arrays)
        flops = LAYERS * sum(2 * length * weights + 4 * length**2 * HIDDEN for length in lengths)
        calls = partial(ours, batch), partial(theirs, batch)
        rows.append(measure(f"encoder, {name}", flops, ops, *calls, seconds))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.3, help="for each of the four columns of a row")
    seconds = parser.parse_args().seconds
    peaks = [measure_peak(threads, 0.3) for threads in (1, 2)]
    tile_peaks = [measure_tile_peak(threads, 0.3) for threads in (1, 2)]
    instruction_set = NativeOps().instruction_set
    print(f"{instruction_set}; peak {peaks[0]:.0f} GFLOP/s on one core, {peaks[1]:.0f} on two; "
          f"tiles {tile_peaks[0]:.0f} and {tile_peaks[1]:.0f}")  # fmt: skip
    print(f"{'':32}{'ours x1':>9}{'ours x2':>9}{'torch x1':>9}{'torch x2':>9}{'% of peak':>11}{'% of tiles':>12}")
    with torch.inference_mode():
        rows = [*linear_rows(seconds, None), *linear_rows(seconds, "gelu"), *encoder_rows(seconds)]
    for row in rows:
        of_tiles = f"{600 * row.ours_1 / tile_peaks[0]:12.0f}" if tile_peaks[0] else ""
        print(f"{row.name:32}{row.ours_1:9.1f}{row.ours_2:9.1f}{row.torch_1:9.1f}{row.torch_2:9.1f}"
              f"{100 * row.ours_1 / peaks[0]:11.0f}{of_tiles}")  # fmt: skip
    about = {"instruction_set": instruction_set, "peak": peaks, "tile_peak": tile_peaks}
    print(json.dumps(about | {"rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    main()
