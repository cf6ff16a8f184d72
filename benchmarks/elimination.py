"""What is not computed: `python -m benchmarks.elimination bge-base qwen3-0.6b`, random weights as benchmarks.families.

One batch of documents behind the same prefix, as a reranker's: all last hidden states; the wanted row of each alone;
and, where the model is causal, the prefix computed once. All give the same bits, or this fails.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.checkpoints import MODELS
from benchmarks.families import FAMILIES, best_seconds, make_checkpoint
from rtp_llm.checkpoint import open_tensors, read_json
from rtp_llm.core import Item, Prefixes, Reads, pack
from rtp_llm.models import Model, find_model_type, load_model
from rtp_llm.ops.native_ops import NativeOps


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.elimination", description=__doc__)
    parser.add_argument("families", nargs="+", choices=FAMILIES)
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--prefix", type=int, default=90, help="tokens that all documents have before them")
    parser.add_argument("--length", type=int, default=60, help="tokens of a document")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", default="", help="file for the result")
    arguments = parser.parse_args(argv)
    facts = report.machine()
    print(report.describe(facts))
    results = {family: measure(family, arguments) for family in arguments.families}
    columns = ("all rows s", "wanted rows s", "shared prefix s")
    rows = [
        [family, *(f"{result.get(name, float('nan')):.3f}" for name in columns)] for family, result in results.items()
    ]
    print(report.table(["model", *columns], rows))
    report.finish({"benchmark": "elimination", "machine": facts, **vars(arguments)} | results, arguments.json)


def measure(family: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of each way."""
    make_checkpoint(family)
    ops, model = load(family, arguments.threads)
    random = np.random.default_rng(0)
    prefix = random.integers(5, 20000, arguments.prefix, dtype=np.int32)
    documents = [random.integers(5, 20000, arguments.length, dtype=np.int32) for _ in range(arguments.documents)]
    items = [Item(np.concatenate([prefix, ids]), i, prefix=prefix.tobytes()) for i, ids in enumerate(documents)]
    reads: Reads = "last" if model.causal else "first"
    ways: dict[str, tuple[Reads, bool]] = {"all rows s": ("all", False), "wanted rows s": (reads, False)}
    if model.shares_prefixes:
        ways["shared prefix s"] = (reads, True)

    def compute(reads: Reads, share: bool) -> Any:
        batch = model.prepare(pack(items, reads, Prefixes.find(items, {}) if share else None))
        return ops.to_numpy(model(ops, ops.upload(batch)))

    every = compute("all", False).reshape(len(items), -1, model.hidden_size)
    expected = every[:, -1 if reads == "last" else 0]
    seconds = {}
    for name, way in ways.items():
        assert way[0] == "all" or np.array_equal(compute(*way), expected), f"{family}: {name} has other bits"
        seconds[name] = best_seconds(partial(compute, *way))
    return seconds


def load(family: str, threads: int) -> tuple[NativeOps, Model]:
    """The random checkpoint on the compiled kernels."""
    folder, ops = MODELS / f"random-{family}", NativeOps(num_threads=threads)
    hf, source = read_json(folder, "config.json"), open_tensors(folder)
    model = load_model(find_model_type("auto", hf), hf, source, ops)
    source.close()
    return ops, model


if __name__ == "__main__":
    main()
