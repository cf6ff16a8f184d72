"""Vectors in our dtype against fp32, next to sentence-transformers in that dtype: real MiniLM, random large shapes."""

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import checkpoints, corpus, gpu_models
from benchmarks.gpu_models import Machine
from benchmarks.gpu_rows import Row, attempt
from rtp_llm.checkpoint import TensorSource, open_tensors, read_json
from rtp_llm.core import FloatArray, Item, TaskType
from rtp_llm.models import load_model
from rtp_llm.ops.device_ops import make_ops
from rtp_llm.ops.torch_ops import DTYPES


def parity(machine: Machine, deadline: float) -> Iterator[Row]:
    """The least cosine with fp32 and the largest error, of what the engine gives and of what the peer does."""
    yield from attempt({"what": "parity", "model": "MiniLM"}, partial(minilm_parity, machine))
    for name in ("tiny-bert", "tiny-qwen3") if machine.dry_run else ("bge-large", "Qwen3-0.6B"):
        if time.monotonic() > deadline:
            return
        yield from attempt({"what": "parity", "model": name}, partial(_random_parity, machine, name))
        machine.free()


def _random_parity(machine: Machine, name: str) -> Iterator[Row]:
    hf = machine.shapes[name]
    exact = gpu_models.peer(machine, hf, "fp32")
    yield {"model": name, **_compared(machine, hf, exact, gpu_models.StateDict(exact), random_items(machine, hf))}


def minilm_parity(machine: Machine) -> Iterator[Row]:
    """Of the real model on English texts; a row that says why, where its checkpoint is not there."""
    from transformers import AutoModel

    try:
        folder = minilm(machine)
    except FileNotFoundError as error:
        yield {"what": "parity", "model": "MiniLM", "skipped": str(error)}
        return
    exact: Any = AutoModel.from_pretrained(folder, attn_implementation="sdpa", dtype=DTYPES["fp32"])
    source = open_tensors(folder)
    items = texts_of(folder, 16 if machine.dry_run else 128)
    row = _compared(machine, read_json(folder, "config.json"), exact.eval().to(machine.device), source, items)
    source.close()
    yield {"model": "MiniLM", **row}


def minilm(machine: Machine) -> Path:
    """Its folder; FileNotFoundError where there is none."""
    return Path(machine.checkpoint) if machine.checkpoint else checkpoints.minilm()


def texts_of(folder: Path, count: int) -> list[Item]:
    """Sentences of Python's documentation as ids, 2 to 256 tokens long."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    sentences = [" ".join(words) for words in corpus.prose()]
    picked = [" ".join(sentences[place : place + 1 + place % 7]) for place in range(0, 7 * count, 7)]
    ids = [np.array(encoding.ids, np.int32) for encoding in tokenizer.encode_batch(picked)]
    return [Item(one, place, tasks=(TaskType.DENSE,)) for place, one in enumerate(ids)]


def random_items(machine: Machine, hf: Mapping[str, Any]) -> list[Item]:
    """Odd lengths."""
    lengths = (1, 2, 17, 64, 200) if machine.dry_run else (1, 2, 17, 64, 65, 128, 333, 500)
    random = np.random.default_rng(0)
    return [
        Item(random.integers(2, hf["vocab_size"], length).astype(np.int32), place, tasks=(TaskType.DENSE,))
        for place, length in enumerate(lengths)
    ]


def _compared(machine: Machine, hf: Mapping[str, Any], exact: Any, source: TensorSource, items: Sequence[Item]) -> Row:
    """`exact` is left in our dtype."""
    # Here: the folder of MiniLM is asked for where sentence-transformers is not.
    from benchmarks.gpu_peer import SentenceTransformers

    dtype = machine.dtype(hf)
    truth = SentenceTransformers(machine, hf, exact).encode(items, 1)
    ops = make_ops("auto", machine.device, dtype)
    model = load_model(hf["model_type"], hf, source, ops)
    ours = gpu_models.with_model(machine, hf, model, ops).run(items, 1)[TaskType.DENSE]
    theirs = SentenceTransformers(machine, hf, exact.to(DTYPES[dtype])).encode(items, 32)
    return {
        "what": "parity", "dtype": dtype, **_distance("ours", np.stack(list(ours)), truth),
        **_distance("peer", theirs, truth),
    }  # fmt: skip


def _distance(name: str, rows: FloatArray, truth: FloatArray) -> Row:
    cosines = (rows * truth).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(truth, axis=1)
    error = np.abs(rows - truth).max() / np.abs(truth).max()
    return {f"{name}_least_cosine": float(cosines.min()), f"{name}_error": float(error)}
