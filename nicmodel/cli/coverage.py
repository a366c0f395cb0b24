"""``nicmodel coverage``: which code of a driver has run, by functions, basic blocks and lines, and in which tests."""

from __future__ import annotations

import fnmatch
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from nicmodel.cli.help import HelpGroup
from nicmodel.cli.tables import plain_table
from nicmodel.client.report import plain_console
from nicmodel.client.text import printable
from nicmodel.nearest import did_you_mean
from nicmodel.vm.coverage import files
from nicmodel.vm.coverage.data import Coverage
from nicmodel.vm.coverage.data import merge as merge_all
from nicmodel.vm.coverage.live import LiveFile
from nicmodel.vm.coverage.reasons import Check, Reasons
from nicmodel.vm.coverage.reasons import check as hold_against
from nicmodel.vm.coverage.recorder import load
from nicmodel.vm.coverage.report import BETWEEN, FunctionReport, Report, Share, Totals, lcov
from nicmodel.vm.errors import VmError
from nicmodel.vm.packages import write_whole

#: Of the functions that only one test reaches, a table names so many.
_NAMED = 3

_FILES = click.argument("paths", nargs=-1, required=True, metavar="FILE...",
                        type=click.Path(path_type=Path, dir_okay=False))  # fmt: skip


def _file_options(command: Callable[..., Any]) -> Callable[..., Any]:
    options = (
        click.option("--module", "modules", multiple=True, metavar="FILE",
                     type=click.Path(path_type=Path, dir_okay=False),
                     help="The module that ran, or its debug symbols. Only needed for one that the cache does not "
                          "have any more. Repeat for more."),
        click.option("--fetch", is_flag=True,
                     help="Fetch what is missing to tell lines: the kernel's debug symbols (350 MB, of which 8 MB are "
                          "kept), and for --html its source (160 MB)."),
        click.option("--context", "contexts", multiple=True, metavar="PATTERN",
                     help="Only what ran in these tests: names, or shell patterns such as '*test_traffic*'."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.group(cls=HelpGroup)
def coverage() -> None:
    """Tell which code of the unmodified driver has run.

    \b
    Record:
      nicmodel vm --nic /tmp/nic.sock --coverage gve.cov
      nicmodel selftests --quick --coverage selftests.cov
      pytest --driver-coverage=tests.cov
    \b
    Look:
      nicmodel coverage report gve.cov
      nicmodel coverage report selftests.cov tests.cov --html pages --fetch
      nicmodel coverage tests tests.cov --function gve_rx_dqo
      nicmodel coverage check reasons.toml tests.cov

    QEMU's emulator sees each block of code that the guest runs; so the driver is the stock one, and neither it nor the
    kernel knows. Guests with KVM run without it while they are recorded.
    """


@coverage.command()
@_FILES
@_file_options
@click.option("--functions", is_flag=True, help="A line for each function.")
@click.option("--missing", is_flag=True,
              help="What did not run: whole functions, and of others the lines, or the blocks where lines are not "
                   "known.")  # fmt: skip
@click.option("--lcov", "tracefile", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False),
              help="Write a tracefile for lcov, genhtml and whatever else reads it.")  # fmt: skip
@click.option("--html", "folder", metavar="FOLDER", type=click.Path(path_type=Path, file_okay=False),
              help="Write pages for a browser: the source, what ran of it, and in which tests.")  # fmt: skip
@click.option("--source", "sources", multiple=True, metavar="FOLDER",
              type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="Where the source is, for --html: the kernel's, or a module's own. Repeat for more.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
def report(
    paths: tuple[Path, ...], modules: tuple[Path, ...], fetch: bool, contexts: tuple[str, ...], functions: bool,
    missing: bool, tracefile: Path | None, folder: Path | None, sources: tuple[Path, ...], as_json: bool,
) -> None:  # fmt: skip
    """Show what has run of each source file: functions, basic blocks, lines.

    A FILE is what --coverage or --driver-coverage has written. It may be that of a guest that still runs, too. Several
    are added up. Without the module's lines, whole modules are shown; see --fetch. A module of your own that was
    compiled with -g has its lines with it.

    A function has run if any of it has. Functions of headers that were inlined are lines, not functions. Lines are
    those that the compiler has made code of, in the module's own sources; blocks are found by taking its code apart.
    """
    reports = _reports(paths, modules, fetch, contexts)
    if as_json:
        click.echo(json.dumps([_as_json(one) for one in reports], indent=1))
    for one in () if as_json else reports:
        _show(one, functions=functions, missing=missing)
    if tracefile:
        if not any(one.lines for one in reports):
            raise VmError(f"{tracefile} is not written: a tracefile is about lines, and none are known (see --fetch)")
        write_whole(tracefile, lcov(reports))
    if folder:
        # pygments, and only for this.
        from nicmodel.vm.coverage.html import write_pages

        for one in reports if fetch else ():
            if one.lines and len(files.sources(one.record, one.lines, sources)) < len(one.source):
                files.fetch_sources(one.record, one.lines)
        texts = {one.record.build_id: files.sources(one.record, one.lines, sources) for one in reports if one.lines}
        click.echo(f"written: {write_pages(folder, reports, texts)}", err=as_json)


@coverage.command()
@_FILES
@_file_options
@click.option("--function", "name", metavar="NAME", help="Only the tests that reach this function.")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
def tests(
    paths: tuple[Path, ...], modules: tuple[Path, ...], fetch: bool, contexts: tuple[str, ...], name: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Show what each test reaches, and what no other does; or which tests reach a function.

    A test is one of pytest's, or a program of `nicmodel selftests`. Of the functions that only one test reaches, the
    table names a few; --json, and the pages of `report --html`, all.
    """
    reports = _reports(paths, modules, fetch, contexts)
    console = plain_console()
    if name:
        reached = _tests_of(reports, name)
        if as_json:
            click.echo(json.dumps(reached, indent=1))
            return
        table = plain_table("test", "calls")
        for known, calls in reached.items():
            table.add_row(printable(known) or BETWEEN, str(calls))
        console.print(table)
        if not reached:
            console.print(f"No test reaches {name}.")
        return
    if as_json:
        found = [{**vars(test), "module": one.record.name} for one in reports for test in one.by_test]
        click.echo(json.dumps(found, indent=1))
        return
    for one in reports:
        table = plain_table("test", "functions", "blocks", "lines", "reached by no other")
        _heading(table, one)
        for test in one.by_test:
            lines = str(test.lines) if one.lines else ""
            only = ", ".join(map(printable, test.only_here[:_NAMED]))
            if len(test.only_here) > _NAMED:
                only += f", and {len(test.only_here) - _NAMED} more"
            table.add_row(printable(test.name) or BETWEEN, str(test.functions), str(test.blocks), lines, only)
        console.print(table)
        _hint(one)


@coverage.command()
@click.argument("reasons", metavar="REASONS", type=click.Path(path_type=Path, dir_okay=False))
@_FILES
@_file_options
@click.option("--source", "sources", multiple=True, metavar="FOLDER",
              type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="Where the source is: the kernel's, or a module's own. Repeat for more.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def check(
    reasons: Path, paths: tuple[Path, ...], modules: tuple[Path, ...], fetch: bool, contexts: tuple[str, ...],
    sources: tuple[Path, ...], as_json: bool,
) -> None:  # fmt: skip
    """Check that each line that has not run has a reason not to.

    REASONS is a file in TOML that names them, by excerpts of the source; docs/coverage.md has its form, and
    tests/guest/gve-lines.toml is the one for gve. The exit status is 1 if a line has no reason, if a reason does not
    hold (its excerpt is not in the source, or the line has run), or if less of the lines that a device can cause has
    run than the file demands.
    """
    said = Reasons.load(reasons)
    reports = _reports(paths, modules, fetch, contexts)
    found = [one for one in reports if said.is_about(one.record.name, one.record.release)]
    if not found:
        raise VmError(f"nothing has run of {said.module} of Linux {said.release}, which {reasons} is about")
    passed = True
    for one in found:
        if one.lines is None:
            raise VmError("lines are not known: there are no debug symbols of this module here (see --fetch)")
        texts = files.sources(one.record, one.lines, sources)
        if fetch and len(texts) < len(one.source):
            files.fetch_sources(one.record, one.lines)
            texts = files.sources(one.record, one.lines, sources)
        outcome = hold_against(one, texts, said)
        passed = passed and outcome.passed
        if as_json:
            click.echo(json.dumps(_check_as_json(one, outcome), indent=1))
        else:
            _show_check(one, outcome, said, texts)
    if not passed:
        sys.exit(1)


def _show_check(one: Report, outcome: Check, said: Reasons, texts: Mapping[str, str]) -> None:
    console = plain_console()
    table = plain_table("file", "lines", "", "of those that a device can cause", "")
    _heading(table, one)
    for file, share in outcome.by_file.items():
        lines = one.files[file].lines
        cells = (str(lines), lines.percent, str(share), share.percent)
        table.add_row(printable(file.rpartition("/")[2]), *cells)
    lines = one.total.lines
    table.add_row("all", str(lines), lines.percent, str(outcome.total), outcome.total.percent)
    console.print(table)
    table = plain_table("why not reached", "lines", "a device can", "")
    for name, count in outcome.by_kind.items():
        kind = said.kinds[name]
        table.add_row(printable(name), str(count), "yes" if kind.device else "no", printable(kind.why))
    console.print(table)
    for file, line in outcome.unexplained:
        text = texts[file].splitlines()[line - 1].strip()
        click.echo(printable(f"no reason: {file.rpartition('/')[2]}:{line}: {text}"))
    for sentence in outcome.wrong:
        click.echo(f"wrong: {printable(sentence)}")
    if not outcome.enough:
        click.echo(f"too few: {outcome.total.percent} of the lines that a device can cause, not {outcome.least:g} %")


def _check_as_json(one: Report, outcome: Check) -> dict[str, Any]:
    return {
        "module": one.record.name,
        "release": one.record.release,
        "passed": outcome.passed,
        "least": outcome.least,
        "lines": {"ran": outcome.total.ran, "total": outcome.total.total},
        "files": {file: {"ran": share.ran, "total": share.total} for file, share in outcome.by_file.items()},
        "kinds": outcome.by_kind,
        "no_reason": outcome.unexplained,
        "wrong": outcome.wrong,
    }


@coverage.command()
@_FILES
@click.option("-o", "--output", required=True, metavar="FILE", type=click.Path(path_type=Path, dir_okay=False),
              help="Where to write.")  # fmt: skip
def merge(paths: tuple[Path, ...], output: Path) -> None:
    """Add several files up to one.

    What ran in tests of the same name is added. Builds of a module that differ stay apart.
    """
    merge_all(load(path) for path in paths).save(output)


@coverage.command()
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
def reset(path: Path) -> None:
    """Begin anew while the guest runs: of a guest that records to FILE, nothing has run yet.

    \b
    What does bringing the interface up run?
      nicmodel coverage reset gve.cov
      (in the guest) ip link set eth0 up
      nicmodel coverage report gve.cov --functions
    """
    with LiveFile(path) as live:
        live.take()


def _reports(paths: Sequence[Path], named: Sequence[Path], fetch: bool, patterns: Sequence[str]) -> list[Report]:
    """A report for each module.

    Raises:
        VmError: a file is none, or a module's is missing; or no test is called so.
    """
    whole: Coverage = merge_all(load(path, named) for path in paths)
    if whole.lost:
        click.echo(f"nicmodel: incomplete: {whole.lost} blocks found no room", err=True)
    if not any(record.contexts for record in whole.modules.values()):
        raise VmError(f"nothing has run of {', '.join(one.name for one in whole.modules.values()) or 'any module'}")
    found = []
    for record in whole.modules.values():
        names = None if not patterns else [name for name in record.contexts if _matches(name, patterns)]
        if not record.contexts or names == []:
            continue
        module = files.find(record, named)
        lines = files.lines_of(module, named)
        if lines is None and fetch:
            lines = files.fetch_lines(record, module)
        found.append(Report(record, module, lines, names))
    if not found:
        raise VmError(f"no test is called {' or '.join(patterns)}: 'nicmodel coverage tests' lists them")
    return found


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name is one of the patterns; names of parametrised tests have brackets, which patterns have, too."""
    return any(name == pattern or fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _show(one: Report, *, functions: bool, missing: bool) -> None:
    console = plain_console()
    if functions:
        table = plain_table("function", "source", "calls", "blocks", "lines", "tests")
        _heading(table, one)
        for function in one.functions:
            tests_of = one.tests_of(function.function)
            table.add_row(
                printable(function.function.name), printable(function.place), str(function.calls), str(function.blocks),
                _share(function.lines), str(len(tests_of)),
            )  # fmt: skip
    elif missing:
        table = plain_table("function", "source", "not run")
        _heading(table, one)
        for function in one.functions:
            if function.blocks.ran < function.blocks.total:
                table.add_row(printable(function.function.name), printable(function.place), _missing(one, function))
    else:
        table = plain_table("file", "functions", "", "blocks", "", "lines", "")
        _heading(table, one)
        for file, totals in one.files.items():
            table.add_row(printable(file.rpartition("/")[2]), *_cells(totals))
        table.add_row("all", *_cells(one.total))
    console.print(table)
    _hint(one)


def _heading(table: Table, one: Report) -> None:
    table.title = f"{printable(one.record.name)} of Linux {printable(one.record.release)}"
    table.title_justify = "left"
    for column in table.columns[1:]:
        if column.header in ("functions", "blocks", "lines", "calls", "tests", ""):
            column.justify = "right"
            column.no_wrap = True


def _hint(one: Report) -> None:
    if one.lines is None:
        click.echo("Lines are not known: there are no debug symbols of this module here. --fetch gets Debian's "
                   "(350 MB, of which 8 MB are kept); --module names a file that has them.")  # fmt: skip


def _cells(totals: Totals) -> list[str]:
    shares = (totals.functions, totals.blocks, totals.lines)
    return [text for share in shares for text in (_share(share), share.percent)]


def _share(share: Share) -> str:
    return str(share) if share.total else ""


def _missing(one: Report, function: FunctionReport) -> str:
    """What did not run of a function."""
    if not function.reached:
        return "all of it"
    if one.lines:
        said = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in function.missing)
        return said or "code that was inlined"
    start = function.function.start
    return ", ".join(f"+{begin - start:#x}" for begin in one.missing_blocks(function.function))


def _tests_of(reports: Sequence[Report], name: str) -> dict[str, int]:
    """Calls by test.

    Raises:
        VmError: no module has such a function.
    """
    known: dict[str, int] = {}
    present = set()
    for one in reports:
        for function in one.module.functions:
            present.add(function.name)
            if name == function.name:
                for test, calls in one.tests_of(function).items():
                    known[test] = known.get(test, 0) + calls
    if name not in present:
        raise VmError(f"there is no function {name!r}{did_you_mean(name, present)}; the compiler may have inlined it")
    return known


def _as_json(one: Report) -> dict[str, Any]:
    def share(value: Share) -> dict[str, int] | None:
        return {"ran": value.ran, "total": value.total} if value.total else None

    def totals(value: Totals) -> dict[str, Any]:
        return {name: share(getattr(value, name)) for name in ("functions", "blocks", "lines")}

    return {
        "module": one.record.name,
        "release": one.record.release,
        "build_id": one.record.build_id,
        "tests": one.contexts,
        **totals(one.total),
        "files": {file: totals(value) for file, value in one.files.items()},
        "by_function": [
            {
                "name": function.function.name,
                "file": function.file or None,
                "line": function.line or None,
                "calls": function.calls,
                "blocks": share(function.blocks),
                "lines": share(function.lines),
                "missing_lines": function.missing,
                "tests": one.tests_of(function.function),
            }
            for function in one.functions
        ],
    }
