"""`rtp-llm verify CHECKPOINT`: a checkpoint's results beside those of its authors' code."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rtp_llm.cli.terminal import ended_in_order, json_line, progress, write_out
from rtp_llm.cli.texts import LINES_HELP, read_lines
from rtp_llm.config import EngineConfig
from rtp_llm.errors import InvalidRequest
from rtp_llm.flags import CommandParser, parse_command

_DESCRIPTION = """Compare a checkpoint's results with those of its authors' code
(sentence-transformers, transformers, FlagEmbedding, where installed) and with
published numbers (where the model is known).

Exit status: 0 equal within the bound, 1 different, or it cannot be loaded,
2 wrong usage, 3 nothing but our own checks could be made."""
_EXAMPLE = "rtp-llm verify sentence-transformers/all-MiniLM-L6-v2 --max_seq_len 128"


def main(argv: Sequence[str]) -> None:
    """Parse, compare, print, and exit with the verdict."""
    parser = CommandParser("rtp-llm verify", _DESCRIPTION, example=_EXAMPLE)
    parser.add_argument(
        "--reference", default="", metavar="CHECKPOINT", help="what the authors' code reads, if another"
    )
    parser.add_argument("--texts", metavar="FILE", help=f"texts of your own; a pair has a tab in it ({LINES_HELP})")
    parser.add_argument(
        "--bound", type=float, default=1e-5, help="largest difference, relative above 1 (default: 1e-5)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    config, arguments = parse_command(parser, argv, os.environ, EngineConfig)
    if not arguments.bound > 0:
        parser.error(f"bound: {arguments.bound:g} is not above 0")
    sys.exit(_verify(config, arguments))


def _verify(config: EngineConfig, arguments: Any) -> int:
    """-> the exit status."""
    from rtp_llm.verify import Options, verify
    from rtp_llm.verify.table import as_object, as_text

    lines = read_lines(arguments.texts) if arguments.texts else []
    if arguments.texts and not lines:
        raise InvalidRequest(f"{arguments.texts} is empty; give at least one text")
    with ended_in_order(), _bar() as on_progress:
        options = Options(
            reference=arguments.reference,
            lines=lines,
            bound=arguments.bound,
            on_progress=on_progress,
        )
        report = verify(config, options)
    write_out(json_line(as_object(report)) if arguments.json else as_text(report))
    return report.verdict.status


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal."""
    from tqdm import tqdm

    with tqdm(unit="answer", disable=not progress(), leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
