"""``nicmodel bringup``: how far a driver has come, and what the device waits for."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import click

from nicmodel.cli.options import control_option, interval_option, nic_option
from nicmodel.cli.tables import wrapped
from nicmodel.client import bringup as text
from nicmodel.client.control import Control
from nicmodel.client.report import plain_console


@click.command()
@control_option
@nic_option
@click.option("--life", "number", type=click.IntRange(1), metavar="N",
              help="Show life N of those that are remembered, three at most.  [default: the newest]")  # fmt: skip
@click.option("-f", "--follow", is_flag=True, help="Print each further step as it is reached, until Ctrl-C.")
@interval_option
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON; with --follow, a line at each change.")
def bringup(path: str, nic: str | None, number: int | None, follow: bool, interval: float, as_json: bool) -> None:
    """Show how far the driver has come, and what the device waits for.

    The steps of a driver's life in order, from the first look at the device to packets in both ways and buffers that
    come back; then the features that it has used. Below the tables: where the driver stands, the register or command
    that the device waits for, what a working driver does there, with a line of the driver in Python to read, and what
    the device has refused, dropped or counted.

    A driver's life begins with its first write to a register and ends when it releases the admin queue, or with a
    reset. The last one and the one before stay to be looked at. "after" is the time since the life began; "<=" stands
    before steps that only packets show: they are seen when the driver does something else, or when somebody asks.

    Any server that has a control socket can be asked, at any time: nothing has to be switched on.
    """
    if follow and number is not None:
        raise click.UsageError("--follow shows the newest life: leave out --life")
    with Control(path) as control:
        if follow:
            with contextlib.suppress(KeyboardInterrupt):
                _follow(control, nic, interval, as_json)
            return
        report = control.bringup(nic)
    if as_json:
        click.echo(json.dumps(report, indent=1))
        return
    try:
        text.show(plain_console(), report, number)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _follow(control: Control, nic: str | None, interval: float, as_json: bool) -> None:
    before: dict[str, Any] | None = None
    while True:
        after = control.bringup(nic)
        lines = list(text.news(before, after))
        if lines and as_json:
            click.echo(json.dumps(after))
        elif lines:
            click.echo(wrapped("\n".join(lines)))
        before = after
        time.sleep(interval)
