"""How the engine grows: `python -m benchmarks.growth` with the number of cores, the length of a text, of a corpus.

cores    passages a second on 1, 2, … cores, ours beside peers
lengths  tokens a second of texts of 8 to 8192 tokens, on some layers of bge-m3's shape
corpus   tokens a second and resident memory for 1000 to 100,000 short texts in one call
"""

import argparse
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import checkpoints, corpus, report
from benchmarks.peers import ENGINES, OURS, Setup
from benchmarks.peers.process import EngineProcess, Others, pin, prepare

_ENGINES = (OURS, f"{OURS} int8", "openvino streams", "ctranslate2 streams", "ctranslate2 int8 streams")
_LENGTHS = (8, 32, 128, 512, 2048, 8192)
_MOST_TOKENS_OF_PEERS = 2048  # some hold all scores of a text at once: heads * 8192^2 numbers are 4 GB
_TOKENS_OF_LENGTH = 4096  # of all texts of one length, at least one text
_SIZES = (1_000, 10_000, 100_000)
_LAYERS = 4


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--parts", default="cores,lengths,corpus", help="by commas")
    parser.add_argument("--models", type=Path, default=checkpoints.MODELS, help="folder for converted checkpoints")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", default="", help="also write the JSON line to this file; other parts of it stay")
    arguments = parser.parse_args(argv)
    cores, facts = pin(0), report.machine()
    print(report.describe(facts))
    parts: dict[str, Any] = {}
    others_cores: dict[str, float] = {}
    for name in arguments.parts.split(","):
        measure = {"cores": _cores, "lengths": _lengths, "corpus": _corpus}[name]
        others = Others()
        parts[name] = measure(arguments.models.resolve(), cores, arguments.rounds, others)
        others_cores[name] = others.cores
        print(f"\n{name} (other processes used {others.cores:.2f} cores)\n{_table(parts[name])}")
    earlier = report.read(arguments.json)
    about = {"benchmark": "growth", "machine": facts, **report.provenance(), "versions": report.versions()}
    result = {"parts": parts, "others_cores": others_cores}
    report.finish(about | {key: earlier.get(key, {}) | values for key, values in result.items()}, arguments.json)


def _cores(models: Path, cores: list[int], rounds: int, others: Others) -> list[dict[str, Any]]:
    checkpoint = checkpoints.minilm()
    texts = {"passages": corpus.load(checkpoint)["passages"].texts}
    rows = []
    for number in range(1, len(cores) + 1):
        with _on(cores[:number]):
            setup = Setup(checkpoint, models, num_threads=number)
            for name in _progress(_installed(), f"{number} cores"):
                prepare(name, setup)
                with closing(EngineProcess(name, setup, texts)) as process:
                    rate = len(texts["passages"]) / _median_seconds(process, "passages", rounds, others)
                rows.append({"engine": name, "cores": number, "texts_per_second": rate})
    return rows


@contextmanager
def _on(cores: list[int]) -> Iterator[None]:
    """This process and those that it starts, on these cores."""
    before, threads = os.sched_getaffinity(0), os.environ["OMP_NUM_THREADS"]
    os.sched_setaffinity(0, cores)
    os.environ["OMP_NUM_THREADS"] = str(len(cores))
    yield
    os.sched_setaffinity(0, before)
    os.environ["OMP_NUM_THREADS"] = threads


def _lengths(models: Path, cores: list[int], rounds: int, others: Others) -> list[dict[str, Any]]:
    checkpoint = checkpoints.random_weights("bge-m3", models, _LAYERS)
    texts = {str(length): _texts_of(length, max(1, _TOKENS_OF_LENGTH // length)) for length in _LENGTHS}
    rows = []
    for name in (name for name in _installed() if "ctranslate2" not in name):
        most = _LENGTHS[-1] if name.startswith(OURS) else _MOST_TOKENS_OF_PEERS
        setup = Setup(checkpoint, models, max_seq_len=_LENGTHS[-1], num_threads=len(cores))
        prepare(name, setup)
        with closing(EngineProcess(name, setup, texts)) as process:
            for length in _progress([length for length in _LENGTHS if length <= most], name):
                passes = rounds if length <= _MOST_TOKENS_OF_PEERS else 1
                seconds = _median_seconds(process, str(length), passes, others)
                rate = len(texts[str(length)]) * length / seconds
                rows.append({"engine": name, "length": length, "tokens_per_second": rate})
    return rows


def _corpus(models: Path, cores: list[int], rounds: int, others: Others) -> list[dict[str, Any]]:
    length = 10
    texts = {str(size): _texts_of(length, size) for size in _SIZES}
    rows = []
    for name in (OURS, f"{OURS} int8"):
        with closing(
            EngineProcess(name, Setup(checkpoints.minilm(), models, num_threads=len(cores)), texts)
        ) as process:
            before = process.resident_bytes()
            for size in _progress(_SIZES, name):
                wall, _ = others.time(process, str(size))
                vectors = size * checkpoints.read_shape(checkpoints.minilm()).hidden_size * 4
                rows.append({
                    "engine": name,
                    "texts": size,
                    "tokens_per_second": size * length / wall,
                    "grown_mb": (process.resident_bytes() - before) / 1e6,
                    "vectors_mb": vectors / 1e6,
                })  # fmt: skip
    return rows


# One token each in BERT's English vocabulary.
_WORDS = "time water house music river table paper glass story green night light round world small paint".split()


def _texts_of(length: int, number: int) -> list[str]:
    """Different texts of so many tokens, [CLS] and [SEP] included: their numbers, written in words."""
    num_words = length - 2
    digits = ([(index >> (4 * place)) % 16 for place in range(num_words)] for index in range(number))
    return [" ".join(_WORDS[digit] for digit in text) for text in digits]


def _installed() -> list[str]:
    for name in _ENGINES:
        if missing := ENGINES[name].missing():
            print(f"{name}: not installed ({', '.join(missing)})")
    return [name for name in _ENGINES if not ENGINES[name].missing()]


def _median_seconds(process: EngineProcess, key: str, rounds: int, others: Others) -> float:
    """After an untimed pass."""
    process.cpu_seconds(key)
    return statistics.median(others.time(process, key)[0] for _ in range(rounds))


def _progress(iterable: Any, label: str) -> Any:
    return tqdm(iterable, desc=label, file=sys.stderr, leave=False)


def _table(rows: list[dict[str, Any]]) -> str:
    headers = list(rows[0])
    cells = [[f"{value:,.0f}" if isinstance(value, (int, float)) else value for value in row.values()] for row in rows]
    return report.table([header.replace("_", " ") for header in headers], cells)


if __name__ == "__main__":
    main()
