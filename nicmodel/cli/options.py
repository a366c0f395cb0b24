"""Options that several commands have."""

import click

control_option = click.option(
    "--control", "path", envvar="NICMODEL_CONTROL", required=True, metavar="PATH",
    help="Control socket of the server: what its --control says. Or set NICMODEL_CONTROL.",
)  # fmt: skip
nic_option = click.option(
    "--nic", metavar="NAME", help="Which NIC of the server: nic0, nic1, …  [default: the only one]"
)

#: Exit status when a driver has broken the contract.
BROKEN = 3
