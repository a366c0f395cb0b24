"""Options that several commands have."""

from __future__ import annotations

import math
from typing import Any

import click


class _Interval(click.FloatRange):
    """Seconds between two looks; no NaN, which every range holds for its own."""

    def __init__(self) -> None:
        super().__init__(0.05, 86400)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return seconds


interval_option = click.option(
    "--interval",
    default=1.0,
    show_default=True,
    type=_Interval(),
    metavar="SECONDS",
    help="Seconds between two updates.",
)
control_option = click.option(
    "--control", "path", envvar="NICMODEL_CONTROL", required=True, metavar="PATH",
    help="Control socket of the server: what its --control says. Or set NICMODEL_CONTROL.",
)  # fmt: skip
nic_option = click.option(
    "--nic", metavar="NAME", help="Which NIC of the server: nic0, nic1, …  [default: the only one]"
)

#: Exit status when a driver has broken the contract.
BROKEN = 3
#: Exit status when an experiment could not judge all that it is about, and nothing of the rest failed.
UNJUDGED = 4
