"""`rtp-llm quantize CHECKPOINT OUT`: a checkpoint with linear layers in 8 bits."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rtp_llm.cli.terminal import ended_in_order, progress, write_out
from rtp_llm.cli.texts import TEXTS_HELP, read_texts
from rtp_llm.config import EngineConfig
from rtp_llm.errors import InvalidRequest
from rtp_llm.flags import CommandParser, parse_command

if TYPE_CHECKING:
    from rtp_llm.quantize import Report

_DESCRIPTION = """Write a copy of a checkpoint whose linear layers are in 8 bits. It is loaded
like any other and answers with the bits of --quantization int8; its linear
layers take a quarter of the space.

Rows of built-in texts are compared with fp32. Where the cosines are below the
bars, the layers that do most harm stay in fp32: as few as reach them."""
_EXAMPLE = "rtp-llm quantize sentence-transformers/all-MiniLM-L6-v2 minilm-int8"


def main(argv: Sequence[str]) -> None:
    """Parse, quantise, print what was measured."""
    parser = CommandParser("rtp-llm quantize", _DESCRIPTION, example=_EXAMPLE, needs_checkpoint=True)
    parser.add_argument("out", metavar="OUT", help="folder to write, not there yet or empty")
    parser.add_argument("--texts", metavar="FILE", help=f"texts of your own to measure with ({TEXTS_HELP})")
    parser.add_argument("--least_cosine", type=float, metavar="N", default=0.995, help="of any text (default: 0.995)")
    parser.add_argument("--mean_cosine", type=float, metavar="N", default=0.998, help="of all texts (default: 0.998)")
    config, arguments = parse_command(parser, argv, os.environ, EngineConfig)
    for name in ("least_cosine", "mean_cosine"):
        if not 0 <= getattr(arguments, name) < 1:
            parser.error(f"{name}: {getattr(arguments, name):g} is not from 0 to below 1")
    _quantize(config, arguments.out, arguments.texts, (arguments.least_cosine, arguments.mean_cosine))


def _quantize(config: EngineConfig, out: str, texts: str | None, bars: tuple[float, float]) -> None:
    from rtp_llm.engine.likeness import Likeness
    from rtp_llm.quantize import Options, quantize

    lines = read_texts(texts, None) if texts else []
    if texts and not lines:
        raise InvalidRequest(f"{texts} is empty; give at least one text")
    with ended_in_order(), _bar() as on_progress:
        options = Options(bars=Likeness(*bars), lines=lines, on_progress=on_progress)
        report = quantize(config, Path(out), options)
    write_out(_as_text(report, out))


def _as_text(report: "Report", out: str) -> str:
    choice = report.choice
    lines = []
    if choice.alone:
        lines += ["alone in 8 bits        least      mean  kept"]
        for (number, name), found in sorted(choice.alone.items(), key=lambda entry: entry[1].mean):
            kept = "fp32" if (number, name) in choice.kept else ""
            lines.append(f"layer {number:3} {name:9} {found.least:9.5f} {found.mean:9.5f}  {kept}".rstrip())
    before, after = report.bytes_before / 1e6, report.bytes_after / 1e6
    lines += [
        f"cosine to fp32 over {report.num_texts} texts, all in 8 bits: {choice.all_quantized}",
        f"{len(choice.kept)} of {len(report.matrices)} weights stay in fp32: {choice.chosen}",
        f"{before:.1f} MB -> {after:.1f} MB: {out}",
    ]
    return "\n".join(lines) + "\n"


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on a terminal."""
    from tqdm import tqdm

    with tqdm(disable=not progress(), leave=False) as bar:
        shown = ""

        def show(step: str, done: int, total: int) -> None:
            nonlocal shown
            if step != shown:
                shown = step
                bar.reset(total)
                bar.set_description(step)
            bar.total = total
            bar.update(done - bar.n)

        yield show
