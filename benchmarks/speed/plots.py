"""Figures, drawn: small SVG files, which are the same for the same figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.speed.figures import Plot

_COLORS: Final = ("#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#009e73", "#999999")
_STYLE: Final[dict[Any, Any]] = {
    "svg.hashsalt": "trio-broker",
    "svg.fonttype": "none",  # text stays text, which is small and can be searched
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(plot: Plot, folder: Path) -> None:
    """Draw a plot into a file of its name.

    Args:
        plot: The plot.
        folder: Where the file goes.
    """
    with mpl.rc_context(_STYLE):
        lines = len(plot.groups) * len(plot.series)
        height = 4.5 if plot.kind == "lines" else 1.4 + 0.2 * lines + 0.2 * len(plot.groups)
        figure = Figure(figsize=(8, height), layout="constrained", facecolor="white")
        axes = figure.subplots()
        axes.set_title(plot.title, loc="left")
        if plot.kind == "lines":
            _draw_lines(axes, plot)
        else:
            _draw_bars(axes, plot)
        if len(plot.series) > 1:
            figure.legend(loc="outside lower left", ncols=2, frameon=False)
        # No date and no version: the same figures make the same file.
        metadata = {"Date": None, "Creator": None}
        figure.savefig(folder / f"{plot.name}.svg", format="svg", metadata=metadata)


def _draw_bars(axes: Axes, plot: Plot) -> None:
    height = 0.8 / len(plot.series)
    for index, (name, values) in enumerate(plot.series.items()):
        places = [group + (index + 0.5) * height - 0.4 for group in range(len(plot.groups))]
        color = _COLORS[index % len(_COLORS)]
        axes.barh(places, values, height * 0.9, label=name, color=color)
        tips = plot.tips[name] if plot.tips is not None else values
        axes.plot(tips, places, "|", color=color, markersize=8 if plot.tips else 0)
        for place, value, tip in zip(places, values, tips, strict=True):
            text = f"{value:,.3g}" if value < 1_000 else f"{value:,.0f}"
            axes.annotate(
                text,
                (max(value, tip), place),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
            )
    axes.set_yticks(range(len(plot.groups)), plot.groups)
    axes.invert_yaxis()
    axes.set_xlabel(plot.unit)
    if plot.logarithmic:
        axes.set_xscale("log")
    axes.margins(x=0.12)


def _draw_lines(axes: Axes, plot: Plot) -> None:
    for index, (name, values) in enumerate(plot.series.items()):
        color = _COLORS[index % len(_COLORS)]
        axes.plot(range(len(values)), values, "o-", label=name, color=color)
    axes.set_xticks(range(len(plot.groups)), plot.groups)
    axes.set_ylabel(plot.unit)
    axes.set_ylim(bottom=0)
