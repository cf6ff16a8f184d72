"""`rtp-llm embed CHECKPOINT TEXTS VECTORS`: lines of text to vectors."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from rtp_llm.cli.terminal import (
    LINES_HELP,
    STDIN,
    failures_reported,
    json_line,
    load,
    progress,
    read_lines,
    whole_file,
)
from rtp_llm.config import EngineConfig
from rtp_llm.core import SparseVector, TaskType
from rtp_llm.errors import ConfigError, UnsupportedTask
from rtp_llm.flags import CommandParser, parse_command

if TYPE_CHECKING:
    from rtp_llm.offline import Model

_KINDS = ("dense", "sparse", "colbert", "tokens")
_DESCRIPTION = "Embed a text a line: to an .npy matrix, fp32 [lines, dim], or to JSON lines in the order of the texts."
# Texts that are computed before their JSON is written: what is held does not grow with the file.
_SLICE = 256


def main(argv: Sequence[str]) -> None:
    """Parse, embed, write."""
    parser = CommandParser("rtp-llm embed", _DESCRIPTION, needs_checkpoint=True)
    parser.add_argument("texts", metavar="TEXTS", help=LINES_HELP)
    parser.add_argument(
        "vectors",
        metavar="VECTORS",
        help=".npy: a matrix; any other name: JSON lines; -: JSON lines on standard output",
    )
    parser.add_argument(
        "--output", default="dense", help=f"kinds of embedding, by commas: {', '.join(_KINDS)} (default: dense)"
    )
    parser.add_argument("--dimensions", type=int, help="leading dimensions to keep, normalised again")
    parser.add_argument("--prompt_name", help="one of the checkpoint's prompts, put before each text, or of its routes")
    parser.add_argument("--prompt", help="a prompt of your own, put before each text")
    parser.add_argument("--max_active_dims", type=int, help="of a sparse vector, so many of the largest weights")
    config, arguments = parse_command(parser, argv, os.environ, EngineConfig)
    options = {name: getattr(arguments, name) for name in ("dimensions", "prompt_name", "prompt")}
    with failures_reported(parser.prog):
        _check_apart(arguments.texts, arguments.vectors)
        lines, kinds = read_lines(arguments.texts), _kinds(arguments.output)
        if arguments.max_active_dims is not None:
            options["max_active_dims"] = _check_sparse(arguments.max_active_dims, kinds)
        write = _write_matrix if arguments.vectors.endswith(".npy") else _write_json_lines
        write(arguments.vectors, config, lines, kinds, options)


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(dict.fromkeys(kind.strip().lower() for kind in text.split(",")))
    wrong = next((kind for kind in kinds if kind not in _KINDS), None)
    if wrong is not None:
        raise ConfigError(f"output: {wrong!r} is not one of {', '.join(_KINDS)}", param="output")
    return kinds


def _check_sparse(max_active_dims: int, kinds: tuple[str, ...]) -> int:
    """ConfigError where no sparse vectors are written."""
    if "sparse" not in kinds:
        message = f"max_active_dims: {max_active_dims} is of sparse vectors; --output sparse asks for them"
        raise ConfigError(message, param="max_active_dims")
    return max_active_dims


def _check_apart(texts: str, vectors: str) -> None:
    """ConfigError where the vectors would take the place of their texts."""
    if STDIN not in (texts, vectors) and os.path.exists(vectors) and os.path.samefile(texts, vectors):
        raise ConfigError(f"VECTORS is {texts}, the file of the texts: name another", param="vectors")


def _check_offered(model: "Model", kinds: tuple[str, ...]) -> None:
    missing = [kind for kind in kinds if kind not in model.info.tasks]
    if missing:
        offered = ", ".join(task.value for task in model.info.tasks)
        message = f"this model offers {offered}, not {missing[0]}; --output says what is written"
        raise UnsupportedTask(message, param="output")


def _write_matrix(
    path: str, config: EngineConfig, lines: list[str], kinds: tuple[str, ...], options: dict[str, Any]
) -> None:
    if kinds != ("dense",):
        raise ConfigError("output: an .npy file holds dense vectors; name it .jsonl for other kinds", param="output")
    with whole_file(path) as file, load(config) as model:
        _check_offered(model, kinds)
        np.save(file, model.embed(lines, progress=progress(), **options))


def _write_json_lines(
    path: str, config: EngineConfig, lines: list[str], kinds: tuple[str, ...], options: dict[str, Any]
) -> None:
    with _lines_out(path) as write, load(config) as model:
        _check_offered(model, kinds)
        for row in _rows(model, lines, kinds, options):
            write(json_line(row))


@contextmanager
def _lines_out(path: str) -> Iterator[Callable[[str], object]]:
    if path == STDIN:
        yield sys.stdout.write
        return
    with whole_file(path) as file:
        yield lambda line: file.write(line.encode())


def _rows(
    model: "Model", lines: list[str], kinds: tuple[str, ...], options: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """An object a text: its place, and each kind that was asked for."""
    from tqdm import tqdm

    with tqdm(total=len(lines), unit="text", disable=not progress()) as bar:
        for start in range(0, len(lines), _SLICE):
            part = lines[start : start + _SLICE]
            outputs = _embedded(model, part, kinds, options)
            for place in range(len(part)):
                yield {"index": start + place, **{kind: _plain(outputs[kind][place]) for kind in kinds}}
            bar.update(len(part))


def _embedded(model: "Model", texts: list[str], kinds: tuple[str, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Each kind's outputs; several come from one forward."""
    if kinds == (TaskType.DENSE.value,):
        return {kinds[0]: model.embed(texts, **options)}
    return model.embed_all(texts, kinds=kinds, return_tokens=True, **options)


def _plain(value: Any) -> Any:
    if isinstance(value, SparseVector):
        return {"indices": value.indices, "values": value.values, "tokens": value.tokens}
    # orjson reads no array that is a view with gaps.
    return np.ascontiguousarray(value)
