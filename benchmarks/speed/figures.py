"""From what was measured to what is printed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Final

import attrs

NONE: Final = "–"  # noqa: RUF001 - a dash, where there is nothing to say


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of the values doesn't exceed.

    Args:
        values: The values, in any order.
        share: From 0 to 1.
    """
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 1) -> str:
    """The median of the rounds, and the least and the most.

    Args:
        values: One value a round.
        scale: What they are multiplied with.
        digits: How many digits after the point.
    """
    middle, least, most = (
        f"{value * scale:,.{digits}f}"
        for value in (statistics.median(values), min(values), max(values))
    )
    return middle if len(values) == 1 else f"{middle} ({least} to {most})"


def ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """How many times the median of one peer's rounds is the other's.

    Args:
        values: One value a round.
        base: Those of whom it is compared with.
    """
    return statistics.median(values) / statistics.median(base)


@attrs.frozen
class Table:
    """What is printed.

    Attributes:
        title: What it shows.
        columns: The heads of its columns.
        rows: Its cells.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@attrs.frozen
class Plot:
    """What is drawn.

    Attributes:
        name: The file's name.
        title: What it shows.
        unit: What its values are.
        groups: What each series has values for.
        series: The values of each peer, one a group.
        kind: Bars for one series, dots for several, or lines that join those of one peer.
        tips: For dots: a second, higher value for each.
    """

    name: str
    title: str
    unit: str
    groups: tuple[str, ...]
    series: dict[str, list[float]]
    kind: str = attrs.field(
        default="bars", validator=attrs.validators.in_({"bars", "dots", "lines"})
    )
    tips: dict[str, list[float]] | None = None


@attrs.frozen
class Goal:
    """What the library wants to reach.

    Attributes:
        what: What is compared.
        wanted: What is wanted, in words.
        measured: What was measured, in words.
        reached: Whether it is reached; None if it wasn't measured.
    """

    what: str
    wanted: str
    measured: str = NONE
    reached: bool | None = None


def at_least(what: str, wanted: float, measured: float | None) -> Goal:
    """A goal for a figure that is to be large.

    Args:
        what: What is compared.
        wanted: The least that is wanted.
        measured: What was measured, None if it wasn't.
    """
    text = f"at least {wanted:g}"
    if measured is None:
        return Goal(what, text)
    return Goal(what, text, f"{measured:.2f}", measured >= wanted)


def at_most(what: str, wanted: float, measured: float | None) -> Goal:
    """A goal for a figure that is to be small.

    Args:
        what: What is compared.
        wanted: The most that is wanted.
        measured: What was measured, None if it wasn't.
    """
    text = f"at most {wanted:.3g}"
    if measured is None:
        return Goal(what, text)
    return Goal(what, text, f"{measured:.2f}", measured <= wanted)


@attrs.frozen
class Report:
    """What a benchmark has found.

    Attributes:
        name: The benchmark's name.
        about: What was measured, and how to read it; line breaks in it mean nothing.
        tables: The figures.
        goals: What is wanted, and what was found.
        plots: The figures, drawn.
    """

    name: str
    about: str
    tables: list[Table]
    goals: list[Goal] = attrs.field(factory=list)
    plots: list[Plot] = attrs.field(factory=list)
