"""How the result of an experiment is shown, written and judged."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import rich.table
from rich.box import SIMPLE_HEAD
from rich.markup import escape

from nicmodel.cli.devices import DEVICES
from nicmodel.cli.experiment.plot import draw, pyplot, save
from nicmodel.cli.options import UNJUDGED
from nicmodel.cli.progress import console
from nicmodel.client.results import Claim, Result, as_json, as_markdown
from nicmodel.nearest import Choice
from nicmodel.vm.errors import VmError

FILE = click.Path(path_type=Path, dir_okay=False, writable=True)

#: Whether a claim held; None: it was not judged.
_MARKS = {True: "[green]✓[/green]", False: "[red]✗[/red]", None: "[yellow]? not judged:[/yellow]"}

_OPTIONS = (
    click.option("--json", "json_file", type=FILE, metavar="FILE", help="Write the result into this file as JSON."),
    click.option("--markdown", type=FILE, metavar="FILE", help="Write the tables into this file."),
    click.option(
        "--plot", type=FILE, metavar="FILE", help="Draw the result into this file: PNG, SVG or PDF. Needs matplotlib."
    ),
)


def output_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options for what is written to files: parameters `json_file`, `markdown` and `plot`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def only_gvnic(why: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """An option ``--device``, as other commands have it, of an experiment that other kinds of NICs cannot take.

    Args:
        why: the end of a sentence that begins with the kind's name.
    """

    def check(context: click.Context, option: click.Parameter, device: str) -> None:
        if device != "gvnic":
            raise click.BadParameter(f"{device} {why}", context, option)

    return click.option(
        "--device", type=Choice(tuple(DEVICES)), default="gvnic", show_default=True, expose_value=False, callback=check,
        help="The kind of NIC. Others cannot take this experiment, and are told why.",
    )  # fmt: skip


def hand_over(result: Result, json_file: Path | None, markdown: Path | None, plot: Path | None) -> None:
    """Show a result, write it to files and judge it.

    Raises:
        VmError: a claim does not hold; it says which.
    """
    show(result)
    if json_file:
        json_file.write_text(json.dumps(as_json(result), indent=1), "utf-8")
    if markdown:
        markdown.write_text(as_markdown(result), "utf-8")
    if plot:
        plotting = pyplot()
        save(draw(result, plotting), plot, plotting)
    judge(result.claims)


def judge(claims: Sequence[Claim]) -> None:
    """Let the exit status say whether all held.

    Raises:
        VmError: one does not; it says which.
        click.exceptions.Exit: one could not be judged, and the others hold.
    """
    if failed := [claim for claim in claims if claim.fails]:
        raise VmError("what did not hold: " + " ".join(f"{claim.claim} ({claim.evidence})" for claim in failed))
    if any(claim.holds is None for claim in claims):
        raise click.exceptions.Exit(UNJUDGED)


def show(result: Result) -> None:
    """Print what was asked, what was measured, and the verdict on each claim."""
    console.print(f"\n[bold]{escape(result.question)}[/bold]")
    console.print(f"[dim]Asked by {escape(result.asked)}.[/dim]")
    for table in result.tables:
        shown = rich.table.Table(
            title=escape(table.title), title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False
        )
        for column in table.columns:
            texts = [column.text(row) for row in table.rows]
            whole = texts if column.style else [word for text in texts for word in text.split()]
            width = max(map(len, [*whole, *column.heading.split()]), default=0)  # words and numbers stay in one piece
            shown.add_column(escape(column.heading), justify="right" if column.style else "left", min_width=width)
        for row in table.rows:
            shown.add_row(*(escape(column.text(row)) for column in table.columns))
        console.print()
        needed = console.measure(shown).minimum
        console.print(shown, width=max(console.width, needed), crop=False, no_wrap=needed > console.width)
        if table.legend:
            console.print(f"[dim]{escape(table.legend)}[/dim]")
    console.print()
    for name, value in result.about.items():
        console.print(f"[dim]{escape(name)}: {escape(value)}[/dim]")
    show_claims(result.claims)
    if result.driver:
        console.print(f"\nWhat a driver has to do: {escape(result.driver)} [dim]docs/{result.page}[/dim]")


def show_claims(claims: Sequence[Claim]) -> None:
    """Print the verdict on each."""
    console.print()
    for claim in claims:
        mark = _MARKS[claim.holds]
        console.print(f"{mark} {escape(claim.claim)} [dim]{escape(claim.evidence)}[/dim]")


def plotting_if(wanted: object) -> Any:
    """matplotlib, before minutes have gone by, if a plot is wanted; else None.

    Raises:
        click.ClickException: it is not installed; it says how to install it.
    """
    return pyplot() if wanted else None
