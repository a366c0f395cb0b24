"""Results as pictures: bars for rows with peers, curves for what grows with a size.

A device has the same colour in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Row = dict[str, Any]

#: By what is measured; colours that people with any colour vision tell apart (Okabe and Ito).
COLOURS = {
    "nicmodel": "#0072B2",
    "idpf": "#F0E442",
    "devmem": "#56B4E9",
    "virtio-net": "#E69F00",
    "vmxnet3": "#009E73",
    "e1000e": "#CC79A7",
    "igb": "#999999",
    "baseline": "#444444",  # a bare copy, a bare interpreter: no NIC at all
    "other": "#D55E00",
}
_GOAL = "#C00000"
#: Rows of one unit share an axis unless one is that many times longer than another: else the short one cannot be read.
_SCALE = 10.0
#: What a logarithmic axis shows at least, from its lower end to its upper.
_LEAST_RANGE = 30.0
#: Inches.
_WIDTH, _BAR, _GAP, _FRAME = 10.0, 0.17, 0.12, 0.75


class Picture(Protocol):
    """How the rows of a benchmark are drawn."""

    def draw(self, path: Path, title: str, about: str, rows: Sequence[Row]) -> None:
        """Write a PNG.

        Args:
            path: the file.
            title: over the picture.
            about: under the title: command, machine, date.
            rows: in order.

        Raises:
            ImportError: there is no matplotlib.
        """


@dataclass(frozen=True)
class Series:
    """One bar of each row, or one curve: its key in the rows, its name in the legend, whose colour it has."""

    key: str
    name: str
    colour: str = "nicmodel"


@dataclass(frozen=True)
class Plot:
    """Bars: each row's figure and its peers', with the figures and the ratio written on them.

    Attributes:
        series: what each row's bars show; the first is ours.
        label: what stands beside a row's bars.
        note: what is written at our bar after the figure, such as the ratio.
        unit: of a row's figures; rows of one unit and scale share an axis.
        style: how figures are written.
        goal: where a row's goal is on the axis: a line across its bars.
    """

    series: Sequence[Series]
    label: Callable[[Row], str]
    note: Callable[[Row], str]
    unit: Callable[[Row], str]
    style: str = ".3g"
    goal: Callable[[Row], float | None] = field(default=lambda row: None)

    def draw(self, path: Path, title: str, about: str, rows: Sequence[Row]) -> None:
        """Write a PNG; see `Picture`."""
        panels = self._panels(rows)
        heights = [sum(self._height(row) for row in found) + _FRAME for _, found in panels]
        figure, axes = _figure(title, about, _WIDTH, heights)
        for axis, (unit, found) in zip(axes, panels, strict=True):
            self._draw_panel(axis, found, unit)
        _legend(figure, axes)
        figure.savefig(path, dpi=110)

    def _bars(self, row: Row) -> list[tuple[Series, float]]:
        return [(one, row[one.key]) for one in self.series if row.get(one.key) is not None]

    def _height(self, row: Row) -> float:
        return len(self._bars(row)) * _BAR + _GAP

    def _panels(self, rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
        """The unit and the rows of each axis."""
        panels: list[tuple[str, list[Row]]] = []
        for row in rows:
            length = max((value for _, value in self._bars(row)), default=0)
            for unit, found in panels:
                lengths = [max(value for _, value in self._bars(other)) for other in found] + [length]
                if unit == self.unit(row) and max(lengths) <= _SCALE * min(lengths):
                    found.append(row)
                    break
            else:
                panels.append((self.unit(row), [row]))
        return panels

    def _draw_panel(self, axis: Any, rows: Sequence[Row], unit: str) -> None:
        place = 0.0
        goals = [goal for row in rows if (goal := self.goal(row)) is not None]
        ticks, largest = [], max([value for row in rows for _, value in self._bars(row)] + goals)
        for row in rows:
            bars = self._bars(row)
            ticks.append(place + (len(bars) - 1) * _BAR / 2)
            if (goal := self.goal(row)) is not None:
                ends = (place - _BAR / 2, place + (len(bars) - 0.5) * _BAR)
                axis.vlines(goal, *ends, colors=_GOAL, linestyles="dashed", linewidth=1.2, label="goal", zorder=3)
            for number, (one, value) in enumerate(bars):
                axis.barh(place, value, _BAR * 0.9, color=COLOURS[one.colour], label=one.name)
                note = self.note(row) if number == 0 else ""
                axis.annotate(
                    f"{value:{self.style}}  {note}".rstrip(), (value, place), (4, 0), textcoords="offset points",
                    va="center", fontsize=7, fontweight="bold" if number == 0 else "normal", zorder=4,
                    bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
                )  # fmt: skip
                place += _BAR
            place += _GAP
        axis.set_yticks(ticks, [self.label(row) for row in rows], fontsize=8)
        axis.set_ylim(place - _GAP, -_BAR)
        axis.set_xlim(0, largest * 1.3)
        axis.set_xlabel(unit, fontsize=8)
        _plain(axis, "x")


@dataclass(frozen=True)
class Curve:
    """A line through some rows.

    Attributes:
        name: in the legend.
        among: which rows.
        x: where a row is.
        y: and its figure there.
        colour: a name in `COLOURS`.
        style: of matplotlib's lines: "-", "--" …
        marker: of matplotlib's markers.
        goal: it should not grow faster than `x` to this power, a line from its first point; None: it may.
    """

    name: str
    among: Callable[[Row], bool]
    x: Callable[[Row], float]
    y: Callable[[Row], float]
    colour: str = "nicmodel"
    style: str = "-"
    marker: str = "o"
    goal: float | None = None


@dataclass(frozen=True)
class Panel:
    """Curves that share axes; both grow by factors of ten, or of two for `x`, where `log` says so."""

    title: str
    x: str
    y: str
    curves: Sequence[Curve]
    log: bool = True
    goal: float | None = None


@dataclass(frozen=True)
class Curves:
    """Panels of curves, in rows of two; each with a legend of its own, or one for all."""

    panels: Sequence[Panel]
    own_legends: bool = False

    def draw(self, path: Path, title: str, about: str, rows: Sequence[Row]) -> None:
        """Write a PNG; see `Picture`. What was not measured is left out."""
        lines = math.ceil(len(self.panels) / 2)
        figure, axes = _figure(title, about, _WIDTH, [3.2] * lines, 2)
        for axis in axes[len(self.panels) :]:
            axis.set_axis_off()
        for axis, panel in zip(axes, self.panels, strict=False):
            axis.set_title(panel.title, fontsize=9, loc="left")
            ticks: set[float] = set()
            for curve in panel.curves:
                points = sorted((curve.x(row), curve.y(row)) for row in rows if curve.among(row))
                ticks |= {x for x, _ in points}
                if points:
                    axis.plot(
                        *zip(*points, strict=True), curve.style, color=COLOURS[curve.colour], label=curve.name,
                        marker=curve.marker, markersize=4, linewidth=1.4,
                    )  # fmt: skip
                if points and curve.goal is not None:
                    (first, value), (last, _) = points[0], points[-1]
                    ends = [value, value * (last / first) ** curve.goal]
                    axis.plot(
                        [first, last], ends, color=_GOAL, linestyle="dashed", linewidth=0.8, alpha=0.6, label="goal"
                    )
            axis.set_xscale("log", base=2)
            axis.set_xticks(sorted(ticks), [_short(tick) for tick in sorted(ticks)], fontsize=7)
            if panel.log:
                axis.set_yscale("log")
                axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
                _widen(axis)
            else:
                axis.set_ylim(bottom=0)
            axis.minorticks_off()
            if panel.goal is not None:
                axis.axhline(panel.goal, color=_GOAL, linestyle="dashed", linewidth=1.2, label="goal")
            axis.set_xlabel(panel.x, fontsize=8)
            axis.set_ylabel(panel.y, fontsize=8)
            _plain(axis, "both")
            if self.own_legends:
                found = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
                names = sorted(found, key="goal".__eq__)  # last
                axis.legend([found[name] for name in names], names, fontsize=7, framealpha=0.7)
        if not self.own_legends:
            _legend(figure, axes)
        figure.savefig(path, dpi=110)


def _short(number: float) -> str:
    """A size beside an axis; thousands, where it has no others, by a letter."""
    return f"{number / 1000:,.0f}k" if number >= 10_000 and number % 1000 == 0 else f"{number:,.0f}"


def _widen(axis: Any) -> None:
    """Show at least so much of a logarithmic axis that a curve which is flat looks flat."""
    low, high = axis.get_ylim()
    if high / low < _LEAST_RANGE:
        middle = math.sqrt(low * high)
        axis.set_ylim(middle / math.sqrt(_LEAST_RANGE), middle * math.sqrt(_LEAST_RANGE))


def _figure(title: str, about: str, width: float, heights: Sequence[float], columns: int = 1) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, sum(heights) + 1.1), layout="constrained")
    figure.suptitle(f"{title}\n", x=0.01, ha="left", fontsize=13, fontweight="bold")
    figure.text(0.01, 1 - 0.36 / (sum(heights) + 1.1), about, fontsize=7, color="#555555", va="top")
    axes = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights)
    return figure, list(axes.flat)


def _legend(figure: Any, axes: Sequence[Any]) -> None:
    """One for all: each name once, in the order in which they came."""
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    if len(handles) > 1:
        figure.legend(handles.values(), handles.keys(), loc="outside lower left", ncols=4, fontsize=8)


def _plain(axis: Any, grid: str) -> None:
    axis.tick_params(axis="both", labelsize=7)
    axis.tick_params(axis="y", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis=grid, color="#dddddd", linewidth=0.5)
    axis.set_axisbelow(True)
