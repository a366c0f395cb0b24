"""``nicmodel trace``: what happens between driver and device, decoded."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TextIO

import click

from nicmodel.cli.options import control_option
from nicmodel.cli.tables import wrapped
from nicmodel.client.control import Control
from nicmodel.client.text import lines


@click.command()
@control_option
@click.option("--nic", metavar="NAME", help="Only this NIC of the server: nic0, nic1, …")
@click.option("--kind", "kinds", multiple=True, metavar="KIND",
              help="Only these events: client, config, register, msix, doorbell, admin, interrupt, vectors, map, "
                   "unmap, reset, link, rx, tx, fault, injected, error. Repeat for several.")  # fmt: skip
@click.option("--queue", "queues", multiple=True, metavar="QUEUE",
              help="Only events of these queues: rx0, tx3. Repeat for several.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with every field.")
@click.option("-c", "--count", type=click.IntRange(1), metavar="N", help="End after N events.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write there instead.")  # fmt: skip
def trace(
    path: str, nic: str | None, kinds: tuple[str, ...], queues: tuple[str, ...], as_json: bool, count: int | None,
    output: Path | None,
) -> None:  # fmt: skip
    """Show what driver and device do, decoded, until Ctrl-C.

    That is every register access, doorbell, admin command, interrupt, and packet with its descriptors.

    Times are in seconds from the first event on. While nobody traces, the NIC does not spend any time on it; while
    somebody does, packets are several times slower, except for kinds and queues that are left out.
    """
    with contextlib.ExitStack() as stack:
        control = stack.enter_context(Control(path))
        file = stack.enter_context(output.open("w", encoding="utf-8")) if output else sys.stdout
        with contextlib.suppress(KeyboardInterrupt):
            _follow(control, file, nic, kinds, queues, as_json, count)


def _follow(
    control: Control, file: TextIO, nic: str | None, kinds: tuple[str, ...], queues: tuple[str, ...], as_json: bool,
    count: int | None,
) -> None:  # fmt: skip
    start: int | None = None
    events = control.trace(kinds=kinds, queues=queues, nic=nic)
    click.echo("tracing", err=True)
    for number, event in enumerate(events, 1):
        if as_json:
            file.write(json.dumps(event) + "\n")
        else:
            start = event.get("time") if start is None else start
            told = lines(event, start or 0)
            file.writelines((wrapped(line) if file is sys.stdout else line) + "\n" for line in told)
        file.flush()
        if number == count:
            return
