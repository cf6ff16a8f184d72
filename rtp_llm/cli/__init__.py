"""The subcommands of `rtp-llm`, one file each: a `main(argv)` that exits with a status of its own."""

import sys
from collections.abc import Sequence
from importlib import import_module

from rtp_llm.cli.terminal import failures_reported, prepare, write_out

# command -> (module, what it does).
COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("rtp_llm.cli.serve", "answer HTTP"),
    "embed": ("rtp_llm.cli.embed", "lines of text to vectors, sparse or dense"),
    "rerank": ("rtp_llm.cli.rerank", "lines of text by how well they answer a query"),
    "classify": ("rtp_llm.cli.classify", "lines of text to labels"),
    "quantize": ("rtp_llm.cli.quantize", "write a checkpoint with linear layers in 8 bits"),
    "verify": ("rtp_llm.cli.verify", "compare a checkpoint's results with its authors' code"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the subcommand that the command line names."""
    prepare()
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    with failures_reported(f"rtp-llm {name}" if name in COMMANDS else "rtp-llm"):
        _run(name, arguments)


def _run(name: str, arguments: list[str]) -> None:
    if name in ("--version", "-V"):
        from rtp_llm import __version__

        write_out(f"rtp-llm {__version__}\n")
    elif name in COMMANDS:
        import_module(COMMANDS[name][0]).main(arguments[1:])
    elif name in ("", "-h", "--help"):
        write_out(_usage())
    else:
        sys.stderr.write(f"rtp-llm: unknown command {name!r}\n{_usage()}")
        sys.exit(2)


def _usage() -> str:
    lines = [f"usage: rtp-llm {{{','.join(COMMANDS)}}} …", ""]
    lines += [f"  {name:9} {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join([*lines, "", "rtp-llm COMMAND --help says more"]) + "\n"
