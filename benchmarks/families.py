"""Real sizes with random weights: `python -m benchmarks.families qwen3-0.6b …`, one process for each measurement.

Loading: seconds and peak memory beside the checkpoint's size. Computing: tokens/s of one sequence and its share of the
cores' peak, next to transformers on torch in fp32. Parity: the largest difference of a hidden state from transformers'.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.checkpoints import MODELS

_QWEN = {"tie_word_embeddings": True, "vocab_size": 151936, "max_position_embeddings": 32768}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {  # name -> transformers' stem, dtype on disk, configuration
    "bge-base": ("Bert", "float32", {}),
    "bge-m3": (
        "XLMRoberta",
        "float32",
        {"vocab_size": 250002, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
         "intermediate_size": 4096, "max_position_embeddings": 8194, "type_vocab_size": 1},
    ),
    "qwen3-0.6b": (
        "Qwen3",
        "bfloat16",
        {**_QWEN, "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
         "head_dim": 128, "intermediate_size": 3072},
    ),
    "gte-qwen2-1.5b": (
        "Qwen2",
        "bfloat16",
        {**_QWEN, "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
         "intermediate_size": 8960, "is_causal": False},
    ),
}  # fmt: skip
_PARITY_LENGTHS = (1, 7, 150)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description=__doc__)
    parser.add_argument("families", nargs="+", choices=FAMILIES)
    parser.add_argument("--length", type=int, default=512, help="tokens of the timed sequence")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", default="", help="file for the result")
    parser.add_argument("--stage", choices=_STAGES, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.stage:
        print(json.dumps(_STAGES[arguments.stage](arguments.families[0], arguments.length, arguments.threads)))
        return
    facts = report.machine()
    print(report.describe(facts))
    rows, results = [], {}
    for family in arguments.families:
        result = results[family] = measure(family, arguments)
        rows.append([family, *(f"{result[key]:.3g}" for key in _COLUMNS)])
    print(report.table(["model", *_COLUMNS.values()], rows))
    report.finish({"benchmark": "families", "machine": facts, "threads": arguments.threads} | results, arguments.json)


_COLUMNS = {
    "checkpoint_mb": "MB", "load_seconds": "load s", "peak_to_checkpoint": "peak / size", "tokens_per_second": "tok/s",
    "share_of_peak": "of peak", "theirs_tokens_per_second": "torch tok/s", "max_difference": "max diff",
}  # fmt: skip


def measure(family: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All stages of one family, each in a process of its own."""
    result: dict[str, Any] = {}
    for stage in _STAGES:
        command = [sys.executable, "-m", "benchmarks.families", family, "--stage", stage]
        command += ["--length", str(arguments.length), "--threads", str(arguments.threads)]
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        result |= json.loads(run.stdout.splitlines()[-1])
    return result


def _folder(family: str) -> Path:
    return MODELS / f"random-{family}"


def _ids(length: int) -> "np.ndarray[Any, np.dtype[np.int64]]":
    return np.random.default_rng(length).integers(5, 20000, length)


def make_checkpoint(family: str, *_: int) -> dict[str, Any]:
    """Random weights, once."""
    if not (_folder(family) / "model.safetensors").exists():
        import torch
        import transformers

        stem, dtype, shape = FAMILIES[family]
        torch.manual_seed(0)
        torch.set_default_dtype(getattr(torch, dtype))
        model = getattr(transformers, f"{stem}Model")(getattr(transformers, f"{stem}Config")(**shape))
        model.save_pretrained(_folder(family))
    return {}


def _theirs(family: str, length: int, threads: int) -> dict[str, Any]:
    import torch
    import transformers

    torch.set_num_threads(threads)
    model = transformers.AutoModel.from_pretrained(_folder(family), dtype=torch.float32).eval()
    options = {"use_cache": False} if family.count("qwen") else {}

    def compute(length: int) -> Any:
        with torch.no_grad():
            return model(input_ids=torch.from_numpy(_ids(length))[None], **options).last_hidden_state[0].numpy()

    np.savez(_folder(family) / "reference.npz", **{str(n): compute(n) for n in _PARITY_LENGTHS})
    return {"theirs_tokens_per_second": length / best_seconds(lambda: compute(length))}


def _ours(family: str, length: int, threads: int) -> dict[str, Any]:
    from rtp_llm.checkpoint import open_tensors, read_json
    from rtp_llm.core import Item, pack
    from rtp_llm.models import find_model_type, load_model
    from rtp_llm.ops.native_ops import NativeOps, measure_peak

    ops, folder = NativeOps(num_threads=threads), _folder(family)
    hf, before, started = read_json(folder, "config.json"), _megabytes("VmRSS:"), time.perf_counter()
    source = open_tensors(folder)
    model = load_model(find_model_type("auto", hf), hf, source, ops)
    source.close()
    seconds, peak = time.perf_counter() - started, _megabytes("VmHWM:") - before
    size = (folder / "model.safetensors").stat().st_size / 2**20

    def compute(lengths: Sequence[int]) -> Any:
        batch = model.prepare(pack([Item(_ids(n).astype(np.int32), i) for i, n in enumerate(lengths)]))
        return np.split(ops.to_numpy(model(ops, ops.upload(batch))), batch.cu_seqlens[1:-1])

    reference = np.load(folder / "reference.npz")
    differences = [
        np.abs(ours - reference[str(n)]).max()
        for n, ours in zip(_PARITY_LENGTHS, compute(_PARITY_LENGTHS), strict=True)
    ]
    speed = length / best_seconds(lambda: compute([length]))
    tables = sum(np.prod(info.shape) for name, info in source.tensors.items() if "embed" in name)
    weights = sum(info.num_elements for info in source.tensors.values()) - float(tables)
    return {
        "checkpoint_mb": size,
        "load_seconds": seconds,
        "peak_to_checkpoint": peak / size,
        "max_difference": float(max(differences)),
        "tokens_per_second": speed,
        "share_of_peak": 2e-9 * weights * speed / measure_peak(threads, 0.5),
    }


def best_seconds(compute: Callable[[], Any]) -> float:
    """The quickest of three after one that warms up."""
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        compute()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def _megabytes(key: str) -> float:
    return int(Path("/proc/self/status").read_text().split(key)[1].split()[0]) / 1024


_STAGES: dict[str, Callable[[str, int, int], dict[str, Any]]] = {
    "make": make_checkpoint,
    "theirs": _theirs,
    "ours": _ours,
}

if __name__ == "__main__":
    main()
