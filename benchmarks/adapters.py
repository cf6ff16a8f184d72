"""What it costs that each request chooses its adapter: `python -m benchmarks.adapters`, random weights, no files.

A few layers of the shapes of jina-embeddings-v3 and v5, with adapters on all their matrices and tables: batches of no
adapter, of one, of two by turns and of all, and of the plain model, which is what one with an adapter added to its
weights costs. All are told as many times the first, whose weights lie where those of the others do. Processor time of
one thread, in turns, medians.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.weight_only import RandomTensors
from rtp_llm.checkpoint import LowRank, bind
from rtp_llm.core import NO_ADAPTER, Item, pack
from rtp_llm.models import Model, decoder, rotary_bert
from rtp_llm.models.adapted import adapt
from rtp_llm.models.jina_v3 import JinaV3
from rtp_llm.models.qwen import Qwen3
from rtp_llm.ops import Quantization
from rtp_llm.ops.native_ops import NativeOps

_VOCAB = 1000
_SHAPES: dict[str, dict[str, Any]] = {
    "v3": {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16},
    "v5-small": {
        "hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128,
    },
}  # fmt: skip
_RANKS, _ADAPTERS = {"v3": 4, "v5-small": 32}, {"v3": 5, "v5-small": 4}
_KINDS: tuple[Quantization, ...] = ("none", "int8", "bf16_products")


class RandomAdapters(RandomTensors):
    """With adapters on every matrix and table."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], rank: int) -> None:
        super().__init__(shapes)
        self._rank = rank

    def low_rank(self, name: str, adapter: int) -> LowRank | None:
        """Numbers of the weight's size by their root."""
        rng = np.random.default_rng([adapter, *name.encode()])
        rows, columns = self.tensors[name].shape
        left, right = (
            rng.standard_normal(shape, dtype=np.float32) for shape in ((rows, self._rank), (self._rank, columns))
        )
        return LowRank(left / np.float32(self._rank), right / np.float32(columns**0.5))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adapters", description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=[*_SHAPES], choices=_SHAPES)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--lengths", type=int, nargs="+", default=[10, 128, 512], help="tokens of a sequence")
    parser.add_argument("--tokens", type=int, default=1024, help="of a batch, where a sequence is not longer")
    parser.add_argument("--kinds", nargs="+", default=["none"], choices=_KINDS, help="of the weights")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", default="", help="file for the result")
    arguments = parser.parse_args(argv)
    facts = report.machine()
    print(report.describe(facts))
    results = {
        f"{shape} {kind} {length}": measure(shape, kind, length, arguments)
        for shape in arguments.shapes
        for kind in arguments.kinds
        for length in arguments.lengths
    }
    columns = [*next(iter(results.values()))]
    rows = [[name, *(f"{result[column]:.3f}" for column in columns)] for name, result in results.items()]
    print(report.table(["shape, weights, tokens", *columns], rows))
    report.finish({"benchmark": "adapters", "machine": facts, **vars(arguments), "results": results}, arguments.json)


def measure(shape: str, kind: Quantization, length: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Milliseconds a batch without an adapter, and of the plain model and each choice as many times that."""
    ops, count = NativeOps(), _ADAPTERS[shape]
    models = {
        is_adapted: make(shape, arguments.layers, ops, kind, is_adapted=is_adapted) for is_adapted in (False, True)
    }
    choices = {"none": [NO_ADAPTER], "one": [0], "two": [0, 1], "all": [*range(count)]}
    batches = {name: items(length, arguments.tokens, chosen) for name, chosen in choices.items()}
    taken: dict[str, list[float]] = {name: [] for name in ("plain", *batches)}
    for turn in range(arguments.rounds + 1):
        names = [*taken]
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds = compute(models[name != "plain"], ops, batches.get(name, batches["none"]))
            if turn:
                taken[name].append(seconds)
    none = taken.pop("none")
    ratios = {name: float(np.median(np.divide(own, none))) for name, own in taken.items()}
    return {"none ms": 1e3 * float(np.median(none)), **ratios}


def make(shape: str, num_layers: int, ops: NativeOps, kind: Quantization, *, is_adapted: bool) -> Model:
    """With adapters or without."""
    hf = {**_SHAPES[shape], "num_hidden_layers": num_layers, "vocab_size": _VOCAB, "max_position_embeddings": 8192}
    made = ops.fork(kind)
    if shape == "v3":
        read = JinaV3.read_config(hf)
        needed = rotary_bert.parameters(read, set())
    else:
        config = Qwen3.read_config({**hf, "is_causal": True})
        needed = decoder.parameters(config)
    source = RandomAdapters(_tensors(needed), _RANKS[shape])
    weights = bind(source, needed)
    model: Any = JinaV3(read, weights, made) if shape == "v3" else Qwen3(config, weights, made)
    if is_adapted:
        adapt(model, source, [str(number) for number in range(_ADAPTERS[shape])], made)
    return model  # type: ignore[no-any-return]


def _tensors(needed: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of a parameter of several tensors, as many rows of each; of grouped heads, not what they are, but as many."""
    shapes = {}
    for parameter in needed.values():
        rows, *rest = parameter.shape
        for source in parameter.sources:
            shapes[source] = (rows // len(parameter.sources), *rest)
        shapes[parameter.sources[0]] = (rows - rows // len(parameter.sources) * (len(parameter.sources) - 1), *rest)
    return shapes


def items(length: int, num_tokens: int, choices: Sequence[int]) -> list[Item]:
    """Sequences of one length, whose adapters take turns."""
    rng = np.random.default_rng(0)
    return [
        Item(rng.integers(0, _VOCAB, length, dtype=np.int32), place, adapter=choices[place % len(choices)])
        for place in range(max(num_tokens // length, 1))
    ]


def compute(model: Model, ops: NativeOps, batch_items: list[Item]) -> float:
    """Seconds of this thread."""
    started = time.thread_time()
    batch = model.prepare(pack(batch_items))
    ops.to_numpy(model(ops, ops.upload(batch)))
    return time.thread_time() - started


if __name__ == "__main__":
    main()
