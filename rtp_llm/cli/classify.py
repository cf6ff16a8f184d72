"""`rtp-llm classify CHECKPOINT [TEXTS]`: texts or pairs to labels, or to the entities in them."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

from rtp_llm.cli.terminal import in_a_line, json_line, load, progress, tell_cuts, write_out
from rtp_llm.cli.texts import (
    COLUMN_HELP,
    STDIN,
    TEXTS_HELP,
    check_no_column,
    is_table,
    read_columns,
    read_lines,
    read_texts,
)
from rtp_llm.config import EngineConfig
from rtp_llm.core import AggregationStrategy, TaskType
from rtp_llm.errors import ConfigError, InvalidRequest
from rtp_llm.flags import CommandParser, parse_command

if TYPE_CHECKING:
    from rtp_llm.offline import Model

_DESCRIPTION = """Classify texts: prints the best label, its score and the text, by tabs, in the
order of the texts. A token classifier finds entities: for each the number of
its text from 0, the characters from and to which it goes, label, score and
word, by tabs."""
_EXAMPLE = "printf 'so sunny\\nhe drove\\n' | rtp-llm classify cardiffnlp/twitter-roberta-base-sentiment-latest --json"
_OF_TEXTS, _OF_TOKENS = ("pairs", "activation"), ("aggregation_strategy", "ignore_labels", "stride")


def main(argv: Sequence[str]) -> None:
    """Parse, classify, print."""
    parser = CommandParser("rtp-llm classify", _DESCRIPTION, example=_EXAMPLE, needs_checkpoint=True)
    parser.add_argument("texts", metavar="TEXTS", nargs="?", default=STDIN, help=TEXTS_HELP)
    parser.add_argument(
        "--column", metavar="NAME", help=f"{COLUMN_HELP}; of pairs two, by a comma (default: text; text,text_pair)"
    )
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
        "--ignore_labels",
        metavar="LABELS",
        help="token classifiers: labels that are left out, by commas; empty: none (default: O)",
    )
    parser.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="token classifiers: read a text over the limit in windows that overlap by N tokens (default: cut it)",
    )
    parser.add_argument("--json", action="store_true", help="JSON lines, with the scores of all labels, the best first")
    config, arguments = parse_command(parser, argv, os.environ, EngineConfig)
    _classify(config, arguments)


def _classify(config: EngineConfig, arguments: Any) -> None:
    inputs = _pairs(arguments) if arguments.pairs else read_texts(arguments.texts, arguments.column)
    with load(config) as model:
        is_of_tokens = TaskType.TOKEN_CLASSIFY in model.info.tasks
        _check_goes_with(arguments, is_of_tokens)
        if is_of_tokens:
            _entities(model, inputs, arguments)
        else:
            _labels(model, inputs, arguments)
        has_windows = is_of_tokens and arguments.aggregation_strategy != "none"
        kind, way_out = "pairs" if arguments.pairs else "texts", "say --stride N" if has_windows else "split them"
        tell_cuts("rtp-llm classify", model, f"{len(inputs)} {kind}", way_out)


def _pairs(arguments: Any) -> list[tuple[str, ...]]:
    if not is_table(arguments.texts):
        check_no_column(arguments.column)
        return [_pair(line, number) for number, line in enumerate(read_lines(arguments.texts), 1)]
    columns = (arguments.column or "text,text_pair").split(",")
    if len(columns) != 2:
        raise ConfigError(f"column: {arguments.column!r:.100} is not two names with a comma between", param="column")
    return read_columns(arguments.texts, columns)


def _check_goes_with(arguments: Any, is_of_tokens: bool) -> None:
    """ConfigError for an option that means another kind of classifier."""
    for name in _OF_TEXTS if is_of_tokens else _OF_TOKENS:
        if getattr(arguments, name) not in (None, False):
            kind = "tokens, and this is for labels of texts" if is_of_tokens else "texts, and this is for tokens"
            raise ConfigError(f"{name}: this checkpoint labels {kind}; leave it out", param=name)


def _labels(model: "Model", inputs: list[Any], arguments: Any) -> None:
    rows = model.classify(inputs, progress=progress(), activation=arguments.activation)
    for index, (one, row) in enumerate(zip(inputs, rows.tolist(), strict=True)):
        text = one if isinstance(one, str) else "\t".join(one)
        best_first = sorted(zip(model.info.labels, row, strict=True), key=lambda entry: -entry[1])
        if arguments.json:
            named = [{"label": label, "score": score} for label, score in best_first]
            write_out(json_line({"index": index, "labels": named, "text": text}))
        else:
            label, score = best_first[0]
            write_out(f"{label}\t{score:.6g}\t{in_a_line(text)}\n")


def _entities(model: "Model", texts: list[Any], arguments: Any) -> None:
    given = {name: getattr(arguments, name) for name in _OF_TOKENS}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if "ignore_labels" in options:
        options["ignore_labels"] = [label.strip() for label in options["ignore_labels"].split(",") if label.strip()]
    found = model.entities(texts, progress=progress(), **options)
    for index, (text, entities) in enumerate(zip(texts, found, strict=True)):
        if arguments.json:
            rows = [entity.as_dict() for entity in entities]
            write_out(json_line({"index": index, "entities": rows, "text": text}))
            continue
        for one in entities:
            write_out(f"{index}\t{one.start}\t{one.end}\t{one.label}\t{one.score:.6g}\t{in_a_line(one.word)}\n")


def _pair(line: str, number: int) -> tuple[str, str]:
    first, tab, second = line.partition("\t")
    if not tab:
        raise InvalidRequest(f"line {number} has no tab; with --pairs, a line is two texts with a tab between them")
    return first, second
