"""`rtp-llm rerank CHECKPOINT QUERY [DOCUMENTS]`: lines of text, best first."""

import os
import sys
from collections.abc import Sequence
from typing import Any

from rtp_llm.cli.terminal import LINES_HELP, STDIN, failures_reported, json_line, load, progress, read_lines
from rtp_llm.config import EngineConfig
from rtp_llm.flags import CommandParser, parse_command

_DESCRIPTION = "Score a document a line for a query; prints rank, score and text, by tabs, the best first."


def main(argv: Sequence[str]) -> None:
    """Parse, score, print."""
    parser = CommandParser("rtp-llm rerank", _DESCRIPTION, needs_checkpoint=True)
    parser.add_argument("query", metavar="QUERY", help="what the documents are to answer")
    parser.add_argument("documents", metavar="DOCUMENTS", nargs="?", default=STDIN, help=LINES_HELP)
    parser.add_argument("--top_k", type=int, metavar="N", help="print the N best alone")
    parser.add_argument(
        "--activation", choices=("none", "sigmoid"), help="of the scores (default: the checkpoint's own)"
    )
    parser.add_argument("--instruction", help="what a language model that reranks is told to look for")
    parser.add_argument("--json", action="store_true", help="JSON lines, with each document's line counted from 0")
    config, arguments = parse_command(parser, argv, os.environ, EngineConfig)
    if arguments.top_k is not None and arguments.top_k < 1:
        parser.error(f"top_k: {arguments.top_k} is below the least allowed, 1")
    with failures_reported(parser.prog):
        _rerank(config, arguments)


def _rerank(config: EngineConfig, arguments: Any) -> None:
    documents = read_lines(arguments.documents)
    options = {name: getattr(arguments, name) for name in ("top_k", "activation", "instruction")}
    with load(config) as model:
        ranked = model.rerank(arguments.query, documents, progress=progress(), **options)
    for rank, entry in enumerate(ranked, 1):
        if arguments.json:
            sys.stdout.write(
                json_line({"rank": rank, "index": entry.index, "score": entry.score, "document": entry.document})
            )
        else:
            sys.stdout.write(f"{rank}\t{entry.score:.6g}\t{entry.document}\n")
