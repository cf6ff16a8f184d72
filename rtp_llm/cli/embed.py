"""`rtp-llm embed CHECKPOINT TEXTS VECTORS`: texts to vectors."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from rtp_llm.cli.terminal import ended_in_order, json_line, load, progress, tell_cuts, whole_file, write_out
from rtp_llm.cli.texts import COLUMN_HELP, STDIN, TEXTS_HELP, read_texts
from rtp_llm.config import EngineConfig
from rtp_llm.core import FloatArray, SparseVector, TaskType
from rtp_llm.errors import ConfigError, UnsupportedTask
from rtp_llm.flags import CommandParser, parse_command

if TYPE_CHECKING:
    from rtp_llm.offline import Model

_KINDS = ("dense", "sparse", "colbert", "tokens")
_DESCRIPTION = """Embed texts: to an .npy matrix, fp32 [texts, dim], or to JSON lines in the
order of the texts. The vectors are of the kind that the checkpoint has; of
several kinds they are dense unless --output says otherwise."""
_EXAMPLE = "printf 'hello\\nworld\\n' | rtp-llm embed sentence-transformers/all-MiniLM-L6-v2 - vectors.npy"
# Texts that are computed before their JSON is written: what is held does not grow with the file.
_SLICE = 256
# What prints the answers of checkpoints that have no vectors.
_OTHER_COMMANDS = {
    TaskType.RERANK: "rtp-llm rerank",
    TaskType.CLASSIFY: "rtp-llm classify",
    TaskType.TOKEN_CLASSIFY: "rtp-llm classify",
}


def main(argv: Sequence[str]) -> None:
    """Parse, embed, write."""
    parser = CommandParser("rtp-llm embed", _DESCRIPTION, example=_EXAMPLE, needs_checkpoint=True)
    parser.add_argument("texts", metavar="TEXTS", help=TEXTS_HELP)
    parser.add_argument(
        "vectors",
        metavar="VECTORS",
        help=".npy: a matrix; any other name: JSON lines; -: JSON lines on standard output",
    )
    parser.add_argument("--column", metavar="NAME", help=f"{COLUMN_HELP} (default: text)")
    parser.add_argument(
        "--output",
        metavar="KINDS",
        help=f"kinds of embedding, by commas: {', '.join(_KINDS)} (default: dense, or the only kind there is)",
    )
    parser.add_argument("--dimensions", type=int, metavar="N", help="leading dimensions to keep, normalised again")
    parser.add_argument(
        "--prompt_name", metavar="NAME", help="one of the checkpoint's prompts, put before each text, or of its routes"
    )
    parser.add_argument("--adapter", metavar="NAME", help="one of the checkpoint's adapters (LoRA)")
    parser.add_argument("--prompt", metavar="TEXT", help="a prompt of your own, put before each text")
    parser.add_argument(
        "--max_active_dims", type=int, metavar="N", help="of a sparse vector, so many of the largest weights"
    )
    config, arguments = parse_command(parser, argv, os.environ, EngineConfig)
    _check_apart(arguments.texts, arguments.vectors)
    _check_output(arguments)
    lines = read_texts(arguments.texts, arguments.column)
    write = _write_matrix if arguments.vectors.endswith(".npy") else _write_json_lines
    with ended_in_order():
        write(arguments.vectors, config, lines, arguments)


def _check_output(arguments: Any) -> None:
    """ConfigError where `output` is wrong whatever the checkpoint offers; it becomes the kinds, or None."""
    if arguments.output is not None:
        arguments.output = _kinds(arguments.output)
        _check_goes_with(arguments, arguments.output)


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(dict.fromkeys(kind.strip().lower() for kind in text.split(",")))
    wrong = next((kind for kind in kinds if kind not in _KINDS), None)
    if wrong is not None:
        raise ConfigError(f"output: {wrong!r} is not one of {', '.join(_KINDS)}", param="output")
    return kinds


def _check_goes_with(arguments: Any, kinds: tuple[str, ...]) -> None:
    """ConfigError where such vectors are not what the other arguments are for."""
    if arguments.vectors.endswith(".npy") and kinds != ("dense",):
        message = f"an .npy file holds dense vectors; name it .jsonl for {', '.join(kinds)}"
        raise ConfigError(f"output: {message}", param="output")
    if arguments.max_active_dims is not None and "sparse" not in kinds:
        message = f"{arguments.max_active_dims} is of sparse vectors; --output sparse asks for them"
        raise ConfigError(f"max_active_dims: {message}", param="max_active_dims")


def _check_apart(texts: str, vectors: str) -> None:
    """ConfigError where the vectors would take the place of their texts."""
    if STDIN not in (texts, vectors) and os.path.exists(vectors) and os.path.samefile(texts, vectors):
        raise ConfigError(f"VECTORS is {texts}, the file of the texts: name another", param="vectors")


def _chosen(model: "Model", arguments: Any) -> tuple[str, ...]:
    """The kinds to write; UnsupportedTask where the model does not offer them, or several of which none is dense."""
    offered = [task.value for task in model.info.tasks]
    kinds = arguments.output or _only(kind for kind in _KINDS if kind in offered)
    missing = [kind for kind in kinds if kind not in offered]
    if kinds and not missing:
        _check_goes_with(arguments, kinds)
        return tuple(kinds)
    other = _OTHER_COMMANDS.get(model.info.tasks[0])
    way_out = f"`{other}` prints that" if other else "--output says what is written"
    raise UnsupportedTask(
        f"this model offers {', '.join(offered)}, not {missing[0] if missing else 'dense'}; {way_out}", param="output"
    )


def _only(offered: Iterator[str]) -> tuple[str, ...]:
    """Dense, or the only kind; hidden states of tokens are one where there is nothing made of them. Else ()."""
    kinds = tuple(offered)
    if "dense" in kinds:
        return ("dense",)
    made = tuple(kind for kind in kinds if kind != "tokens")
    return made if len(made) == 1 else () if made else kinds


def _options(arguments: Any) -> dict[str, Any]:
    names = ("dimensions", "prompt_name", "prompt", "adapter", "max_active_dims")
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def _write_matrix(path: str, config: EngineConfig, lines: list[str], arguments: Any) -> None:
    with whole_file(path) as file, load(config) as model:
        _chosen(model, arguments)
        _save(file, model.embed(lines, progress=progress(), **_options(arguments)))
        _tell_cuts(model, lines)


def _save(file: BinaryIO, matrix: FloatArray) -> None:
    """As np.save, whose errors do not tell that a disk is full."""
    matrix = np.ascontiguousarray(matrix)
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(matrix))
    file.write(matrix.data if matrix.size else b"")


def _write_json_lines(path: str, config: EngineConfig, lines: list[str], arguments: Any) -> None:
    with _lines_out(path) as write, load(config) as model:
        for row in _rows(model, lines, _chosen(model, arguments), _options(arguments)):
            write(json_line(row))
        _tell_cuts(model, lines)


def _tell_cuts(model: "Model", lines: list[str]) -> None:
    tell_cuts("rtp-llm embed", model, f"{len(lines)} texts")


@contextmanager
def _lines_out(path: str) -> Iterator[Callable[[str], object]]:
    if path == STDIN:
        yield write_out
        return
    with whole_file(path) as file:
        yield lambda line: file.write(line.encode())


def _rows(
    model: "Model", lines: list[str], kinds: tuple[str, ...], options: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """An object a text: its place, and each of the kinds."""
    from tqdm import tqdm

    with tqdm(desc=", ".join(kinds), total=len(lines), unit="text", disable=not progress()) as bar:
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
