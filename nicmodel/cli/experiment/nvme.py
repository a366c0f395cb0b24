"""``nicmodel experiment ddp``: a live NVMe/TCP connection, whose data the NIC places."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import click

from nicmodel.cli.experiment.show import hand_over, only_gvnic, output_options, plotting_if
from nicmodel.cli.progress import step
from nicmodel.client.results import Result, Row
from nicmodel.gvnic.experiments import ddp as ddp_
from nicmodel.gvnic.experiments.ddp_guest import set_up
from nicmodel.gvnic.testing.adminq import AdminError, AdminTimeout
from nicmodel.gvnic.testing.nvme_host import MAX_DEPTH
from nicmodel.gvnic.testing.nvme_tcp import NvmeError
from nicmodel.gvnic.testing.violation import ContractViolation
from nicmodel.testing.tcp import TcpError
from nicmodel.vm.errors import VmError
from nicmodel.vm.kernel import KernelChoice
from nicmodel.vm.options import kernel_options

_DEFAULT = ddp_.Parameters()
_PERCENT = click.FloatRange(0, 10)
_BOTH, _NONE, _EACH = "both", "none", "each"
_DIGESTS = {_EACH: (False, True), _BOTH: (True,), _NONE: (False,)}


@click.command()
@click.option("--loss", "losses", multiple=True, default=[100 * loss for loss in _DEFAULT.losses], show_default=True,
              type=_PERCENT, metavar="PERCENT",
              help="Frames that the wire loses, of either direction; give several for several cases.")  # fmt: skip
@click.option("--reorder", "reorders", multiple=True, default=[100 * share for share in _DEFAULT.reorders],
              show_default=True, type=_PERCENT, metavar="PERCENT",
              help="Frames that are overtaken by others; give several for several cases.")  # fmt: skip
@click.option("--depth", "depths", multiple=True, default=_DEFAULT.depths, show_default=True, metavar="N",
              type=click.IntRange(1, MAX_DEPTH - 1), help="Commands under way at a time; give several.")  # fmt: skip
@click.option("--commands", default=_DEFAULT.commands, show_default=True, metavar="N", type=click.IntRange(5, 10_000),
              help="Reads of each case and depth, of 4 to 128 KiB; there are a quarter as many writes.")  # fmt: skip
@click.option("--digests", default=_EACH, show_default=True, type=click.Choice(list(_DIGESTS)),
              help="Digests of headers and data: both, none, or cases of each.")  # fmt: skip
@only_gvnic("has no direct data placement, which is an option of the model's own gVNIC")
@kernel_options
@output_options
def ddp(
    losses: tuple[float, ...],
    reorders: tuple[float, ...],
    depths: tuple[int, ...],
    commands: int,
    digests: str,
    kernel: KernelChoice,
    json_file: Path | None,
    markdown: Path | None,
    plot: Path | None,
) -> None:
    """Read and write over NVMe/TCP, with data that the NIC places.

    A host on the NIC's driver in Python connects to Linux' nvmet in a guest, through a switch that loses and reorders
    frames. It reads and writes with one and with many commands under way, with digests and without. Its NIC receives
    the ordinary way, with header split alone, and with direct data placement. Compares bytes copied and placed.

    Exit status 0 only if each byte that was read and written is what it should be, by the guest's own account as well;
    header split alone saves no copy; the NIC places all data in order, most of it otherwise, and finds its way again.
    """
    plotting_if(plot)
    lost, overtaken = (tuple(percent / 100 for percent in percents) for percents in (losses, reorders))
    try:
        parameters = ddp_.Parameters(lost, overtaken, depths, commands, _DIGESTS[digests])
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    hand_over(run_ddp(parameters, kernel), json_file, markdown, plot)


def run_ddp(parameters: ddp_.Parameters, kernel: KernelChoice) -> Result:
    """All cases, and what follows.

    Raises:
        VmError: the guest failed, or the connection to it.
    """
    rows: list[Row] = []
    with ExitStack() as stack:
        with step("NICs, guest and target"):
            bench = set_up(stack, kernel)
            if bench.wrong_blocks:
                raise VmError("the target's file is not what it was told to be")
        for case in ddp_.cases(parameters):
            with step(str(case)):
                try:
                    rows += ddp_.measure(parameters, bench, case)
                except (TcpError, NvmeError, TimeoutError, ContractViolation, AdminError, AdminTimeout) as error:
                    raise VmError(f"{case}: {error}") from error
    return ddp_.conclude(parameters, rows, bench.about)
