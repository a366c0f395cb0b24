"""``nicmodel experiment``: what reviewers of devmem TCP claimed or asked, as experiments, with a verdict on each."""

from __future__ import annotations

import click

from nicmodel.cli.experiment.everything import everything
from nicmodel.cli.experiment.nvme import ddp
from nicmodel.cli.experiment.questions import exit_, owners, placement
from nicmodel.cli.experiment.series import devmem
from nicmodel.cli.help import HelpGroup


@click.group(
    cls=HelpGroup,
    sections={
        "What the devmem TCP series claims, in a guest": ("devmem",),
        "What its reviewers asked": ("placement", "owners", "exit", "ddp"),
        "Several": ("all",),
    },
)
def experiment() -> None:
    """Put claims and questions of the devmem TCP discussion to the test.

    Each command prints what it measured, and the criteria that its exit status stands for: 0 if all held.
    """


for command in (devmem, placement, owners, exit_, ddp, everything):
    experiment.add_command(command)
