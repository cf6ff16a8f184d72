"""Pictures of the load measurements, from the same numbers as the tables. Needs matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_SIZE = (6.4, 4.0)
_DPI = 90


def plot_latencies(windows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """A picture a mix: p50 and p99 of each server over the requests that it was offered a second."""
    for mix in {window["mix"]: None for window in windows}:
        own = [window for window in windows if window["mix"] == mix and window["share"]]
        lines = {}
        for server in {window["server"]: None for window in own}:
            rows = [window for window in own if window["server"] == server]
            for key in ("p50_ms", "p99_ms"):
                label = f"{server} {key.removesuffix('_ms')}"
                known = [row for row in rows if row[key] is not None]
                lines[label] = ([row["offered"] for row in known], [row[key] for row in known])
        plot(lines, folder / f"load-{mix}.png", mix, "requests/s offered", "ms")


def plot(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    path: Path,
    title: str,
    x_label: str,
    y_label: str,
    scale: str = "log",
) -> None:
    """Named lines of (x, y) as one PNG; `scale` is that of both axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    for label, (x, y) in lines.items():
        axes.plot(x, y, marker="o", label=label)
    axes.set(title=title, xlabel=x_label, ylabel=y_label, xscale=scale, yscale=scale)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)
