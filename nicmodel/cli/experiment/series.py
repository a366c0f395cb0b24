"""``nicmodel experiment devmem``: the experiment of the devmem TCP series, reproduced, with a verdict on its claims."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import rich.table

from nicmodel.cli.experiment.plot import save
from nicmodel.cli.experiment.show import judge, only_gvnic, output_options, plotting_if, show_claims
from nicmodel.cli.progress import console, step
from nicmodel.client.experiment import COPY, DEVMEM, MODES, QUANTITIES, Experiment, as_json
from nicmodel.client.report import size
from nicmodel.client.results import Column, Result, Table, verdicts
from nicmodel.nearest import Choice
from nicmodel.vm.experiment import ACCELERATORS, SWITCH, run, set_up
from nicmodel.vm.guest import parse_size
from nicmodel.vm.kernel import KernelChoice
from nicmodel.vm.options import kernel_options

_TITLE = "TCP payload into an accelerator's memory"


@click.command()
@click.option("--size", "amount", default="192M", show_default=True, metavar="SIZE",
              help="Payload of each transfer. The accelerator's memory holds all of it.")  # fmt: skip
@click.option("--runs", default=5, show_default=True, type=click.IntRange(1), help="Transfers each way.")
@click.option("--accelerator", type=Choice(ACCELERATORS), default=SWITCH, show_default=True,
              help="Where its memory is: in the BAR of a PCI device below the NIC's own switch, or a NUMA node of the "
                   "guest's.")  # fmt: skip
@only_gvnic("has no devmem TCP: its driver cannot bind a queue to memory")
@kernel_options
@output_options
def devmem(
    amount: str,
    runs: int,
    accelerator: str,
    kernel: KernelChoice,
    json_file: Path | None,
    markdown: Path | None,
    plot: Path | None,
) -> None:
    """Compare two ways of TCP into an accelerator's memory.

    By a copy, and by devmem TCP, side by side in one guest.

    Compares bytes through host memory and through the root complex, copies by the guest's CPUs, their time, and
    throughput. Exit status 0 only if what the devmem TCP series claims holds: no payload in host memory, only headers
    and rings; higher throughput. It is 4 if only the latter could not be judged, because other programs kept this
    machine busy. As root the wire is a tap, else user-mode networking.
    """
    plotting = plotting_if(plot)
    found = run_devmem(parse_size(amount), runs, accelerator, kernel)
    show(found)
    if json_file:
        json_file.write_text(json.dumps(as_json(found), indent=1), "utf-8")
    if markdown:
        markdown.write_text(as_markdown(found), "utf-8")
    if plot:
        save(draw(found, plotting), plot, plotting)
    judge(found.claims())


def run_devmem(nbytes: int, runs: int, accelerator: str, kernel: KernelChoice) -> Experiment:
    """So many transfers of this many bytes each way.

    Raises:
        VmError: the guest or its receiver failed.
    """
    with ExitStack() as stack:
        with step("NIC, guest and accelerator"):
            bench = set_up(stack, nbytes, accelerator, kernel)
        found = Experiment(bench.about | {"transfers": f"{runs} each way, {size(nbytes)}"})
        transfers = run(bench, nbytes, runs)
        for number in range(runs):
            with step(f"transfers {number + 1} of {runs}, both ways"):
                found.runs += [next(transfers), next(transfers)]
    return found


def as_result(found: Experiment) -> Result:
    """The comparison in the form that all experiments have."""
    columns = [Column("quantity", ""), *(Column(mode, title, ">") for mode, title in MODES.items())]
    rows = [
        {"quantity": name.replace("  ", "… "), COPY: before, DEVMEM: after, "relation": relation}
        for name, before, after, relation in _rows(found)
    ]
    return Result(
        name="devmem",
        title=_TITLE,
        question="Does devmem TCP keep payload out of host memory, and is it faster than TCP and a copy?",
        asked="the devmem TCP series, which claims it",
        about=found.about,
        tables=[Table("For each byte of payload", [*columns, Column("relation", "", ">")], rows)],
        claims=found.claims(),
        page="devmem.md",
    )


def _rows(found: Experiment) -> list[tuple[str, str, str, str]]:
    """The comparison as text: quantity, both values, how they relate; parts of a sum after it, indented."""
    rows = []
    for quantity in QUANTITIES:
        before, after = (quantity.value(found, mode) for mode in MODES)
        relation = f"× {after / before:.3g}" if before and after else ""
        rows.append((f"{quantity.title}, {quantity.unit}", _number(before), _number(after), relation))
        for part, first in quantity.shares(found, COPY).items():
            second = quantity.shares(found, DEVMEM)[part]
            if first or second:
                rows.append((f"  {part}", _number(first), _number(second), ""))
    return rows


def _number(value: float) -> str:
    return f"{value:.3g}" if value else "0"


def show(found: Experiment) -> None:
    """Print the comparison, the circumstances and the verdict on each claim."""
    table = rich.table.Table(title=f"{_TITLE}, for each byte of it", title_justify="left")
    table.add_column("")
    for title in MODES.values():
        table.add_column(title, justify="right")
    table.add_column("", justify="right")
    for name, before, after, relation in _rows(found):
        part = name.startswith(" ")
        table.add_row(name, before, after, relation, style="dim" if part else None)
    console.print()
    console.print(table)
    for name, value in found.about.items():
        console.print(f"[dim]{name}: {value}[/dim]")
    show_claims(found.claims())


def as_markdown(found: Experiment) -> str:
    """The comparison, the circumstances and the verdicts, for a document."""
    lines = [f"| for each byte of payload | {' | '.join(MODES.values())} | |", "|---|---:|---:|---:|"]
    for name, before, after, relation in _rows(found):
        name = f"&emsp;{name.strip()}" if name.startswith(" ") else f"**{name}**"
        lines.append(f"| {name} | {before} | {after} | {relation} |")
    lines += ["", "; ".join(f"{name}: {value}" for name, value in found.about.items()) + ".", ""]
    return "\n".join(lines) + "\n" + verdicts(found.claims())


#: Colours that people with any colour vision tell apart (Okabe and Ito): of the ways, and of the parts of a sum.
_COLOURS = {COPY: "#999999", DEVMEM: "#0072B2"}
_PARTS = ("#D55E00", "#E69F00", "#F0C674", "#CC79A7", "#56B4E9", "#0072B2")


def draw(found: Experiment, plotting: Any) -> Any:
    """A figure of the comparison: a panel for each quantity, sums as stacked bars, each run of what varies as a dot."""
    quantities = [quantity for quantity in QUANTITIES if quantity.parts or quantity.varies]
    figure, panels = plotting.subplots(1, len(quantities), figsize=(3 * len(quantities), 4.8), layout="constrained")
    for panel, quantity in zip(panels, quantities, strict=True):
        panel.set_title(f"{quantity.title}\n", fontsize=11, loc="left", weight="bold")
        unit = quantity.unit if quantity.name == "gbps" else f"{quantity.unit} for each byte of payload"
        panel.text(0, 1.02, unit, transform=panel.transAxes, fontsize=9, color="#555555")
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_xlim(-0.5, len(MODES) - 0.5)
        panel.set_xticks(range(len(MODES)), MODES.values())
        for place, mode in enumerate(MODES):
            top = quantity.value(found, mode)
            if quantity.parts:
                _stack(panel, place, quantity.shares(found, mode), max(quantity.value(found, each) for each in MODES))
            else:
                panel.bar(place, top, width=0.7, color=_COLOURS[mode])
                dots = [quantity.value(Experiment({}, [one]), mode) for one in found.of(mode)]
                panel.plot([place] * len(dots), dots, "o", color="black", markersize=3, alpha=0.6)
                top = max(top, *dots)
            panel.annotate(
                _number(quantity.value(found, mode)), (place, top), (0, 3), textcoords="offset points", ha="center",
                va="bottom", weight="bold",
            )  # fmt: skip
        panel.set_ylim(0, 1.08 * panel.get_ylim()[1])
    about = "; ".join(f"{name}: {value}" for name, value in found.about.items())
    figure.supxlabel(textwrap.fill(about, 150), fontsize=8, color="#555555")
    return figure


def _stack(panel: Any, place: int, parts: Mapping[str, float], highest: float) -> None:
    """A bar of parts, each with its name where there is room for it."""
    bottom = 0.0
    for (part, height), colour in zip(parts.items(), _PARTS, strict=False):
        panel.bar(place, height, bottom=bottom, width=0.7, color=colour)
        if height > 0.1 * highest:
            middle = bottom + height / 2
            panel.text(place, middle, textwrap.fill(part, 16), ha="center", va="center", fontsize=8)
        bottom += height
    if 0 < bottom < 0.1 * highest:
        names = ",\n".join(textwrap.fill(part, 16) for part, height in parts.items() if height)
        panel.text(place, bottom + 0.08 * highest, names, ha="center", va="bottom", fontsize=8, color="#555555")
