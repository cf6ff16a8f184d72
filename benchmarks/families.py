"""Real sizes with random weights: `python -m benchmarks.families qwen3-0.6b …`, one process for each measurement.

Loading: seconds and peak memory beside the checkpoint's size. Computing: tokens/s of one sequence and its share of the
cores' peak, next to transformers on torch in fp32. Parity: the largest difference from transformers of a hidden state,
and of the answer made from it: the pooled vector of length one, or the score. With `--exact`, transformers runs in
float64 as well, and both differences from that are shown.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from benchmarks import report
from benchmarks.checkpoints import MODELS

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"


class Family(NamedTuple):
    """transformers' stem and class, dtype on disk, configuration; with `head` ForSequenceClassification, a reranker."""

    stem: str
    dtype: str
    shape: dict[str, Any]
    head: str = "Model"


_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_XLM_LARGE = {**_LARGE, "vocab_size": 250002, "max_position_embeddings": 8194, "type_vocab_size": 1}
_QWEN = {"tie_word_embeddings": True, "vocab_size": 151936, "max_position_embeddings": 32768}
FAMILIES = {
    "bge-base": Family("Bert", "float32", {}),
    "bge-large": Family("Bert", "float32", _LARGE),
    "bge-m3": Family("XLMRoberta", "float32", _XLM_LARGE),
    "bge-reranker-v2-m3": Family(
        "XLMRoberta", "float32", {**_XLM_LARGE, "num_labels": 1}, "ForSequenceClassification"
    ),
    "all-mpnet-base": Family("MPNet", "float32", {"max_position_embeddings": 514}),
    "gte-multilingual-base": Family("Gte", "float16", {}),
    "nomic-embed-text-v1.5": Family("NomicBert", "float32", {}),
    "gte-modernbert-base": Family("ModernBert", "float16", {}),
    "bart-large": Family("Bart", "float32", {}),
    "deberta-base": Family(
        "Deberta",
        "float32",
        {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["c2p", "p2c"]},
    ),
    "deberta-v3-base": Family(
        "DebertaV2",
        "float32",
        {"vocab_size": 128100, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
         "intermediate_size": 3072, "relative_attention": True, "position_biased_input": False,
         "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm"},
    ),
    "qwen3-0.6b": Family(
        "Qwen3",
        "bfloat16",
        {**_QWEN, "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
         "head_dim": 128, "intermediate_size": 3072},
    ),
    "gte-qwen2-1.5b": Family(
        "Qwen2",
        "bfloat16",
        {**_QWEN, "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
         "intermediate_size": 8960, "is_causal": False},
    ),
    "embeddinggemma-300m": Family(
        "Gemma3Text",
        "float32",
        {"vocab_size": 262144, "hidden_size": 768, "num_hidden_layers": 24, "num_attention_heads": 3,
         "num_key_value_heads": 1, "head_dim": 256, "intermediate_size": 1152, "max_position_embeddings": 2048,
         "sliding_window": 512, "use_bidirectional_attention": True},
    ),
}  # fmt: skip
_PARITY_LENGTHS = (1, 7, 150)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description=__doc__)
    parser.add_argument("families", nargs="+", choices=FAMILIES)
    parser.add_argument("--length", type=int, default=512, help="tokens of the timed sequence")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--exact", action="store_true", help="compare both with float64, which takes 8 bytes a weight")
    parser.add_argument("--bf16", action="store_true", help="also layers in bf16 on torch, ours and transformers'")
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
        rows.append([family, *(f"{result[key]:.3g}" for key in result)])
    print(report.table(["model", *(_COLUMNS[key] for key in result)], rows))
    report.finish({"benchmark": "families", "machine": facts, "threads": arguments.threads} | results, arguments.json)


_COLUMNS = {
    "checkpoint_mb": "MB", "load_seconds": "load s", "peak_to_checkpoint": "peak / size", "tokens_per_second": "tok/s",
    "share_of_peak": "of peak", "theirs_tokens_per_second": "torch tok/s", "max_difference": "max diff",
    "answer_difference": "of answers", "our_error": "ours to fp64", "their_error": "torch to fp64",
    "our_answer_error": "our answers", "their_answer_error": "torch's answers", "our_bf16_error": "ours in bf16",
    "their_bf16_error": "torch in bf16", "our_bf16_answer_error": "our bf16 answers",
    "their_bf16_answer_error": "torch's bf16 answers",
}  # fmt: skip


def measure(family: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All stages of one family, each in a process of its own."""
    result: dict[str, Any] = {}
    for stage in _STAGES:
        if (stage == "exact" and not arguments.exact) or (stage == "bf16" and not arguments.bf16):
            continue
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

        stem, dtype, shape, head = FAMILIES[family]
        torch.manual_seed(0)
        torch.set_default_dtype(getattr(torch, dtype))
        model = getattr(transformers, stem + head)(getattr(transformers, f"{stem}Config")(**shape))
        model.save_pretrained(_folder(family))
    return {}


def _theirs(family: str, length: int, threads: int) -> dict[str, Any]:
    compute = _transformers(family, "float32", threads)
    _save_references(family, "reference.npz", compute)
    (_folder(family) / "exact.npz").unlink(missing_ok=True)
    return {"theirs_tokens_per_second": length / best_seconds(lambda: compute(length))}


def _exact(family: str, length: int, threads: int) -> dict[str, Any]:
    _save_references(family, "exact.npz", _transformers(family, "float64", threads))
    return {}


def _transformers(family: str, dtype: str, threads: int) -> Callable[[int], tuple[Array, Array]]:
    """transformers: length of a sequence -> its hidden states and its answer."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    load = transformers.AutoModelForSequenceClassification if _is_reranker(family) else transformers.AutoModel
    model = load.from_pretrained(_folder(family), dtype=getattr(torch, dtype)).eval()
    options = {"use_cache": False} if FAMILIES[family].stem.startswith(("Qwen", "Gemma")) else {}

    def compute(length: int) -> tuple[Array, Array]:
        with torch.no_grad():
            ids = torch.from_numpy(_ids(length))[None]
            if not _is_reranker(family):
                hidden = _to_numpy(model(input_ids=ids, **options).last_hidden_state[0])
                return hidden, _unit(hidden, FAMILIES[family].stem)
            output = model(input_ids=ids, output_hidden_states=True)
            return _to_numpy(output.hidden_states[-1][0]), _to_numpy(output.logits[0])

    return compute


def _is_reranker(family: str) -> bool:
    return FAMILIES[family].head != "Model"


def _to_numpy(x: Any) -> Array:
    return np.asarray((x.float() if x.element_size() < 4 else x).numpy())


def _unit(hidden: Array, stem: str) -> Array:
    """The first token of an encoder or the last of a Qwen, of length one."""
    row = hidden[-1 if stem.startswith("Qwen") else 0]
    return np.asarray(row / np.linalg.norm(row))


def _save_references(family: str, name: str, compute: Callable[[int], tuple[Array, Array]]) -> None:
    both = {length: compute(length) for length in _PARITY_LENGTHS}
    arrays: dict[str, Any] = {
        f"{part}{length}": both[length][i] for length in both for i, part in enumerate(("hidden", "answer"))
    }
    np.savez(_folder(family) / name, **arrays)


def _ours(family: str, length: int, threads: int) -> dict[str, Any]:
    from rtp_llm.checkpoint import open_tensors, read_json
    from rtp_llm.models import find_model_type, load_model
    from rtp_llm.ops.native_library import measure_peak
    from rtp_llm.ops.native_ops import NativeOps

    ops, folder = NativeOps(num_threads=threads), _folder(family)
    hf, before, started = read_json(folder, "config.json"), _megabytes("VmRSS:"), time.perf_counter()
    source = open_tensors(folder)
    model = load_model(find_model_type("auto", hf), hf, source, ops)
    source.close()
    seconds, peak = time.perf_counter() - started, _megabytes("VmHWM:") - before
    size = (folder / "model.safetensors").stat().st_size / 2**20
    differences = _compare(folder, _forward(family, model, ops, _PARITY_LENGTHS))
    speed = length / best_seconds(lambda: _forward(family, model, ops, [length]))
    tables = sum(np.prod(info.shape) for name, info in source.tensors.items() if "embed" in name)
    weights = sum(info.num_elements for info in source.tensors.values()) - float(tables)
    return {
        "checkpoint_mb": size,
        "load_seconds": seconds,
        "peak_to_checkpoint": peak / size,
        "tokens_per_second": speed,
        "share_of_peak": 2e-9 * weights * speed / measure_peak(threads, 0.5),
        **differences,
    }


def _forward(family: str, model: Any, ops: Any, lengths: Sequence[int]) -> dict[str, Array]:
    """Our hidden states and answers for sequences of these lengths, packed."""
    from rtp_llm.core import Item, pack

    packed = model.prepare(pack([Item(_ids(n).astype(np.int32), i) for i, n in enumerate(lengths)]))
    batch = ops.upload(packed)
    states = model(ops, batch)
    scores = ops.to_numpy(_load_head(family, model, ops)(ops, states, batch)) if _is_reranker(family) else None
    hidden = np.split(ops.to_numpy(states), packed.cu_seqlens[1:-1])
    answers = [_unit(rows, FAMILIES[family].stem) for rows in hidden] if scores is None else scores
    return {f"hidden{n}": hidden[i] for i, n in enumerate(lengths)} | {
        f"answer{n}": answers[i] for i, n in enumerate(lengths)
    }


@cache
def _load_head(family: str, model: Any, ops: Any) -> Any:
    from rtp_llm.config import EngineConfig
    from rtp_llm.model_config import read_model_config
    from rtp_llm.tasks import TaskSource
    from rtp_llm.tasks.head import load_head

    folder = _folder(family)
    config = read_model_config(folder, EngineConfig(checkpoint_path=str(folder)))
    unused: Any = None
    return load_head(
        TaskSource(
            model_config=config,
            pooling="auto",
            hidden_size=model.hidden_size,
            causal=model.causal,
            ops=ops,
            vocabulary=unused,
        )
    )


def _bf16(family: str, length: int, threads: int) -> dict[str, Any]:
    """Layers in bf16 on torch, ours and transformers', from transformers in fp32."""
    from rtp_llm.checkpoint import open_tensors, read_json
    from rtp_llm.models import find_model_type, load_model
    from rtp_llm.ops.torch_ops import TorchOps

    folder, ops = _folder(family), TorchOps(dtype="bf16")
    hf, source = read_json(folder, "config.json"), open_tensors(folder)
    ours = _forward(family, load_model(find_model_type("auto", hf), hf, source, ops), ops, _PARITY_LENGTHS)
    source.close()
    _save_references(family, "bf16.npz", _transformers(family, "bfloat16", threads))
    theirs, reference = dict(np.load(folder / "bf16.npz")), dict(np.load(folder / "reference.npz"))
    return {
        "our_bf16_error": _worst(ours, reference, "hidden"),
        "their_bf16_error": _worst(theirs, reference, "hidden"),
        "our_bf16_answer_error": _worst(ours, reference, "answer"),
        "their_bf16_answer_error": _worst(theirs, reference, "answer"),
    }


def _compare(folder: Path, ours: dict[str, Array]) -> dict[str, float]:
    """Largest differences: ours from transformers', and both from float64 where that was computed."""
    theirs = dict(np.load(folder / "reference.npz"))
    found = {"max_difference": _worst(ours, theirs, "hidden"), "answer_difference": _worst(ours, theirs, "answer")}
    if (folder / "exact.npz").exists():
        exact = dict(np.load(folder / "exact.npz"))
        found |= {"our_error": _worst(ours, exact, "hidden"), "their_error": _worst(theirs, exact, "hidden")}
        found |= {
            "our_answer_error": _worst(ours, exact, "answer"),
            "their_answer_error": _worst(theirs, exact, "answer"),
        }
    return found


def _worst(left: dict[str, Array], right: dict[str, Array], part: str) -> float:
    return max(float(np.abs(left[f"{part}{n}"] - right[f"{part}{n}"]).max()) for n in _PARITY_LENGTHS)


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
    "make": make_checkpoint, "theirs": _theirs, "exact": _exact, "ours": _ours, "bf16": _bf16,
}  # fmt: skip

if __name__ == "__main__":
    main()
