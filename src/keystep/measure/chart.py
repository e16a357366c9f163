"""Charts of this room: what is to be drawn as plain data, and matplotlib (the extra `plot`) to draw it as SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keystep.errors import MissingExtra
from keystep.files import write_text

COLOURS = ("#2f6f8f", "#b0563b", "#5c8a3c", "#7a5ea8", "#8a8a8a", "#c29a2e", "#3f9a94", "#a04a78")


@dataclass(frozen=True, slots=True)
class Line:
    """One line; `low` and `high` make a band about it. `style` is matplotlib's ("o-", "--", "bars" for bars beside one another). `like` is
    the number of the line whose colour it takes; None: one of its own."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    style: str = "-"
    like: int | None = None


@dataclass(frozen=True, slots=True)
class Chart:
    """One picture. `names` are the ticks of x where x counts things."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    names: Sequence[str] = ()
    log: str = ""  # "x", "y" or "xy"
    share: bool = True  # whether y is from 0 to 1


def svg(charts: Sequence[Chart], columns: int = 1) -> str:
    """All charts as one SVG; the same charts give the same text.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise MissingExtra("drawing a chart", "plot") from None
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "keystep"
    from matplotlib import pyplot

    rows = -(-len(charts) // columns)
    figure, grid = pyplot.subplots(rows, columns, figsize=(6.4 * columns, 4.0 * rows), layout="constrained", squeeze=False)
    for axes, chart in zip(grid.flat, charts, strict=False):
        _draw(axes, chart)
    for axes in list(grid.flat)[len(charts) :]:
        axes.set_visible(False)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    found = text.getvalue()
    return found[found.index("<svg") :]


def save(charts: Sequence[Chart], path: Path, columns: int = 2) -> None:
    """The charts in one file."""
    write_text(path, svg(charts, columns))


def _draw(axes: Any, chart: Chart) -> None:
    bars = [line for line in chart.lines if line.style == "bars"]
    for number, line in enumerate(chart.lines):
        colour = COLOURS[(number if line.like is None else line.like) % len(COLOURS)]
        label = line.label.replace("$", r"\$")
        if line.style == "bars":
            width = 0.8 / len(bars)
            shift = (bars.index(line) - (len(bars) - 1) / 2) * width
            axes.bar([x + shift for x in line.x], line.y, width, color=colour, label=label)
            continue
        axes.plot(line.x, line.y, line.style, color=colour, label=label, markersize=4)
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
    axes.set(title=chart.title.replace("$", r"\$"), xlabel=chart.x.replace("$", r"\$"), ylabel=chart.y.replace("$", r"\$"))
    axes.title.set_size(10)
    if "x" in chart.log:
        axes.set_xscale("log")
    if "y" in chart.log:
        axes.set_yscale("log")
    elif chart.share:
        axes.set_ylim(-0.04, 1.04)
    if chart.names:
        axes.set_xticks(range(len(chart.names)), [name.replace("$", r"\$") for name in chart.names], rotation=45, ha="right", fontsize=7)
    axes.grid(alpha=0.25)
    if any(line.label for line in chart.lines):
        axes.legend(fontsize=7, frameon=False)
