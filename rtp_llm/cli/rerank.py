"""`rtp-llm rerank CHECKPOINT QUERY [DOCUMENTS]`: texts, best first."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rtp_llm.cli.terminal import in_a_line, json_line, load, progress, tell_cuts, write_out
from rtp_llm.cli.texts import COLUMN_HELP, STDIN, TEXTS_HELP, read_texts
from rtp_llm.config import EngineConfig
from rtp_llm.core import TaskType
from rtp_llm.flags import CommandParser, parse_command

if TYPE_CHECKING:
    from rtp_llm.offline import Ranked

_DESCRIPTION = """Score documents for a query; prints rank, score and text, by tabs, the best
first. The score is the reranker's; of a checkpoint that is none, MaxSim of its
tokens' vectors, or the cosine of its dense ones."""
_EXAMPLE = "printf 'so sunny\\nhe drove\\n' | rtp-llm rerank sentence-transformers/all-MiniLM-L6-v2 'the weather'"


def main(argv: Sequence[str]) -> None:
    """Parse, score, print."""
    parser = CommandParser("rtp-llm rerank", _DESCRIPTION, example=_EXAMPLE, needs_checkpoint=True)
    parser.add_argument("query", metavar="QUERY", help="what the documents are to answer")
    parser.add_argument("documents", metavar="DOCUMENTS", nargs="?", default=STDIN, help=TEXTS_HELP)
    parser.add_argument("--column", metavar="NAME", help=f"{COLUMN_HELP} (default: text)")
    parser.add_argument("--top_k", type=int, metavar="N", help="print the N best alone")
    parser.add_argument(
        "--activation", choices=("none", "sigmoid"), help="of a reranker's scores (default: the checkpoint's own)"
    )
    parser.add_argument("--instruction", metavar="TEXT", help="what a language model that reranks is told to look for")
    parser.add_argument("--json", action="store_true", help="JSON lines, with each document's place counted from 0")
    config, arguments = parse_command(parser, argv, os.environ, EngineConfig)
    if arguments.top_k is not None and arguments.top_k < 1:
        parser.error(f"top_k: {arguments.top_k} is below the least allowed, 1")
    _rerank(config, arguments)


def _rerank(config: EngineConfig, arguments: Any) -> None:
    documents = read_texts(arguments.documents, arguments.column)
    options = {name: getattr(arguments, name) for name in ("top_k", "activation", "instruction")}
    with load(config) as model:
        ranked = model.rerank(arguments.query, documents, progress=progress(), **options)
        is_paired = TaskType.RERANK in model.info.tasks
        inputs = f"{len(documents)} documents" if is_paired else f"{1 + len(documents)} texts, the query among them,"
        _print(ranked, arguments)
        tell_cuts("rtp-llm rerank", model, inputs)


def _print(ranked: "list[Ranked]", arguments: Any) -> None:
    for rank, entry in enumerate(ranked, 1):
        if arguments.json:
            write_out(json_line({"rank": rank, "index": entry.index, "score": entry.score, "document": entry.document}))
        else:
            write_out(f"{rank}\t{entry.score:.6g}\t{in_a_line(entry.document)}\n")
