"""A table as bars: for each row its figure and its peers', with the figures and the ratio written on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]

#: Ours, then the peers in their order.
COLOURS = ("#1f5fa8", "#e08a2b", "#8a9a5b", "#b0706f", "#9a9a9a")
#: Inches.
WIDTH, BAR, GAP, FRAME = 10.0, 0.17, 0.12, 0.75


@dataclass(frozen=True)
class Plot:
    """How rows are drawn.

    Attributes:
        series: what each row's bars show: its key in the row, and its name in the legend. The first is ours.
        label: what stands beside a row's bars.
        note: what is written at our bar after the figure, such as the ratio.
        unit: of a row's figures; rows of one unit share an axis.
        style: how figures are written.
    """

    series: Sequence[tuple[str, str]]
    label: Callable[[Row], str]
    note: Callable[[Row], str]
    unit: Callable[[Row], str]
    style: str = ".3g"


def draw(path: Path, title: str, about: str, rows: Sequence[Row], plot: Plot) -> None:
    """Write a PNG.

    Args:
        path: the file.
        title: over the bars.
        about: under the title: command, machine, date.
        rows: in order.
        plot: how.

    Raises:
        ImportError: there is no matplotlib.
    """
    from matplotlib.figure import Figure

    panels: dict[str, list[Row]] = {}
    for row in rows:
        panels.setdefault(plot.unit(row), []).append(row)
    heights = [sum(_height(row, plot) for row in found) + FRAME for found in panels.values()]
    figure = Figure(figsize=(WIDTH, sum(heights) + 1.1), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (unit, found) in zip(axes, panels.items(), strict=True):
        _draw_panel(axis, found, plot, unit)
    axes[0].set_title(about, loc="left", fontsize=7, color="#555555", wrap=True)
    if len(plot.series) > 1:
        handles = {name: bar for axis in axes for bar, name in zip(*axis.get_legend_handles_labels(), strict=True)}
        names = [name for _, name in plot.series if name in handles]
        figure.legend([handles[name] for name in names], names, loc="outside lower left", ncols=5, fontsize=8)
    figure.savefig(path, dpi=110)


def _bars(row: Row, plot: Plot) -> list[tuple[int, float]]:
    """A row's bars: number of the series, value."""
    return [(number, row[key]) for number, (key, _) in enumerate(plot.series) if row.get(key) is not None]


def _height(row: Row, plot: Plot) -> float:
    return len(_bars(row, plot)) * BAR + GAP


def _draw_panel(axis: Any, rows: Sequence[Row], plot: Plot, unit: str) -> None:
    place = 0.0
    ticks, largest = [], max(value for row in rows for _, value in _bars(row, plot))
    for row in rows:
        bars = _bars(row, plot)
        ticks.append(place + (len(bars) - 1) * BAR / 2)
        for number, value in bars:
            axis.barh(place, value, BAR * 0.9, color=COLOURS[number % len(COLOURS)], label=plot.series[number][1])
            note = plot.note(row) if number == 0 else ""
            axis.text(
                value + largest * 0.006, place, f"{value:{plot.style}}  {note}".rstrip(), va="center", fontsize=7,
                fontweight="bold" if number == 0 else "normal",
            )  # fmt: skip
            place += BAR
        place += GAP
    axis.set_yticks(ticks, [plot.label(row) for row in rows], fontsize=8)
    axis.set_ylim(place - GAP, -BAR)
    axis.set_xlim(0, largest * 1.22)
    axis.set_xlabel(unit, fontsize=8)
    axis.tick_params(axis="x", labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", color="#dddddd", linewidth=0.5)
    axis.set_axisbelow(True)
