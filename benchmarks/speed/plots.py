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
    drawn = {"bars": _draw_bars, "dots": _draw_dots, "lines": _draw_lines}[plot.kind]
    with mpl.rc_context(_STYLE):
        rows = len(plot.groups) * (len(plot.series) + 1)
        height = 4.5 if plot.kind == "lines" else 1.5 + 0.17 * rows
        figure = Figure(figsize=(8, height), layout="constrained", facecolor="white")
        axes = figure.subplots()
        axes.set_title(plot.title, loc="left")
        drawn(axes, plot)
        if len(plot.series) > 1:
            figure.legend(loc="outside lower left", ncols=2, frameon=False)
        # No date and no version: the same figures make the same file.
        metadata = {"Date": None, "Creator": None}
        figure.savefig(folder / f"{plot.name}.svg", format="svg", metadata=metadata)


def _draw_bars(axes: Axes, plot: Plot) -> None:
    """One value for each group; what is this library's stands out."""
    (values,) = plot.series.values()
    colors = [_COLORS[0] if name.startswith("trio-broker") else "#999999" for name in plot.groups]
    bars = axes.barh(range(len(values)), values, 0.7, color=colors)
    axes.bar_label(bars, [_text(value) for value in values], padding=4)
    _show_groups(axes, plot)
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _draw_dots(axes: Axes, plot: Plot) -> None:
    """A dot for each value, and a line to its tip, on a logarithmic axis."""
    for index, (name, values) in enumerate(plot.series.items()):
        color = _COLORS[index % len(_COLORS)]
        height = (index + 0.5) / len(plot.series) * 0.8 - 0.4
        tips = plot.tips[name] if plot.tips is not None else values
        shown = [
            (value, tip, group + height)
            for group, (value, tip) in enumerate(zip(values, tips, strict=True))
            if value > 0
        ]
        starts, ends, places = ([one[column] for one in shown] for column in range(3))
        axes.plot(starts, places, "o", label=name, color=color, markersize=4)
        axes.hlines(places, starts, ends, color=color, linewidth=1)
        for value, tip, place in shown:
            text = _text(value) if tip == value else f"{_text(value)} – {_text(tip)}"  # noqa: RUF001
            axes.annotate(
                text, (tip, place), (4, 0), textcoords="offset points", va="center", fontsize=7
            )
    _show_groups(axes, plot)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.grid(axis="x", linewidth=0.3)


def _draw_lines(axes: Axes, plot: Plot) -> None:
    for index, (name, values) in enumerate(plot.series.items()):
        color = _COLORS[index % len(_COLORS)]
        axes.plot(range(len(values)), values, "o-", label=name, color=color)
    axes.set_xticks(range(len(plot.groups)), plot.groups)
    axes.set_ylabel(plot.unit)
    axes.set_ylim(0, 1.1 * max(map(max, plot.series.values())))


def _show_groups(axes: Axes, plot: Plot) -> None:
    axes.set_yticks(range(len(plot.groups)), plot.groups)
    axes.invert_yaxis()
    axes.set_xlabel(plot.unit)
    axes.margins(x=0.15)


def _text(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
