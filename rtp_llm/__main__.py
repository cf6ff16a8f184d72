"""`rtp-llm serve …` and `rtp-llm embed …`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np


def main() -> None:
    """Run the subcommand that the command line names."""
    commands: dict[str, Callable[[Sequence[str]], None]] = {"serve": _serve, "embed": _embed}
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("--version", "-V"):
        from rtp_llm import __version__

        sys.stdout.write(f"rtp-llm {__version__}\n")
        return
    if name not in commands:
        wanted = name in ("", "-h", "--help")
        text = f"usage: rtp-llm {{{','.join(commands)}}} …  (rtp-llm COMMAND --help says more)\n"
        (sys.stdout if wanted else sys.stderr).write(text if wanted else f"rtp-llm: unknown command {name!r}\n{text}")
        sys.exit(0 if wanted else 2)
    commands[name](sys.argv[2:])


def _serve(argv: Sequence[str]) -> None:
    from rtp_llm.start_server import main as start

    start(argv, prog="rtp-llm serve")


def _embed(argv: Sequence[str]) -> None:
    """One text a line in, an .npy matrix out."""
    parser = argparse.ArgumentParser(prog="rtp-llm embed", description=_embed.__doc__)
    parser.add_argument("checkpoint", help="folder or hub id")
    parser.add_argument("texts", type=Path, help="file with one text a line")
    parser.add_argument("vectors", type=Path, help="the .npy file to write: fp32 [lines, dim]")
    parser.add_argument("--dimensions", type=int, default=None)
    arguments = parser.parse_args(argv)
    from rtp_llm.errors import RtpError
    from rtp_llm.offline import Model

    try:
        # Not splitlines(), which also ends lines at form feeds and Unicode's separators.
        lines = arguments.texts.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        with Model(arguments.checkpoint) as model:
            vectors = model.embed(lines, dimensions=arguments.dimensions, progress=sys.stderr.isatty())
        np.save(arguments.vectors, vectors)
    except (RtpError, OSError, UnicodeDecodeError) as error:
        parser.exit(1, f"rtp-llm embed: {error}\n")


if __name__ == "__main__":
    main()
