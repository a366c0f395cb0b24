"""``nicmodel stat``: the counters of a running server."""

from __future__ import annotations

import json

import click

from nicmodel.cli.options import control_option
from nicmodel.client.control import Control
from nicmodel.client.report import show


@click.command()
@control_option
@click.option("--json", "as_json", is_flag=True, help="Print all counters as JSON.")
def stat(path: str, as_json: bool) -> None:
    """Show the counters of every NIC.

    Frames, drops by name, DMA by kind of memory, and flow rules with their hits.
    """
    with Control(path) as control:
        found = control.stat()
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        show(found)
