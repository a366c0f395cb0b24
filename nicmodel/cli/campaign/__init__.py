"""``nicmodel campaign``: a command for each combination of some values, on many workers."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nicmodel.cli.options import BROKEN
from nicmodel.cli.progress import console
from nicmodel.cli.reports import check_writable, writing
from nicmodel.cli.tables import plain_table, wrapped
from nicmodel.client.page import templates
from nicmodel.client.report import plain_console
from nicmodel.client.text import escaped, printable
from nicmodel.vm.campaign.cell import Outcome
from nicmodel.vm.campaign.plan import Cell, Plan
from nicmodel.vm.campaign.store import SETTLED, Store
from nicmodel.vm.campaign.workers import default_workers, run_all
from nicmodel.vm.errors import VmError
from nicmodel.vm.packages import write_whole

_STATUSES = {
    "good": "[green]✓[/green]", "broken": "[red]✗[/red]", "failed": "[red]![/red]", "hung": "[red]![/red]",
    "lost": "[red]![/red]",
}  # fmt: skip
#: Lines of what a cell printed that a terminal is shown, and cells that are listed one by one.
_LINES, _LISTED = 8, 20


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--workers", type=click.IntRange(1, 1024), metavar="N",
              help="Cells at a time on this machine.  [default: one for two processors and 3 GiB]")  # fmt: skip
@click.option("--scheduler", metavar="ADDRESS",
              help="Run on the workers of this Dask scheduler, such as tcp://10.0.0.1:8786.")  # fmt: skip
@click.option("--results", type=click.Path(path_type=Path, dir_okay=False), metavar="DATABASE",
              help="Keep what has become of each cell there (SQLite).  [default: FILE with .sqlite]")  # fmt: skip
@click.option("--again", is_flag=True, help="Run cells that have a verdict, too.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), metavar="PAGE",
              help="Write the report as one page for a browser, which needs nothing beside it.")  # fmt: skip
@click.option("--list", "listing", is_flag=True, help="Only list the commands that would be run.")
def campaign(
    file: Path, workers: int | None, scheduler: str | None, results: Path | None, again: bool, html: Path | None,
    listing: bool,
) -> None:  # fmt: skip
    """Run a command for many kernels, drivers, weathers, faults.

    FILE says which command, and which values its places have:

    \b
      command = "conform --kernel {kernel} --weather {seed} --faults none"
      [axes]
      kernel = ["bookworm", "trixie-backports"]
      seed = { first = 1, last = 20 }

    Each combination is a cell, which is run by a process of its own, with a time limit. What becomes of it is kept at
    once: a campaign that was interrupted goes on where it was when it is run again. Cells that have a verdict are not
    run again; those that failed, hung, or lost their worker are.

    The exit status is 0 if all cells are good, 3 if a command has found something broken, and 1 if one has no verdict.

    \b
      nicmodel campaign weather.toml --list
      nicmodel campaign weather.toml --html report.html
      nicmodel campaign weather.toml --scheduler tcp://10.0.0.1:8786
    """
    if scheduler is not None and workers is not None:
        raise click.UsageError("--workers is of this machine; those of --scheduler are what they are")
    plan = Plan.read(file)
    cells = list(plan.cells())
    if not cells:
        raise VmError(f"{file}: all combinations are left out")
    if listing:
        for cell in cells:
            click.echo(printable(f"nicmodel {shlex.join(cell.words)}"))
        return
    check_writable(html)
    database = results or file.with_suffix(".sqlite")
    with Store(database) as store:
        outcomes = {} if again else store.outcomes({cell.key for cell in cells})
        settled = {key: outcome for key, outcome in outcomes.items() if outcome.status in SETTLED}
        waiting = [cell for cell in cells if cell.key not in settled]
        if settled:
            click.echo(f"{len(settled):,} of {len(cells):,} cells have a verdict in {database}")
        outcomes = settled | _run(waiting, plan, store, workers or default_workers(), scheduler)
    _show(plan, cells, outcomes)
    if html is not None:
        with writing(html):
            write_whole(html, page(file.name, plan, cells, outcomes))
    statuses = {outcome.status for outcome in outcomes.values()}
    if statuses - set(SETTLED):
        raise click.exceptions.Exit(1)
    if "broken" in statuses:
        raise click.exceptions.Exit(BROKEN)


def _run(cells: Sequence[Cell], plan: Plan, store: Store, workers: int, scheduler: str | None) -> dict[str, Outcome]:
    """Run them, keep and tell what becomes of each."""
    outcomes: dict[str, Outcome] = {}
    if not cells:
        return outcomes
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("cells"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("", total=len(cells))
        try:
            for cell, outcome in run_all(cells, plan.files, workers=workers, scheduler=scheduler):
                store.add(cell, outcome)
                outcomes[cell.key] = outcome
                progress.advance(task)
                _tell(cell, outcome, len(outcomes), len(cells))
        except KeyboardInterrupt:
            click.echo(f"{len(cells) - len(outcomes):,} cells are left: the same command goes on with them", err=True)
            raise
    return outcomes


def _tell(cell: Cell, outcome: Outcome, done: int, count: int) -> None:
    said = f"{_STATUSES[outcome.status]} {done}/{count} {escape(printable(cell.name))}: {outcome.status}"
    console.print(f"{said} [dim]({outcome.seconds:.0f} s)[/dim]", soft_wrap=True)
    if outcome.status != "good":
        lines = outcome.output.rstrip().splitlines()[-_LINES:]
        console.print(wrapped("\n".join(f"      {printable(line)}" for line in lines)), markup=False, soft_wrap=True)


def counts(plan: Plan, cells: Sequence[Cell], outcomes: Mapping[str, Outcome]) -> list[tuple[str, str, Counter[str]]]:
    """For each axis and value how many cells have come to what."""
    rows = []
    for axis, values in plan.axes.items():
        for value in values:
            of_value = Counter(outcomes[cell.key].status for cell in cells if cell.values[axis] == value)
            rows.append((axis, value, of_value))
    return rows


def _show(plan: Plan, cells: Sequence[Cell], outcomes: Mapping[str, Outcome]) -> None:
    """How many cells have come to what, what is not good, and what it has cost."""
    total = Counter(outcome.status for outcome in outcomes.values())
    table = plain_table("", "", *(status for status in _STATUSES if total[status]))
    shown = [status for status in _STATUSES if total[status]]
    for axis, value, of_value in counts(plan, cells, outcomes):
        table.add_row(escape(printable(axis)), escape(printable(value)), *(str(of_value[one] or "") for one in shown))
    table.add_row("all", "", *(str(total[status]) for status in shown))
    plain_console().print(table)
    bad = [cell for cell in cells if outcomes[cell.key].status != "good"]
    for cell in bad[:_LISTED]:
        click.echo(wrapped(printable(f"{outcomes[cell.key].status}: nicmodel {shlex.join(cell.words)}")))
    if len(bad) > _LISTED:
        click.echo(f"and {len(bad) - _LISTED:,} more, which are in the database")
    seconds = [outcome.seconds for outcome in outcomes.values()]
    cpu = sum(outcome.cpu for outcome in outcomes.values())
    click.echo(
        f"A cell took {sum(seconds) / len(seconds):.1f} s on average and {max(seconds):.1f} s at most,"
        f" and {cpu / len(seconds):.1f} s of processor time"
    )


def page(title: str, plan: Plan, cells: Sequence[Cell], outcomes: Mapping[str, Outcome]) -> str:
    """The report as HTML."""
    rows = [
        {
            "values": list(cell.values.values()),
            "command": f"nicmodel {shlex.join(cell.words)}",
            "lines": outcome.output.splitlines(),
            **{name: getattr(outcome, name) for name in ("status", "seconds", "cpu", "worker")},
        }
        for cell in cells
        for outcome in [outcomes[cell.key]]
    ]
    shown = {"title": title, "axes": list(plan.axes), "cells": rows, "counts": counts(plan, cells, outcomes)}
    template = templates("nicmodel.cli.campaign").get_template("campaign.html")
    return template.render(**escaped(shown), statuses=list(_STATUSES))
