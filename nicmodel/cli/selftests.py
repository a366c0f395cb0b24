"""``nicmodel selftests``: the kernel's own network driver tests against the NIC, and whether they end as expected."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nicmodel.cli.tables import plain_table
from nicmodel.client.text import printable
from nicmodel.nearest import Choice
from nicmodel.vm.coverage.recorder import recorded
from nicmodel.vm.errors import VmError
from nicmodel.vm.kernel import KernelChoice, OwnKernel
from nicmodel.vm.options import kernel_options, module_option
from nicmodel.vm.saved import read_json
from nicmodel.vm.selftests import DEFAULT_DEVICE, Bench, Outcome, Program, Recipe, known_devices, known_versions
from nicmodel.vm.selftests_report import Comparison, Run, check_earlier, ci_json, compare, junit, ktap, reason
from nicmodel.vm.tools import build_selftests, check_host, source_release

_COLOURS = {"pass": "green", "skip": "yellow", "xfail": "yellow", "fail": "red", "crash": "red", "none": "red"}

#: Where the kernel has them, below tools/testing/selftests.
_FOLDER = "drivers/net/"

console = Console(highlight=False)


def _file_option(name: str, help_text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """An option for a file to be written after the run: that this is possible is found out before."""

    def check(_context: click.Context, _option: click.Parameter, path: Path | None) -> Path | None:
        if path and not path.parent.is_dir():
            raise click.BadParameter(f"there is no folder {path.parent}")
        return path

    kind = click.Path(path_type=Path, dir_okay=False, writable=True)
    return click.option(f"--{name}", f"{name}_file", type=kind, callback=check, metavar="FILE", help=help_text)


@click.command()
@click.argument("names", nargs=-1, metavar="[TEST]...")
@click.option("--list", "only_list", is_flag=True, help="Only list the tests, and why some are not run.")
@click.option("--quick", is_flag=True, help="Some cases of every test, in 5 minutes.")
@click.option("--device", type=Choice(known_devices()), default=DEFAULT_DEVICE, show_default=True,
              help="What kind of NIC, as `nicmodel serve --device` has it.")  # fmt: skip
@kernel_options
@module_option
@click.option("--tree", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
              help="The source of a kernel, whose tests are built and run. Nothing is written there, and nothing that "
                   "was built there is used.")  # fmt: skip
@click.option("--logs", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
              help="Keep what each test printed there, and what the kernel logged meanwhile.")  # fmt: skip
@_file_option("json", "Write every case there, in the form of the netdev CI's results, with what the test said and the "
                      "reason expected.")  # fmt: skip
@_file_option("ktap", "Write KTAP there, the cases of a test nested in it.")
@_file_option("junit", "Write JUnit's XML there. What fails as expected counts as skipped in it, with the reason: what "
                       "is red is not expected.")  # fmt: skip
@click.option("--against", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Compare with an earlier run, as --json has written it; the exit status is then 1 if a case has "
                   "become worse, and nothing else counts.")  # fmt: skip
@click.option("--coverage", "coverage_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Record there which code of the driver each test runs; `nicmodel coverage` shows it.")  # fmt: skip
def selftests(
    names: tuple[str, ...],
    only_list: bool,
    quick: bool,
    device: str,
    kernel: KernelChoice,
    module_files: tuple[Path, ...],
    tree: Path | None,
    logs: Path | None,
    json_file: Path | None,
    ktap_file: Path | None,
    junit_file: Path | None,
    against: Path | None,
    coverage_file: Path | None,
) -> None:
    """Run the kernel's own network driver selftests on the NIC.

    They are tools/testing/selftests/drivers/net of Debian's linux-source package, unmodified, or of a kernel's source
    of your own (--tree), built by Debian's compilers; all is downloaded and built once (70 MB besides what `nicmodel
    vm` needs). One guest has two linked NICs, the second in a network namespace as the remote end; before each test the
    driver binds to both anew. A test that crashes the guest, or silences it, ends as "crash" or "none"; the next one
    gets a new guest.

    TEST is a name of --list, a file (hw/devmem.py) or a folder (hw); none: all of them. With --tree, tests that are new
    there run as well.

    What is expected is a file for each kind of NIC, nicmodel/vm/selftests-gvnic.toml and so on: for each case that does
    not pass, its outcome and the reason with its place in the driver's or the test's source. The exit status is 0 only
    if every case ends as expected, none is missing and none is new. It is known of Debian's newest kernel, and what
    ends otherwise with a gVNIC on an older one (6.12: --kernel trixie) is in selftests-gvnic-6.12.toml, for the same
    tests. Any other kernel, or other tests, are compared with that, and the differences are told; they are no error, as
    they may well be right. To be told by the exit status of what a change breaks, compare two runs.

    \b
    One test, its output in a folder:
      nicmodel selftests ntuple --logs /tmp/selftests

    \b
    Your own kernel and tests, before and after a change:
      nicmodel selftests --kernel ~/src/linux --tree ~/src/linux \\
        --json before.json
      nicmodel selftests --kernel ~/src/linux --tree ~/src/linux \\
        --against before.json
    """
    if only_list and not tree:
        _list(Recipe.read(device))
        return
    found = kernel.find()
    recipe = Recipe.read(device).of_kernel(found.release)
    if tree:
        arch = found.arch
        source_release(tree, arch)
        recipe = recipe.of_tree(build_selftests(tree, arch))
    programs = [program for program in recipe.chosen(names) if not (quick and program.slow)]
    if only_list:
        _list(recipe)
        return
    earlier = _read(against) if against else None
    check_host()
    outcomes = []
    start = _now()
    with (
        recorded(coverage_file, live=False) as recorder,
        Bench(recipe, kernel, module_files, tree, recorder) as bench,
    ):
        for program in programs:
            with console.status(f"{program.name} …"):
                outcome = bench.run(program, quick=quick)
            outcomes.append(outcome)
            console.print(_line(outcome))
            if logs:
                logs.mkdir(parents=True, exist_ok=True)
                place = logs / f"{program.name}.log"
                place.parent.mkdir(exist_ok=True)  # a test that is new is called by its folder, too
                place.write_text(outcome.log, "utf-8")
        version = bench.kernel_version
    run = Run(outcomes, version, start, _now(), quick, logs)
    console.print(_table(outcomes, version))
    if json_file:
        json_file.write_text(json.dumps(ci_json(run), indent=1) + "\n", "utf-8")
    if ktap_file:
        ktap_file.write_text(ktap(run), "utf-8")
    if junit_file:
        junit(run).write(str(junit_file), pretty=True)
    surprises = [surprise for outcome in outcomes for surprise in outcome.surprises]
    if against:
        _compared(compare(run, earlier), against)
    elif tree or not recipe.is_known(version) or isinstance(kernel, OwnKernel):
        tests = f"tests of Linux {source_release(tree)}" if tree else "Debian's tests"
        _tell_unknown(programs)
        _differences(f"Linux {version}, {tests}", recipe, surprises)
    elif surprises:
        _tell_unknown(programs)
        raise VmError("\n  ".join(["not as expected:", *surprises]))
    else:
        _tell_unknown(programs)
        known = [len(outcome.results) for outcome in outcomes if outcome.program.cases is not None]
        console.print(f"All {sum(known)} cases are as expected.")


def _now() -> datetime:
    return datetime.now(UTC)


def _read(path: Path) -> Any:
    """The content of an earlier run's file: looked at before a new run, which takes long."""
    earlier = read_json(path, "is no JSON: --against wants what --json has written")
    try:
        check_earlier(earlier)
    except VmError as error:
        raise VmError(f"{path}: {error}") from None
    return earlier


def _compared(comparison: Comparison, path: Path) -> None:
    """Tell how the run differs from an earlier one.

    Raises:
        VmError: A case has become worse.
    """
    told = {
        "better": comparison.better,
        "neither better nor worse": comparison.other,
        "new": comparison.new,
        "no longer there": comparison.vanished,
    }
    for heading, cases in told.items():
        if cases:
            _print_list(f"{heading}:", cases)
    if comparison.worse:
        raise VmError("\n  ".join([f"worse than in {path}:", *comparison.worse]))
    console.print(f"Nothing is worse than in {path}; {comparison.same} cases are the same.", markup=False)


def _tell_unknown(programs: Sequence[Program]) -> None:
    """Of which programs nothing was expected."""
    if unknown := [program.name for program in programs if program.cases is None]:
        console.print(f"Nothing is known of {', '.join(unknown)}.", markup=False)


def _differences(what: str, recipe: Recipe, surprises: Sequence[str]) -> None:
    """Tell how outcomes differ from those of the version that is known, which may be right for this one."""
    known, versions = recipe.kernel, " and ".join(known_versions(recipe.device))
    console.print(
        f"{what}: outcomes are known for Debian's Linux {versions} only, so differences from {known} are told, and no"
        " error. To see what a change breaks, compare two runs: --json FILE, then --against FILE."
    )
    if surprises:
        _print_list(f"different from {known}:", surprises)
    else:
        console.print(f"There is no difference from {known}.")


def _print_list(heading: str, lines: Sequence[str]) -> None:
    console.print("\n  ".join([heading, *map(printable, lines)]), markup=False)


def _list(recipe: Recipe) -> None:
    """What is there, and what is not."""
    table = plain_table("test", "cases", "quick run", f"file in {_FOLDER}")
    for name, program in recipe.programs.items():
        table.add_row(
            name,
            "unknown" if program.cases is None else str(program.cases),
            "none" if program.slow else "\n".join(program.quick) or "all",
            program.path.removeprefix(_FOLDER),
        )
    console.print(table)
    table = plain_table("not run", "why")
    for name, why in recipe.inapplicable.items():
        table.add_row(name, why)
    console.print(table)


def _line(outcome: Outcome) -> str:
    """One program's run in a line."""
    counts = ", ".join(f"{count} {name}" for name, count in outcome.counts.items())
    verdict = "[red]not as expected[/red]" if outcome.surprises else "[green]as expected[/green]"
    if outcome.program.cases is None and not outcome.surprises:
        verdict = "nothing expected"
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
        for (result, why), rows in groupby(others, lambda row: (row["outcome"], row["reason"] or row["said"])):
            cases = "\n".join(escape(printable(row["case"])) for row in rows)
            table.add_row(outcome.program.name, cases, f"[{_COLOURS[result]}]{result}[/]", escape(printable(why)))
    return table


def _rows(outcome: Outcome) -> Iterator[dict[str, str]]:
    """One per case."""
    for result in outcome.results:
        why = reason(outcome, result)
        yield {"case": result.case, "outcome": result.outcome, "said": result.said, "reason": why}
