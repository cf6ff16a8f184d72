"""Tokens a second over HTTP on a GPU: the real server, client processes on the same machine, base64 answers."""

import http.client
import json
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import checkpoints
from benchmarks.gpu_models import Machine
from benchmarks.server_process import ServerProcess, body

Row = dict[str, Any]
_WORDS = 90  # of a text: some 128 tokens
_BATCH = 32  # texts of a request
_BARS = {"bge-large": 0.8}


def served(machine: Machine, deadline: float) -> Iterator[Row]:
    """For MiniLM and the shape of bge-large: offline on the same engine, then over HTTP; p50 and p99 of a request."""
    for name in ("MiniLM",) if machine.dry_run else ("bge-large", "MiniLM"):
        checkpoint = checkpoints.minilm() if name == "MiniLM" else checkpoints.random_weights(name)
        texts = _texts(checkpoint, 64 if machine.dry_run else 4096)
        offline, tokens_a_text = _offline(machine, checkpoint, texts)
        yield {"what": "offline", "model": name, "tokens_s": offline, "tokens_a_text": tokens_a_text}
        num_clients, seconds = (1, 1.0) if machine.dry_run else (6, 8.0)
        with ServerProcess(checkpoint, "--backend", "auto" if machine.device != "cpu" else "torch") as server:
            server.wait_for_embedding("ready?")
            # Over loopback the client's work is the server's loss: answers are read and not decoded.
            rate, latencies = _load(server.port, texts, num_clients, seconds)
        yield {
            "what": "served", "model": name, "clients": num_clients, "tokens_s": rate * tokens_a_text,
            "of_offline": rate * tokens_a_text / offline, "bar": _BARS.get(name),
            **{f"p{share}_ms": float(np.percentile(latencies, share)) * 1e3 for share in (50, 99)},
        }  # fmt: skip
        if time.monotonic() > deadline:
            return


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


def _load(port: int, texts: Sequence[str], num_clients: int, seconds: float) -> tuple[float, list[float]]:
    """Texts a second of all client processes, and seconds of each request."""
    bodies = [body(texts[start : start + _BATCH]) for start in range(0, len(texts), _BATCH)]
    with multiprocessing.get_context("spawn").Pool(num_clients) as pool:
        found = pool.starmap(_client, [(port, bodies, seconds, place) for place in range(num_clients)])
    count = sum(number for number, _, _ in found)
    begin, end = min(times[0] for _, _, times in found), max(times[1] for _, _, times in found)
    return count / (end - begin), [latency for _, latencies, _ in found for latency in latencies]


def _client(port: int, bodies: Sequence[str], seconds: float, place: int) -> tuple[int, list[float], list[float]]:
    """Several connections, a request in flight on each -> texts answered, seconds of each request, begin and end."""
    connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=60) for _ in range(4)]
    sent_at = [0.0] * len(connections)
    latencies: list[float] = []
    number, begin = place, time.time()

    def send(which: int) -> None:
        nonlocal number
        sent_at[which] = time.perf_counter()
        connections[which].request(
            "POST", "/v1/embeddings", bodies[number % len(bodies)], {"Content-Type": "application/json"}
        )
        number += 1

    for which in range(len(connections)):
        send(which)
    which = 0
    while time.time() < begin + seconds:
        answer = connections[which].getresponse()
        if answer.status != 200:
            raise RuntimeError(f"status {answer.status}: {answer.read()[:200]!r}")
        answer.read()
        latencies.append(time.perf_counter() - sent_at[which])
        send(which)
        which = (which + 1) % len(connections)
    for connection in connections:
        connection.close()
    return len(latencies) * _BATCH, latencies, [begin, time.time()]
