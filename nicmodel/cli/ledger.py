"""``nicmodel ledger``: where every byte of DMA of a running server's NICs went, and which way."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

import click
from qemu.qmp import QMPError
from rich.console import Console, Group, RenderableType
from rich.live import Live

from nicmodel.cli.options import control_option, interval_option
from nicmodel.cli.tables import as_many_as_fit
from nicmodel.client.control import Control
from nicmodel.client.ledger import Entry, Place, entries, since
from nicmodel.client.report import ledger_table, plain_console
from nicmodel.client.topology import places
from nicmodel.vm.qmp import Qmp

#: Each NIC's ledger, by name.
_Ledgers = dict[str, list[Entry]]


@click.command()
@control_option
@click.option("--below-switch", "peers", multiple=True, metavar="NAME",
              help="Memory of this name is a BAR below the same PCIe switch as the NIC. Repeat for more.")  # fmt: skip
@click.option("--qmp", metavar="SOCKET", help="Ask QEMU for the PCI topology: the socket of its -qmp unix:….")
@interval_option
@click.option("--once", is_flag=True, help="Print the ledger once, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print the ledger once, as JSON.")
def ledger(path: str, peers: tuple[str, ...], qmp: str | None, interval: float, once: bool, as_json: bool) -> None:
    """Show every byte of DMA, live: what, where and by which way.

    Bytes are shown by queue, direction, purpose and kind of memory, and by whether they passed the root complex.

    Each kind of memory is named after its file on the host; "ram" is the guest's own. DMA into a BAR below the same
    PCIe switch as the NIC is routed by that switch; all other DMA passes the root complex. --qmp asks QEMU where each
    memory is, and assumes that no port redirects peer-to-peer requests (ACS). Without --qmp, name memory below the
    switch with --below-switch, here or at `nicmodel serve`; the path to other devices' memory is then unknown.
    """
    console = plain_console()
    with Control(path) as control:
        found = {nic["name"]: _places(control, nic["name"], qmp) for nic in control.stat()}
        named = dict.fromkeys(peers, Place.PEER)

        def look() -> _Ledgers:
            return {nic["name"]: entries(nic, found[nic["name"]] | named) for nic in control.stat()}

        if as_json:
            click.echo(json.dumps({nic: [dataclasses.asdict(one) for one in book] for nic, book in look().items()}))
        elif once:
            for nic, book in look().items():
                console.print(ledger_table(book, title=f"DMA of {nic}", width=console.width))
        else:
            _watch(console, look, interval)


def _watch(console: Console, look: Callable[[], _Ledgers], interval: float) -> None:
    before, then = look(), time.monotonic()
    with (
        contextlib.suppress(KeyboardInterrupt),
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        while True:
            time.sleep(interval)
            after, now = look(), time.monotonic()
            live.update(view(console, before, after, now - then), refresh=True)
            before, then = after, now


def view(
    console: Console, before: Mapping[str, Sequence[Entry]], after: Mapping[str, Sequence[Entry]], seconds: float
) -> Group:
    """The screen: each NIC has its share of the lines, in which the queues that move the most are shown."""
    height = console.height // len(after)
    return Group(*(_part(console, nic, book, since(before[nic], book), seconds, height) for nic, book in after.items()))


def _part(
    console: Console, nic: str, book: Sequence[Entry], moved: Sequence[Entry], seconds: float, height: int
) -> RenderableType:
    names = list(dict.fromkeys(entry.queue for entry in book))
    rates = {name: sum(entry.bytes for entry in moved if entry.queue == name) for name in names}
    busiest = sorted(names, key=rates.__getitem__, reverse=True)

    def build(count: int) -> RenderableType:
        left_out = f", {len(names) - count} of {len(names)} queues left out" if count < len(names) else ""
        return ledger_table(
            book, title=f"DMA of {nic}{left_out}", queues=busiest[:count], moved=moved, seconds=seconds,
            width=console.width,
        )  # fmt: skip

    return as_many_as_fit(console, build, len(names), height)


def _places(control: Control, nic: str, qmp: str | None) -> dict[str, Place]:
    """What the NIC's guest has where, if its QEMU can be asked."""
    if qmp is None:
        return {}
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(qmp)
    except OSError as error:
        connection.close()
        raise click.ClickException(f"no QEMU answers at {qmp}: {(error.strerror or str(error)).lower()}") from None
    try:
        with closing(Qmp(connection, lambda _: None)) as monitor:
            pci: list[dict[str, Any]] = monitor.execute("query-pci")
    except (TimeoutError, QMPError):
        raise click.ClickException(f"{qmp} does not speak QMP, or speaks with somebody else") from None
    return places(pci, control.show(nic))
