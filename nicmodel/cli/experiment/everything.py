"""``nicmodel experiment all``: the experiments one after the other, and one page of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from nicmodel.cli.experiment import nvme, questions, series
from nicmodel.cli.experiment.page import write_page
from nicmodel.cli.experiment.plot import draw, svg
from nicmodel.cli.experiment.show import FILE, judge, only_gvnic, plotting_if, show
from nicmodel.cli.progress import console, step
from nicmodel.client.results import Claim, Result, as_json, machine
from nicmodel.gvnic.experiments import ddp, owners, placement, process_exit
from nicmodel.vm.experiment import SWITCH
from nicmodel.vm.kernel import KernelChoice
from nicmodel.vm.options import kernel_options

#: Of the transfers of `devmem`, bytes, and how many each way.
_DEVMEM_BYTES, _DEVMEM_RUNS, _KILLS = 64 << 20, 3, 3
#: With --short, which is to show that everything works.
SHORT = (
    placement.Parameters(accelerators=2, answers=(20, 100), budgets=(0.5,), timeout=100, milliseconds=0.5),
    owners.Parameters(owners=(2,), lookaheads=(1, owners.RING), milliseconds=60),
    process_exit.Parameters(rounds=2, frames=5),
    ddp.Parameters(losses=(0, 0.02), reorders=(0.05,), depths=(1, 8), commands=10, digests=(True,)),
)


@click.command("all")
@click.option("--html", type=FILE, metavar="FILE",
              help="Write one page with tables, plots and verdicts into this file; a browser needs nothing else. Needs "
                   "matplotlib.")  # fmt: skip
@click.option("--json", "json_file", type=FILE, metavar="FILE", help="Write the results into this file as JSON.")
@click.option("--guest/--no-guest", default=True, show_default=True,
              help="Also what needs a guest: devmem, ddp, and the stock driver in exit.")  # fmt: skip
@click.option("--short", is_flag=True, help="Few cases, little traffic: a minute to see that all of it works.")
@only_gvnic("can take none of them: it has neither devmem TCP nor the options of the model's own gVNIC")
@kernel_options
def everything(html: Path | None, json_file: Path | None, guest: bool, short: bool, kernel: KernelChoice) -> None:
    """Run all experiments, and write one page of them.

    Exit status 0 only if all claims held. A claim that does not hold keeps no other experiment from running; a guest
    that does not start ends the command, which is why it comes first.
    """
    plotting = plotting_if(html)
    full = placement.Parameters(), owners.Parameters(), process_exit.Parameters(), ddp.Parameters()
    parameters = SHORT if short else full
    results: list[tuple[Result, bytes | None]] = []

    def have(result: Result, figure: Any = None) -> None:
        show(result)
        picture = None
        if plotting:
            picture = svg(draw(result, plotting) if figure is None else figure, plotting)
        results.append((result, picture))

    if guest:
        console.print("\n[bold]devmem[/bold]")
        found = series.run_devmem(_DEVMEM_BYTES, _DEVMEM_RUNS, SWITCH, kernel)
        have(series.as_result(found), series.draw(found, plotting) if plotting else None)
        console.print("\n[bold]ddp[/bold]")
        have(nvme.run_ddp(parameters[3], kernel))
    console.print("\n[bold]placement[/bold]")
    have(questions.run_placement(parameters[0]))
    console.print("\n[bold]owners[/bold]")
    have(questions.run_owners(parameters[1]))
    console.print("\n[bold]exit[/bold]")
    have(questions.run_exit(parameters[2], kills=_KILLS if guest else 0, kernel=kernel))
    if html:
        with step(f"the page {html}"):
            write_page(html, results, machine())
    if json_file:
        json_file.write_text(json.dumps([as_json(result) for result, _ in results], indent=1), "utf-8")
    judge([
        Claim(f"{result.name}: {claim.claim}", claim.holds, claim.evidence)
        for result, _ in results
        for claim in result.claims
    ])  # fmt: skip
