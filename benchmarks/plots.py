"""The JSON of benchmarks/results as pictures: `python -m benchmarks.plots`.

cpu-throughput.png  texts a second of each engine, by model and workload
cpu-latency.png     one query at a time
growth.png          with cores, length and corpus
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot

from benchmarks.peers import OURS
from benchmarks.report import processor

_TITLE_INCHES = 0.15  # beyond what the layout leaves for it
RESULTS = Path(__file__).parent / "results"
_COLOURS = {
    OURS: "#d1495b", "openvino": "#2e86ab", "openvino default": "#7fb7d3", "onnxruntime": "#3d9970",
    "ctranslate2": "#8d6a9f", "sentence-transformers": "#9a9a9a",
}  # fmt: skip
_MODELS = ["minilm", "bge-base", "bge-large", "bge-m3"]
_WORKLOADS = {"passages": "passages, ~100 tokens", "short": "queries, ~10 tokens", "long": "512 tokens"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=__doc__)
    parser.add_argument("--folder", type=Path, default=RESULTS)
    folder = parser.parse_args().folder
    matplotlib.use("Agg")
    pyplot.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110})
    runs = read_runs(folder)
    if runs:
        throughput(runs).savefig(folder / "cpu-throughput.png")
    if wide := {model: run for model, run in runs.items() if _has_latencies(run)}:
        latency(wide).savefig(folder / "cpu-latency.png")
    if (folder / "growth.json").exists():
        growth(json.loads((folder / "growth.json").read_text())).savefig(folder / "growth.png")
    print("\n".join(str(path) for path in sorted(folder.glob("*.png"))))


def read_runs(folder: Path) -> dict[str, Any]:
    """What was measured, by the model's name and the processor; small models first."""
    runs = [(path.stem.split("-", 1)[1], json.loads(path.read_text())) for path in sorted(folder.glob("cpu-*.json"))]
    named = {f"{_model(stem)}, {processor(run['machine'])}": run for stem, run in runs}
    return dict(sorted(named.items(), key=lambda entry: (_MODELS.index(entry[0].split(",")[0]), entry[0])))


def _model(stem: str) -> str:
    return next(model for model in _MODELS if stem.startswith(model))


def _has_latencies(run: Mapping[str, Any]) -> bool:
    """Of engines on all cores too: with a thread a worker, which is no layout for one query, peers would look slow."""
    return bool(best(run, "latencies", "short")) and any("wide" in name for name in run["engines"])


def family(engine: str) -> str:
    """The engine without its settings: "onnxruntime fused wide" and "onnxruntime streams" are one family."""
    settings = {"wide", "streams", "fused", "fp16", "bf16", "int8", "bs8", "bs32"}
    return " ".join(word for word in engine.split() if word not in settings)


def best(run: Mapping[str, Any], measure: str, key: str) -> dict[tuple[str, str], float]:
    """(family, precision) -> its best engine's texts a second, or its least median seconds."""
    found: dict[tuple[str, str], float] = {}
    for name, engine in run["engines"].items():
        if engine["status"] != "ok" or key not in engine.get(measure, {}):
            continue
        value = engine[measure][key]
        value = value["p50"] if isinstance(value, dict) else value
        place = family(name), engine["precision"]
        better = min if measure == "latencies" else max
        found[place] = better(found.get(place, value), value)
    return found


def throughput(runs: Mapping[str, Any]) -> Any:
    """A row a model, a column a workload; bars of all families, fp32 above what is less."""
    columns = [key for key in _WORKLOADS if any(key in run["workloads"] for run in runs.values())]
    figure, axes = pyplot.subplots(
        len(runs), len(columns), figsize=(4.3 * len(columns), 3 * len(runs) + 0.6), squeeze=False
    )
    for row, (model, run) in enumerate(runs.items()):
        for column, key in enumerate(columns):
            found = best(run, "throughput", key)
            axes[row][column].set_visible(bool(found))
            _bars(axes[row][column], found, f"{model}: {_WORKLOADS[key]}", "texts a second")
    _finish(figure, f"Texts a second, text to vector, {_threads(runs)}; bold: this project")
    return figure


def latency(runs: Mapping[str, Any]) -> Any:
    """One query at a time, a panel a model."""
    columns = min(len(runs), 3)
    rows = -(-len(runs) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(4.3 * columns, 3 * rows + 0.4), squeeze=False)
    for axis in axes.flat[len(runs) :]:
        axis.set_visible(False)
    for axis, (model, run) in zip(axes.flat, runs.items(), strict=False):
        found = {place: 1e3 * value for place, value in best(run, "latencies", "short").items()}
        _bars(axis, found, model, "milliseconds, median (less is better)")
    _finish(figure, f"Latency of one query of ~10 tokens, {_threads(runs)}; bold: this project")
    return figure


def _bars(axis: Any, found: Mapping[tuple[str, str], float], title: str, label: str) -> None:
    order = ["fp32", "fp16", "bf16", "int8"]
    places = sorted(found, key=lambda place: (order.index(place[1]), -found[place]))
    heights = np.arange(len(places))[::-1].astype(float)
    heights -= [0.5 * order.index(precision) for _, precision in places]
    values = [found[place] for place in places]
    colours = [_COLOURS.get(name, "#555555") for name, _ in places]
    bars = axis.barh(heights, values, color=colours, height=0.8)
    axis.bar_label(bars, labels=[f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in values], padding=2)
    axis.set_yticks(heights, [f"{name.removesuffix(' default')} {precision}" for name, precision in places])
    for tick, (name, _) in zip(axis.get_yticklabels(), places, strict=True):
        tick.set_fontweight("bold" if name == OURS else "normal")
    axis.set_title(title, loc="left", fontsize=8, fontweight="bold")
    axis.set_xlabel(label, fontsize=8)
    axis.margins(x=0.16)


def growth(run: Mapping[str, Any]) -> Any:
    """A panel a part that was measured, each a line an engine."""
    panels = [
        ("cores", "cores", "texts_per_second", "passages a second", "cores"),
        ("lengths", "length", "tokens_per_second", "tokens a second", "tokens of a text (4 layers of bge-m3's shape)"),
        ("corpus", "texts", "tokens_per_second", "tokens a second", "texts in one call (MiniLM, 10 tokens each)"),
    ]
    panels = [panel for panel in panels if run["parts"].get(panel[0])]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.3 * len(panels), 3.8), squeeze=False)
    for axis, (part, x, y, label, title) in zip(axes[0], panels, strict=True):
        rows = run["parts"][part]
        for name in dict.fromkeys(row["engine"] for row in rows):
            own = [row for row in rows if row["engine"] == name]
            style = "--" if "int8" in name else "-"
            colour = _COLOURS.get(family(name), "#555555")
            line = axis.plot([row[x] for row in own], [row[y] for row in own], style, color=colour, marker="o", ms=4)
            line[0].set_label(name)
        if part == "cores":
            axis.set_xticks(sorted({row[x] for row in rows}))
        else:
            axis.set_xscale("log", base=2 if part == "lengths" else 10)
        axis.set_ylim(bottom=0)
        axis.set_xlabel(title)
        axis.set_title(label, loc="left", fontsize=9, fontweight="bold")
        axis.grid(alpha=0.25)
        axis.legend(fontsize=7, frameon=False, handlelength=4)
    _finish(figure, f"Growth, {processor(run['machine'])}")
    return figure


def _threads(runs: Mapping[str, Any]) -> str:
    dates = sorted({run["date"] for run in runs.values()})
    threads = dict.fromkeys(f"{run['threads']} threads" for run in runs.values())
    return f"{' or '.join(threads)}, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}"


def _finish(figure: Any, title: str) -> None:
    figure.suptitle(title, x=0.01, y=1 - _TITLE_INCHES / figure.get_figheight(), ha="left", va="top", fontsize=11)
    figure.tight_layout(rect=(0, 0, 1, 1 - 2 * _TITLE_INCHES / figure.get_figheight()))


if __name__ == "__main__":
    main()
