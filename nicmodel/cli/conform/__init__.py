"""``nicmodel conform``: a report on a driver."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from pathlib import Path

import click
from junitparser import Failure, JUnitXml, TestCase, TestSuite
from rich.markup import escape

from nicmodel.cli.devices import DEVICES
from nicmodel.cli.drivers import loadable, serve_words
from nicmodel.cli.options import BROKEN
from nicmodel.cli.progress import console
from nicmodel.cli.reports import check_writable, writing
from nicmodel.cli.tables import plain_table, wrapped
from nicmodel.client.page import templates
from nicmodel.client.report import plain_console
from nicmodel.client.text import escaped, printable
from nicmodel.nearest import Choice, did_you_mean
from nicmodel.vm.conform import Check, Conformance, examine
from nicmodel.vm.coverage import files
from nicmodel.vm.coverage.recorder import Recorder
from nicmodel.vm.coverage.report import Report
from nicmodel.vm.driver_bench import DriverBench
from nicmodel.vm.kernel import KernelChoice
from nicmodel.vm.options import kernel_options
from nicmodel.vm.packages import write_whole
from nicmodel.vm.tools import check_host

#: Of all faults, those that say nothing of a driver. A device that has been gone decodes no addresses when it is back;
#: a PC's bus then gives ones, which gve takes for "reset is done", but QEMU gives zeros, and gve waits for ever.
_LEFT_OUT = ("device-gone",)
#: Seconds for the driver to be loaded or removed: after a fault commands may have to time out, one by one. Linux' idpf
#: waits 60 s for an answer, Intel's that is kept outside of the kernel 120 s.
_LIMIT = 180.0
#: Groups of checks, and their headings.
GROUPS = {
    "ordinary": "Ordinary use",
    "weather": "Weather: what a device may do and rarely does",
    "faults": "Faults: what no device should do",
}


def _seeds(_context: click.Context, _parameter: click.Parameter, text: str) -> tuple[int, ...]:
    """``1-6,40``: numbers and ranges."""
    seeds: list[int] = []
    for part in filter(None, text.split(",")):
        found = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip(), re.ASCII)
        if not found:
            raise click.BadParameter(f"{part!r}: write seeds as 1-6 or 3,40")
        first, last = int(found[1]), int(found[2] or found[1])
        if not first <= last < first + 1000:
            raise click.BadParameter(f"{part!r}: the first comes first, and there are a thousand at most")
        seeds += range(first, last + 1)
    return tuple(seeds)


def _faults(text: str, device: str) -> tuple[str, ...]:
    """Names of faults of that kind of NIC, of all, or none.

    Raises:
        BadParameter: There is no such fault.
    """
    kinds = DEVICES[device].faults
    if text in ("all", "none"):
        every = (name for name, kind in kinds.items() if not kind.source and name not in _LEFT_OUT)
        return tuple(every) if text == "all" else ()
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in kinds:
            nearest = f"{did_you_mean(name, kinds)}; nicmodel faults --device {device} lists them"
            raise click.BadParameter(f"there is no fault {name!r}{nearest}", param_hint="--faults")
    return names


@click.command()
@click.argument("driver", required=False, metavar="[DRIVER]", type=click.Path(path_type=Path))
@kernel_options
@click.option("--device", default="gvnic", show_default=True, type=Choice(list(DEVICES)), help="The kind of NIC.")
@click.option("--weather", "seeds", default="1-6", show_default=True, metavar="SEEDS", callback=_seeds,
              help="Seeds of the weather, a try each: 1-6, or 3,40; '' for none.")  # fmt: skip
@click.option("--strength", default=0.4, show_default=True, type=click.FloatRange(0, 1), metavar="P",
              help="Strength of the weather.")  # fmt: skip
@click.option("--faults", default="all", show_default=True, metavar="NAMES",
              help="Faults, a try each: names, separated by commas, none, or all but device-gone.")  # fmt: skip
@click.option("--serve", default="", metavar="OPTIONS", help="More options for `nicmodel serve`, such as '--queues 2'.")
@click.option("--memory", default="1G", show_default=True, metavar="SIZE", help="The guest's memory.")
@click.option("--timeout", default=90.0, show_default=True, type=click.FloatRange(1, 86400), metavar="SECONDS",
              help="How long the traffic of a try may take.")  # fmt: skip
@click.option("--coverage", is_flag=True,
              help="Record which code of the driver has run, on emulated CPUs.")  # fmt: skip
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write the report as one page for a browser, which needs nothing beside it.")  # fmt: skip
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write all of it as JSON.")  # fmt: skip
@click.option("--junit", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write the checks as JUnit's XML.")  # fmt: skip
def conform(
    driver: Path | None, kernel: KernelChoice, device: str, seeds: tuple[int, ...], strength: float,
    faults: str, serve: str, memory: str, timeout: float, coverage: bool, html: Path | None,
    json_file: Path | None, junit: Path | None,
) -> None:  # fmt: skip
    """Put a driver to the test, and report what it stands.

    In a guest, against a NIC that looks on. In ordinary use it has to work and to keep the contract. In each weather,
    where the device does whatever the contract allows, nothing may be lost. While a fault lasts, three seconds, nothing
    has to work; but the kernel may not come to harm, and afterwards the driver has to work again. For each fault it is
    told how: by itself, after the interface was taken down and up, or after the driver was loaded again.

    DRIVER is a module (NAME.ko) or the folder of a driver's sources, for the kernel of --kernel. Without it the
    kernel's own driver is meant.

    A try takes some ten seconds. The exit status is 0 if the driver has stood everything, and 3 if not.

    \b
      nicmodel conform --html report.html
      nicmodel conform --kernel bookworm --junit results.xml
      nicmodel conform gve/ --weather 1-20 --faults tx-never,irq-lost
    """
    check_host()
    check_writable(html, json_file, junit)
    named = _faults(faults, device)
    options = ["--device", device, *serve_words(serve)]
    found = loadable(driver, kernel) if driver else None
    report = Conformance(str(driver) if driver else "the kernel's own driver", kernel.find().release, device)
    recorder = Recorder([str(file) for file in found.files] if found else None) if coverage else None
    with ExitStack() as stack:
        bench = DriverBench(kernel, serve=options, memory=memory, timeout=timeout, recorder=recorder, limit=_LIMIT)
        stack.enter_context(bench)
        console.print(f"[bold]{escape(printable(report.driver))}[/bold], Linux {escape(report.kernel)}, {device}")
        examine(
            report, bench, found.modules if found else None,
            seeds=seeds, strength=strength, faults=named, recorder=recorder, told=_told,
        )  # fmt: skip
    if recorder is not None:
        report.coverage = _coverage(recorder)
    _show(report)
    _write(report, html, json_file, junit)
    if not report.good:
        raise click.exceptions.Exit(BROKEN)


def _coverage(recorder: Recorder) -> list[dict[str, str]]:
    """What has run of the driver, by file if its lines are known, else in all."""
    found = []
    for record in recorder.coverage().modules.values():
        module = files.find(record)
        one = Report(record, module, files.lines_of(module))
        rows = one.files.items() if one.lines else [(record.name, one.total)]
        found += [{"file": name, "functions": str(totals.functions), "blocks": str(totals.blocks),
                   "lines": str(totals.lines) if one.lines else ""} for name, totals in rows]  # fmt: skip
    return found


def _told(check: Check) -> None:
    mark = "[green]✓[/green]" if check.good else "[red]✗[/red]"
    said = f"  {mark} {check.group:<8} {escape(printable(check.name))}: {escape(printable(check.said))}"
    console.print(f"{said} [dim]({check.seconds:.0f} s)[/dim]", soft_wrap=True)
    if not check.good:
        click.echo(wrapped("\n".join(f"      {printable(line)}" for line in check.evidence)))


def _show(report: Conformance) -> None:
    """The summary; what was found has been told as it came."""
    table = plain_table("checks", "stood", "of")
    for group, title in GROUPS.items():
        if checks := report.group(group):
            table.add_row(title, str(sum(check.good for check in checks)), str(len(checks)))
    way = [step for step in report.steps if step["need"] != "feature"]
    features = [step for step in report.steps if step["need"] == "feature"]
    for title, steps in (("Steps taken", way), ("Features used", features)):
        table.add_row(title, str(sum(step["stage"] == "reached" for step in steps)), str(len(steps)))
    plain_console().print(table)
    for row in report.coverage:
        parts = [f"{row[what]} {what}" for what in ("functions", "blocks", "lines") if row[what]]
        click.echo(f"{printable(row['file'])}: {', '.join(parts)}")


def _write(report: Conformance, html: Path | None, json_file: Path | None, junit: Path | None) -> None:
    """The files that were asked for.

    Raises:
        VmError: One cannot be written.
    """
    with writing(html, json_file, junit):
        if json_file is not None:
            write_whole(json_file, json.dumps(report.as_dict(), indent=1) + "\n")
        if html is not None:
            write_whole(html, page(report))
        if junit is not None:
            suite(report).write(str(junit), pretty=True)


def page(report: Conformance) -> str:
    """The report as HTML."""
    return (
        templates("nicmodel.cli.conform")
        .get_template("report.html")
        .render(report=escaped(report.as_dict()), good=report.good, groups=GROUPS)
    )


def suite(report: Conformance) -> JUnitXml:
    """The report as JUnit's XML: a suite for each group."""
    document = JUnitXml("nicmodel conform")
    for group, title in GROUPS.items():
        cases = TestSuite(title)
        cases.add_property("driver", printable(report.driver))
        cases.add_property("kernel", printable(report.kernel))
        for check in report.group(group):
            case = TestCase(printable(check.name), group, round(check.seconds, 1))
            if not check.good:
                failure = Failure(printable(check.said))
                failure.text = "\n".join(map(printable, check.evidence))
                case.result = [failure]
            cases.add_testcase(case)
        document.add_testsuite(cases)
    return document
