"""Plots of experiments, by matplotlib."""

from __future__ import annotations

import importlib
import io
import textwrap
from pathlib import Path
from typing import Any

import click

from nicmodel.client.results import Panel, Result
from nicmodel.installation import pip_install

#: Colours that people with any colour vision tell apart (Okabe and Ito).
_COLOURS = ("#0072B2", "#E69F00", "#D55E00", "#999999", "#56B4E9", "#CC79A7")
#: Inches: of a panel, of the labels beside the first, of a bar, of the gap between groups, of everything around.
_PANEL, _LABELS, _BAR, _GAP, _FRAME = 3.6, 1.8, 0.24, 0.16, 1.7


def pyplot() -> Any:
    """The plotting library.

    Raises:
        click.ClickException: it is not installed; it says how to install it.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        return importlib.import_module("matplotlib.pyplot")
    except ImportError:
        raise click.ClickException(f"a plot needs matplotlib: {pip_install('matplotlib')}") from None


def draw(result: Result, plotting: Any) -> Any:
    """A figure of a result: its panels side by side, the groups of bars from top to bottom."""
    panels = result.panels
    bars = max(
        len(panel.labels) * ((1 if panel.stacked else len(panel.series)) * _BAR + _GAP) for panel in panels
    )  # fmt: skip
    lines = max(label.count("\n") + 1 for panel in panels for label in panel.labels)
    height = max(bars, max(len(panel.labels) for panel in panels) * 0.16 * lines) + _FRAME
    figure, axes = plotting.subplots(
        1, len(panels), figsize=(_LABELS + _PANEL * len(panels), height), layout="constrained", squeeze=False
    )
    for number, (axis, panel) in enumerate(zip(axes[0], panels, strict=True)):
        named = number == 0 or list(panel.labels) != list(panels[0].labels)
        _bars(axis, panel, named=named)
    about = "; ".join(f"{name}: {value}" for name, value in result.about.items())
    figure.suptitle(textwrap.fill(result.title, 90), fontsize=12, weight="bold")
    figure.supxlabel(textwrap.fill(about, 150), fontsize=7, color="#555555")
    return figure


def _bars(axis: Any, panel: Panel, *, named: bool) -> None:
    axis.set_title(f"{panel.title}, {panel.unit}", fontsize=9, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    places = range(len(panel.labels))
    axis.set_yticks(places, panel.labels if named else [""] * len(panel.labels), fontsize=7)
    axis.invert_yaxis()
    left = [0.0] * len(panel.labels)
    thick = 0.8 if panel.stacked else 0.8 / len(panel.series)
    for number, (name, values) in enumerate(panel.series.items()):
        widths = [value or 0.0 for value in values]
        colour = _COLOURS[number % len(_COLOURS)]
        if panel.stacked:
            axis.barh(places, widths, left=left, height=thick, color=colour, label=name)
            left = [before + width for before, width in zip(left, widths, strict=True)]
            continue
        at = [place - 0.4 + thick * (number + 0.5) for place in places]
        drawn = axis.barh(at, widths, height=thick, color=colour, label=name)
        texts = ["" if value is None else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in values]
        axis.bar_label(drawn, texts, padding=2, fontsize=7)
        axis.margins(x=0.18)
    if len(panel.series) > 1:
        place = 0.5, -0.02 - 1.1 / axis.figure.get_figheight()  # below the axis, however high the figure is
        axis.legend(fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=place, ncols=len(panel.series))


def save(figure: Any, file: Path, plotting: Any) -> None:
    """Write a figure to a file, in the format that its name says, and let go of it."""
    figure.savefig(file, dpi=150)
    plotting.close(figure)


def svg(figure: Any, plotting: Any) -> bytes:
    """A figure as SVG, and let go of it."""
    with io.BytesIO() as file:
        figure.savefig(file, format="svg")
        plotting.close(figure)
        return file.getvalue()
