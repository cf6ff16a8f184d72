"""`rtp-llm classify CHECKPOINT [TEXTS]`: a label and its score for each line."""

import os
import sys
from collections.abc import Sequence
from typing import Any

from rtp_llm.cli.terminal import LINES_HELP, STDIN, failures_reported, json_line, load, progress, read_lines
from rtp_llm.config import EngineConfig
from rtp_llm.core import Input
from rtp_llm.errors import InvalidRequest
from rtp_llm.flags import CommandParser, parse_command

_DESCRIPTION = "Label a text a line; prints the best label, its score and the text, by tabs, in the order of the texts."


def main(argv: Sequence[str]) -> None:
    """Parse, classify, print."""
    parser = CommandParser("rtp-llm classify", _DESCRIPTION, needs_checkpoint=True)
    parser.add_argument("texts", metavar="TEXTS", nargs="?", default=STDIN, help=LINES_HELP)
    parser.add_argument("--pairs", action="store_true", help="a line is two texts, with a tab between them")
    parser.add_argument(
        "--activation", choices=("none", "sigmoid", "softmax"), help="of the scores (default: the checkpoint's own)"
    )
    parser.add_argument("--json", action="store_true", help="JSON lines, with the scores of all labels, the best first")
    config, arguments = parse_command(parser, argv, os.environ, EngineConfig)
    with failures_reported(parser.prog):
        _classify(config, arguments)


def _classify(config: EngineConfig, arguments: Any) -> None:
    lines = read_lines(arguments.texts)
    inputs: list[Input] = [_pair(line, number) for number, line in enumerate(lines, 1)] if arguments.pairs else [*lines]
    with load(config) as model:
        rows = model.classify(inputs, progress=progress(), activation=arguments.activation)
        labels = model.info.labels
    for index, (line, row) in enumerate(zip(lines, rows.tolist(), strict=True)):
        best_first = sorted(zip(labels, row, strict=True), key=lambda entry: -entry[1])
        if arguments.json:
            named = [{"label": label, "score": score} for label, score in best_first]
            sys.stdout.write(json_line({"index": index, "labels": named, "text": line}))
        else:
            label, score = best_first[0]
            sys.stdout.write(f"{label}\t{score:.6g}\t{line}\n")


def _pair(line: str, number: int) -> tuple[str, str]:
    first, tab, second = line.partition("\t")
    if not tab:
        raise InvalidRequest(f"line {number} has no tab; with --pairs, a line is two texts with a tab between them")
    return first, second
