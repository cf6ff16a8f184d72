"""`rtp-llm classify CHECKPOINT TEXTS`: lines of text or pairs to labels, or to the entities in them."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

from rtp_llm.cli.terminal import LINES_HELP, STDIN, failures_reported, json_line, load, progress, read_lines
from rtp_llm.config import EngineConfig
from rtp_llm.core import AggregationStrategy, Input, TaskType
from rtp_llm.errors import ConfigError, InvalidRequest
from rtp_llm.flags import CommandParser, parse_command

if TYPE_CHECKING:
    from rtp_llm.offline import Model

_DESCRIPTION = """Classify a text a line: the best label, its score and the text by tabs, in the order of the texts.
A token classifier finds entities: for each the number of its line, the characters from and to which it goes, label,
score and word, by tabs."""
_OF_TEXTS, _OF_TOKENS = ("pairs", "activation"), ("aggregation_strategy", "ignore_labels")


def main(argv: Sequence[str]) -> None:
    """Parse, classify, print."""
    parser = CommandParser("rtp-llm classify", _DESCRIPTION, needs_checkpoint=True)
    parser.add_argument("texts", metavar="TEXTS", nargs="?", default=STDIN, help=LINES_HELP)
    parser.add_argument("--pairs", action="store_true", help="a line is two texts, with a tab between them")
    parser.add_argument(
        "--activation", choices=("none", "sigmoid", "softmax"), help="of the scores (default: the checkpoint's own)"
    )
    parser.add_argument(
        "--aggregation_strategy",
        choices=get_args(AggregationStrategy),
        help="token classifiers: how tokens become entities (default: simple)",
    )
    parser.add_argument(
        "--ignore_labels", help="token classifiers: labels that are left out, by commas; empty: none (default: O)"
    )
    parser.add_argument("--json", action="store_true", help="JSON lines, with the scores of all labels, the best first")
    config, arguments = parse_command(parser, argv, os.environ, EngineConfig)
    with failures_reported(parser.prog):
        _classify(config, arguments)


def _classify(config: EngineConfig, arguments: Any) -> None:
    lines = read_lines(arguments.texts)
    inputs: list[Input] = [_pair(line, number) for number, line in enumerate(lines, 1)] if arguments.pairs else [*lines]
    with load(config) as model:
        is_of_tokens = TaskType.TOKEN_CLASSIFY in model.info.tasks
        _check_goes_with(arguments, is_of_tokens)
        if is_of_tokens:
            _entities(model, lines, arguments)
        else:
            _labels(model, lines, inputs, arguments)


def _check_goes_with(arguments: Any, is_of_tokens: bool) -> None:
    """ConfigError for an option that means another kind of classifier."""
    for name in _OF_TEXTS if is_of_tokens else _OF_TOKENS:
        if getattr(arguments, name) not in (None, False):
            kind = "tokens, and this is for labels of texts" if is_of_tokens else "texts, and this is for tokens"
            raise ConfigError(f"{name}: this checkpoint labels {kind}; leave it out", param=name)


def _labels(model: "Model", lines: list[str], inputs: list[Input], arguments: Any) -> None:
    rows = model.classify(inputs, progress=progress(), activation=arguments.activation)
    for index, (line, row) in enumerate(zip(lines, rows.tolist(), strict=True)):
        best_first = sorted(zip(model.info.labels, row, strict=True), key=lambda entry: -entry[1])
        if arguments.json:
            named = [{"label": label, "score": score} for label, score in best_first]
            sys.stdout.write(json_line({"index": index, "labels": named, "text": line}))
        else:
            label, score = best_first[0]
            sys.stdout.write(f"{label}\t{score:.6g}\t{line}\n")


def _entities(model: "Model", lines: list[str], arguments: Any) -> None:
    given = {name: getattr(arguments, name) for name in _OF_TOKENS}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if "ignore_labels" in options:
        options["ignore_labels"] = [label.strip() for label in options["ignore_labels"].split(",") if label.strip()]
    found = model.entities(lines, progress=progress(), **options)
    for index, (line, entities) in enumerate(zip(lines, found, strict=True)):
        if arguments.json:
            rows = [entity.as_dict() for entity in entities]
            sys.stdout.write(json_line({"index": index, "entities": rows, "text": line}))
            continue
        for one in entities:
            sys.stdout.write(f"{index}\t{one.start}\t{one.end}\t{one.label}\t{one.score:.6g}\t{one.word}\n")


def _pair(line: str, number: int) -> tuple[str, str]:
    first, tab, second = line.partition("\t")
    if not tab:
        raise InvalidRequest(f"line {number} has no tab; with --pairs, a line is two texts with a tab between them")
    return first, second
