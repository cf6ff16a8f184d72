"""Tokens a second over HTTP on a GPU: the real server, client processes on the same machine, base64 answers."""

import importlib.util
import json
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import checkpoints, gpu_clients
from benchmarks.gpu import SERVING
from benchmarks.gpu_models import Machine
from benchmarks.gpu_parity import minilm
from benchmarks.gpu_rows import Row, attempt
from benchmarks.server_process import ServerProcess, body
from rtp_llm.ops.torch_ops import DTYPES

_WORDS = 90  # of a text: some 128 tokens
_BATCH = 32  # texts of a request
_FRONT_ENDS = (1, 4)  # 1: the process of the engine does it all
_BARS = {"bge-large": 0.8}


def served(machine: Machine, deadline: float) -> Iterator[Row]:
    """For bge-large's shape and MiniLM: offline, over HTTP, then sentence-transformers on the same texts."""
    missing = [name for name in SERVING if importlib.util.find_spec(name) is None]
    if missing:
        yield {"what": "served", "skipped": f"not installed: {', '.join(missing)}"}
        return
    for name in ("MiniLM",) if machine.dry_run else ("bge-large", "MiniLM"):
        yield from attempt({"what": "served", "model": name}, partial(_served, machine, name))
        if time.monotonic() > deadline:
            return


def _served(machine: Machine, name: str) -> Iterator[Row]:
    try:
        checkpoint = _checkpoint(machine, name)
    except FileNotFoundError as error:
        yield {"what": "served", "model": name, "skipped": str(error)}
        return
    texts = _texts(checkpoint, 64 if machine.dry_run else 4096)
    offline, tokens_a_text = _offline(machine, checkpoint, texts)
    yield {"what": "offline", "model": name, "tokens_s": offline, "tokens_a_text": tokens_a_text}
    for front_ends in _FRONT_ENDS:
        yield from _over_http(machine, name, checkpoint, texts, tokens_a_text, offline, front_ends)
    theirs = tokens_a_text * _sentence_transformers(machine, checkpoint, texts)
    yield {"what": "sentence-transformers", "model": name, "tokens_s": theirs, "ours_is_times": offline / theirs}


def _over_http(
    machine: Machine,
    name: str,
    checkpoint: Path,
    texts: Sequence[str],
    tokens_a_text: float,
    offline: float,
    front_ends: int,
) -> Iterator[Row]:
    """Requests of 32 texts, and of one, from client processes to a server with so many front-ends; 1: none apart."""
    num_clients, seconds = (1, 1.0) if machine.dry_run else (6, 6.0)
    options = ["--backend", "torch"] if machine.device == "cpu" else ["--device", machine.device]
    with ServerProcess(checkpoint, *options, "--frontend_server_count", str(front_ends)) as server:
        server.wait_for_embedding("ready?")
        for size in (_BATCH, 1):
            # Over loopback the client's work is the server's loss: answers are read and not decoded.
            bodies = [body(texts[start : start + size]) for start in range(0, len(texts), size)]
            requests, latencies = gpu_clients.load(server.port, bodies, num_clients, seconds)
            tokens = requests * size * tokens_a_text
            yield {
                "what": "served", "model": name, "clients": num_clients,
                "front_ends": front_ends, "texts_a_request": size,
                "requests_s": requests, "tokens_s": tokens, "of_offline": tokens / offline,
                "bar": _BARS.get(name) if size == _BATCH else None,
                **{f"p{share}_ms": float(np.percentile(latencies, share)) * 1e3 for share in (50, 99)},
            }  # fmt: skip


def _checkpoint(machine: Machine, name: str) -> Path:
    if name == "MiniLM":
        return minilm(machine)
    try:
        return checkpoints.random_weights(name, tokenizer=minilm(machine))
    except FileNotFoundError:
        return checkpoints.random_weights(name, tokenizer=checkpoints.made_up(checkpoints.MODELS / "made-up"))


def _sentence_transformers(machine: Machine, checkpoint: Path, texts: Sequence[str]) -> float:
    """Texts a second of its `encode`, tokenising included; fp16 on a GPU."""
    from sentence_transformers import SentenceTransformer

    dtype = DTYPES["fp32" if machine.device == "cpu" else "fp16"]
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": "sdpa"}
    model = SentenceTransformer(str(checkpoint), device=machine.device, model_kwargs=options)
    model.encode(list(texts[:256]), batch_size=128, show_progress_bar=False)
    some = texts[:1024]
    started = time.perf_counter()
    model.encode(list(some), batch_size=128, show_progress_bar=False)
    seconds = time.perf_counter() - started
    del model
    machine.free()
    return len(some) / seconds


def _texts(checkpoint: Path, count: int) -> list[str]:
    """Random whole words of the vocabulary, which are a token each; from a half to one and a half of the mean."""
    vocabulary = json.loads((checkpoint / "tokenizer.json").read_text())["model"]["vocab"]
    words = [word for word in vocabulary if word.isalpha() and word.isascii()]
    random = np.random.default_rng(0)
    lengths = random.integers(_WORDS // 2, _WORDS * 3 // 2, count)
    return [" ".join(words[i] for i in random.integers(0, len(words), length)) for length in lengths]


def _offline(machine: Machine, checkpoint: Path, texts: Sequence[str]) -> tuple[float, float]:
    """Tokens a second of `Model.embed` on ids, so that tokenising is not part of it; tokens of a text."""
    from tokenizers import Tokenizer

    from rtp_llm import Model

    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.no_padding()
    ids = [encoding.ids[:256] for encoding in tokenizer.encode_batch(list(texts))]
    backend = "torch" if machine.device == "cpu" else "auto"
    with Model(checkpoint, backend=backend, device=machine.device) as model:
        model.embed(ids[:64])
        started = time.perf_counter()
        model.embed(ids)
        seconds = time.perf_counter() - started
    total = sum(map(len, ids))
    return total / seconds, total / len(ids)
