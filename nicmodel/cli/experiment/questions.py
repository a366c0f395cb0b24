"""``nicmodel experiment placement``, ``owners`` and ``exit``: questions of reviewers, put to the device."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import click

from nicmodel.cli.experiment.show import hand_over, only_gvnic, output_options, plotting_if
from nicmodel.cli.progress import step
from nicmodel.client.results import Result, Row, machine
from nicmodel.gvnic.experiments import owners as owners_
from nicmodel.gvnic.experiments import placement as placement_
from nicmodel.gvnic.experiments import process_exit
from nicmodel.gvnic.experiments.labels import MAX_PAYLOAD
from nicmodel.gvnic.options.owners.state import MAX_OWNERS
from nicmodel.vm.experiment import NODE, set_up
from nicmodel.vm.kernel import KernelChoice
from nicmodel.vm.kills import DMABUF, add_kills, kill
from nicmodel.vm.options import kernel_options

_PLACEMENT, _OWNERS, _EXIT = placement_.Parameters(), owners_.Parameters(), process_exit.Parameters()


@click.command()
@click.option("--accelerators", default=_PLACEMENT.accelerators, show_default=True,
              type=click.IntRange(1, placement_.MAX_ACCELERATORS),
              help="How many have flows in the queue, besides the host.")  # fmt: skip
@click.option("--payload", default=_PLACEMENT.payload, show_default=True, metavar="BYTES",
              type=click.IntRange(16, MAX_PAYLOAD), help="Of each frame.")  # fmt: skip
@click.option("--rate", default=_PLACEMENT.gbps, show_default=True, metavar="GBPS", type=click.FloatRange(0.5, 50),
              help="At which frames come, Gbit/s of virtual time.")  # fmt: skip
@click.option("--answer", "answers", multiple=True, default=_PLACEMENT.answers, show_default=True, metavar="USECS",
              type=click.IntRange(10, 1000),
              help="How long the host takes from a header to the request for its payload; give several for several "
                   "cases. The longest one is tried with little memory on the NIC.")  # fmt: skip
@click.option("--share", "shares", multiple=True, default=_PLACEMENT.budgets, show_default=True, metavar="SHARE",
              type=click.FloatRange(0.01, 10),
              help="Memory on the NIC, as a share of what rate and longest answer need; give several for several "
                   "cases.")  # fmt: skip
@click.option("--timeout", default=_PLACEMENT.timeout, show_default=True, metavar="USECS",
              type=click.IntRange(100, 2000),
              help="After this the NIC drops payload, in the case of a host that takes twice as long.")  # fmt: skip
@click.option("--milliseconds", default=_PLACEMENT.milliseconds, show_default=True, type=click.FloatRange(0.5, 20),
              help="For which frames come, of virtual time, in each case.")  # fmt: skip
@only_gvnic("has no deferred placement, which is an option of the model's own gVNIC")
@output_options
def placement(
    accelerators: int,
    payload: int,
    rate: float,
    answers: tuple[int, ...],
    shares: tuple[float, ...],
    timeout: int,
    milliseconds: float,
    json_file: Path | None,
    markdown: Path | None,
    plot: Path | None,
) -> None:
    """Place payload by queue at once, or by header later.

    Flows for several accelerators, and for none, share a queue. With deferred placement the NIC keeps payload until the
    host has read its header and says where it goes. Compares payload in the wrong memory, memory needed on the NIC, and
    when payload is at its place, with little memory and with a slow host.

    Exit status 0 only if payload is whole at its place, none is ever in another accelerator's memory, the NIC needs
    what comes while the host thinks, and too little memory or a slow host end as documented. Needs no guest.
    """
    plotting_if(plot)
    parameters = placement_.Parameters(accelerators, payload, rate, answers, shares, timeout, milliseconds)
    hand_over(run_placement(parameters), json_file, markdown, plot)


@click.command()
@click.option("--owners", "counts", multiple=True, default=_OWNERS.owners, show_default=True, metavar="N",
              type=click.IntRange(2, MAX_OWNERS - 1),
              help="How many owners share the ring; give several for several sets of cases.")  # fmt: skip
@click.option("--lookahead", "lookaheads", multiple=True, default=_OWNERS.lookaheads, show_default=True, metavar="N",
              type=click.IntRange(1, owners_.RING),
              help="How many buffers the NIC sorts by owner ahead of need; 1 is the ring's order. Give several for "
                   "several cases.")  # fmt: skip
@click.option("--milliseconds", default=_OWNERS.milliseconds, show_default=True, type=click.IntRange(50, 2000),
              help="For which frames come, of virtual time, in each case.")  # fmt: skip
@only_gvnic("has no owners of buffers, which are an option of the model's own gVNIC")
@output_options
def owners(
    counts: tuple[int, ...],
    lookaheads: tuple[int, ...],
    milliseconds: int,
    json_file: Path | None,
    markdown: Path | None,
    plot: Path | None,
) -> None:
    """Let the buffers of several owners share one queue.

    They lie in the ring in turn, and a flow rule says whose buffers a flow's payload goes to. Compares a ring that
    knows nothing of owners, one whose NIC obeys tags in the ring's order, and one whose NIC looks ahead, while the
    other owners are as busy as the first, silent, or keep their buffers.

    Exit status 0 only if tags keep payload out of other owners' memory, a plain ring does not, and lists by owner
    spare the first owner every wait. Needs no guest.
    """
    plotting_if(plot)
    hand_over(run_owners(owners_.Parameters(counts, lookaheads, milliseconds)), json_file, markdown, plot)


@click.command("exit")
@click.option("--rounds", default=_EXIT.rounds, show_default=True, type=click.IntRange(1, 1000),
              help="How often the owner dies, each way.")  # fmt: skip
@click.option("--guest/--no-guest", default=True, show_default=True,
              help="Also kill the owner of a dma-buf in a guest with its own driver.")  # fmt: skip
@click.option("--kills", default=3, show_default=True, type=click.IntRange(1, 100), help="How often in the guest.")
@only_gvnic("has neither flushes of queues, an option of the model's own gVNIC, nor devmem TCP")
@kernel_options
@output_options
def exit_(
    rounds: int,
    guest: bool,
    kills: int,
    kernel: KernelChoice,
    json_file: Path | None,
    markdown: Path | None,
    plot: Path | None,
) -> None:
    """Kill the process whose memory a queue writes to.

    The NIC's driver in Python takes the memory back by a flush of the queue, by destroying and creating it, and by a
    reset of the device; in a guest the stock driver does it its own way when a receiver of devmem TCP gets SIGKILL
    under traffic. Compares when the last byte is written, when the queue has other buffers, and which frames are lost.

    Exit status 0 only if nothing is written once the memory is back, a flush loses nothing, a restart nothing of other
    queues, and the stock driver resets nothing. Times are shown and not judged.
    """
    plotting_if(plot)
    result = run_exit(process_exit.Parameters(rounds), kills=kills if guest else 0, kernel=kernel)
    hand_over(result, json_file, markdown, plot)


def run_placement(parameters: placement_.Parameters) -> Result:
    """All cases of `placement`, and what follows."""
    rows: list[Row] = []
    for case in placement_.cases(parameters):
        with step(f"{case.way}, answer after {case.answer:,} µs, {case.about}"):
            rows.append(placement_.measure(parameters, case))
    return placement_.conclude(parameters, rows)


def run_owners(parameters: owners_.Parameters) -> Result:
    """All cases of `owners`, and what follows."""
    rows: list[Row] = []
    for case in owners_.cases(parameters):
        ring = f"looks {case.lookahead} ahead" if case.lookahead else "plain ring"
        with step(f"{case.owners} owners, {ring}, the others {case.others}"):
            rows.append(owners_.measure(parameters, case))
    return owners_.conclude(parameters, rows)


def run_exit(parameters: process_exit.Parameters, *, kills: int, kernel: KernelChoice) -> Result:
    """All ways of `exit`, and what follows.

    Args:
        parameters: of what needs no guest.
        kills: how often the owner of a dma-buf is killed in a guest; 0: there is none.
        kernel: of the guest.

    Raises:
        VmError: the guest failed.
    """
    rows: list[Row] = []
    for way in process_exit.WAYS:
        with step(f"the owner dies {parameters.rounds} times: {way}"):
            rows.append(process_exit.measure(parameters, way))
    result = process_exit.conclude(parameters, rows, {"times are of": machine()})
    if kills:
        with ExitStack() as stack:
            with step("NIC and guest"):
                bench = set_up(stack, DMABUF, NODE, kernel)
            found = []
            for number in range(kills):
                with step(f"SIGKILL to a receiver {number + 1} of {kills}"):
                    found.append(kill(bench))
        add_kills(result, found, bench.about)
    return result
