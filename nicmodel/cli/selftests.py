"""``nicmodel selftests``: the kernel's own network driver tests against the NIC, and whether they end as expected."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nicmodel.cli.tables import plain_table
from nicmodel.vm.errors import VmError
from nicmodel.vm.kernel import KernelChoice
from nicmodel.vm.options import kernel_options, module_option
from nicmodel.vm.selftests import Bench, Outcome, Recipe
from nicmodel.vm.tools import check_host

_COLOURS = {"pass": "green", "skip": "yellow", "xfail": "yellow", "fail": "red", "crash": "red", "none": "red"}

#: Where the kernel has them, below tools/testing/selftests.
_FOLDER = "drivers/net/"

console = Console(highlight=False)


@click.command()
@click.argument("names", nargs=-1, metavar="[TEST]...")
@click.option("--list", "only_list", is_flag=True, help="Only list the tests, and why some are not run.")
@click.option("--quick", is_flag=True, help="Some cases of every test, in 5 minutes.")
@kernel_options
@module_option
@click.option("--logs", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
              help="Keep what each test printed there, and what the kernel logged meanwhile.")  # fmt: skip
@click.option("--json", "report", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write every case there: test, case, outcome, what the test said, the reason expected.")  # fmt: skip
def selftests(
    names: tuple[str, ...],
    only_list: bool,
    quick: bool,
    kernel: KernelChoice,
    module_files: tuple[Path, ...],
    logs: Path | None,
    report: Path | None,
) -> None:
    """Run the kernel's own network driver selftests on the NIC.

    They are tools/testing/selftests/drivers/net of Debian's linux-source package, unmodified, built by Debian's
    compilers; all is downloaded and built once (70 MB besides what `nicmodel vm` needs). One guest with a stock kernel
    has two linked NICs, the second in a network namespace as the remote end; before each test the driver binds to both
    anew.

    What is expected is a file, nicmodel/vm/selftests.toml: how many cases a test has, and for each that does not
    pass, its outcome and the reason with its place in the driver's or the test's source. The exit status is 0 only if
    every case ends as expected, none is missing and none is new. It is known for one version of Linux only: with
    another kernel the table is all.

    \b
    One test, its output in a folder:
      nicmodel selftests ntuple --logs /tmp/selftests
    """
    recipe = Recipe.read()
    programs = [program for program in recipe.chosen(names) if not (quick and program.slow)]
    if only_list:
        _list(recipe)
        return
    check_host()
    outcomes = []
    with Bench(kernel, module_files) as bench:
        for program in programs:
            with console.status(f"{program.name} …"):
                outcome = bench.run(program, quick=quick)
            outcomes.append(outcome)
            console.print(_line(outcome))
            if logs:
                logs.mkdir(parents=True, exist_ok=True)
                (logs / f"{program.name}.log").write_text(outcome.log, "utf-8")
        version = bench.kernel_version
    console.print(_table(outcomes, version))
    if report:
        report.write_text(json.dumps([row for outcome in outcomes for row in _rows(outcome)], indent=1) + "\n")
    if not version.startswith(f"{recipe.kernel}."):
        console.print(f"Linux {version}: what is expected is known for {recipe.kernel} only, so nothing is judged.")
        return
    surprises = [surprise for outcome in outcomes for surprise in outcome.surprises]
    if surprises:
        raise VmError("\n  ".join(["not as expected:", *surprises]))
    console.print(f"All {sum(len(outcome.results) for outcome in outcomes)} cases are as expected.")


def _list(recipe: Recipe) -> None:
    """What is there, and what is not."""
    table = plain_table("test", "cases", "quick run", f"file in {_FOLDER}")
    for name, program in recipe.programs.items():
        table.add_row(
            name,
            str(program.cases),
            "none" if program.slow else "\n".join(program.quick) or "all",
            program.path.removeprefix(_FOLDER),
        )
    console.print(table)
    table = plain_table("not run", "why")
    for name, reason in recipe.inapplicable.items():
        table.add_row(name, reason)
    console.print(table)


def _line(outcome: Outcome) -> str:
    """One program's run in a line."""
    counts = ", ".join(f"{count} {name}" for name, count in outcome.counts.items())
    verdict = "[red]not as expected[/red]" if outcome.surprises else "[green]as expected[/green]"
    return f"  {outcome.program.name:20} {verdict} [dim]{counts}; {outcome.seconds:.0f} s[/dim]"


def _table(outcomes: Sequence[Outcome], version: str) -> Table:
    """Cases that pass in one row per test, the others by their reason."""
    table = plain_table("test", "case", "outcome", "reason")
    table.title = f"Network driver selftests, Linux {version}"
    for outcome in outcomes:
        passed = outcome.counts["pass"]
        if passed:
            table.add_row(outcome.program.name, f"{passed} of {len(outcome.results)}", "[green]pass[/green]", "")
        others = [row for row in _rows(outcome) if row["outcome"] != "pass"]
        for (result, reason), rows in groupby(others, lambda row: (row["outcome"], row["reason"] or row["said"])):
            cases = "\n".join(row["case"] for row in rows)
            table.add_row(outcome.program.name, cases, f"[{_COLOURS[result]}]{result}[/]", escape(reason))
    return table


def _rows(outcome: Outcome) -> Iterator[dict[str, Any]]:
    """One per case, for the table and for JSON."""
    for result in outcome.results:
        expectation = outcome.program.expectation(result.case)
        yield {
            "test": outcome.program.name,
            "case": result.case,
            "outcome": result.outcome,
            "said": result.said,
            "reason": expectation.reason if expectation and expectation.fits(result) else "",
        }
