"""Counters as a person reads them in a terminal."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from nicmodel.client.ledger import GROUPS, Entry, Place, entries, total
from nicmodel.client.text import escaped, printable

#: The queue that the sums are shown for.
_ALL = "all"


def plain_console() -> Console:
    """A terminal that takes text as it is: what looks like rich's own markup, say in a file's name, is none."""
    return Console(highlight=False, markup=False, emoji=False)


def named(counts: Mapping[str, int]) -> str:
    """``no_buffers 12, over_mru 1``, or ``none``."""
    return ", ".join(f"{printable(name)} {count:,}" for name, count in counts.items()) or "none"


def size(count: int) -> str:
    """A number of bytes with a binary unit."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.1f} {units[0]}" if units[0] != "B" else f"{count} B"


def rate(count: float, seconds: float) -> str:
    """A number per second with a decimal unit: ``1.25M``."""
    value = count / seconds
    units = ["", "k", "M", "G"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.3g}{units[0]}"


def show(snapshots: Sequence[Mapping[str, Any]]) -> None:
    """Print what `nicmodel.observe.snapshot.snapshot` has collected."""
    console = plain_console()
    for nic in escaped(snapshots):
        console.print(f"{nic['name']} {nic['mac']}, wire {nic['wire']['name']}")
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        table.add_column("queue")
        for heading in ("frames", "bytes", "drops"):
            table.add_column(heading, justify="left" if heading == "drops" else "right")
        for way, counter in (("rx", "frames"), ("tx", "packets")):
            for queue in nic[f"{way}_queues"]:
                if queue[counter] or queue["drops"]:
                    table.add_row(
                        f"{way}{queue['queue']}", f"{queue[counter]:,}", size(queue["bytes"]), named(queue["drops"])
                    )
        table.add_row("device", "", "", named(nic["device_drops"]))
        console.print(table)
        if ledger := entries(nic):
            console.print(ledger_table(ledger, title=f"DMA of {nic['name']}", width=console.width))
        if nic["dma_faults"]:
            console.print(f"DMA faults: {nic['dma_faults']}")
        if placed := {name: count for name, count in nic.get("ddp", {}).items() if count}:
            console.print(f"direct data placement: {named(placed)}")
        for rule in nic.get("rules", ()):
            console.print(
                f"rule {rule['location']}: {rule['flow_type']} to queue {rule['queue']}, {rule['hits']:,} hits"
            )


def ledger_table(
    ledger: Sequence[Entry], *, title: str | None = None, queues: Collection[str] | None = None,
    moved: Sequence[Entry] = (), seconds: float = 0, width: int = 100,
) -> Table:  # fmt: skip
    """The ledger of a NIC: a row for each queue, direction and memory, and below them the sums over all queues.

    Args:
        ledger: what is booked.
        title: put above.
        queues: those that have rows of their own; None: all.
        moved: what of it was moved in the last `seconds`, for rates; 0: no rates.
        seconds: see there.
        width: characters that there are. Where they are too few, amounts have only the first letter of their unit, and
            there is no total.
    """
    table = _ledger_table(ledger, title, queues, moved, seconds, narrow=False)
    console = plain_console()
    console.width = 1000
    if Measurement.get(console, console.options, table).maximum > width:
        table = _ledger_table(ledger, title, queues, moved, seconds, narrow=True)
    return table


def _ledger_table(
    ledger: Sequence[Entry], title: str | None, queues: Collection[str] | None, moved: Sequence[Entry], seconds: float,
    *, narrow: bool,
) -> Table:  # fmt: skip
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0)
    for heading in ("queue", "device", "memory", "through"):
        table.add_column(heading, no_wrap=heading != "memory", overflow="fold")
    for heading in (*GROUPS, *([] if narrow else ["total"]), *(["B/s"] if seconds else [])):
        table.add_column(heading, justify="right", no_wrap=True)

    def amount(count: int) -> str:
        return size(count).removesuffix("iB").replace(" ", "") if narrow else size(count)

    def add(queue: str, chosen: Sequence[Entry]) -> None:
        for way, booked in groupby(sorted(chosen, key=_way), _way):
            row = list(booked)
            sums = [total(row, group=group) for group in GROUPS]
            now = [one for one in moved if _way(one) == way and queue in (one.queue, _ALL)]
            table.add_row(
                queue, f"{row[0].direction}s", printable(row[0].memory),
                row[0].path.removesuffix(" complex") if narrow else row[0].path,
                *(amount(count) if count else "" for count in sums), *([] if narrow else [amount(sum(sums))]),
                *([rate(total(now), seconds) if now else ""] if seconds else []),
            )  # fmt: skip

    for queue, chosen in groupby(ledger, lambda entry: entry.queue):
        if queues is None or queue in queues:
            add(queue, list(chosen))
    table.add_section()
    add(_ALL, ledger)
    others = {entry.memory: entry.place for entry in ledger if entry.place is not Place.RAM}
    if others:
        table.caption = "; ".join(f"{printable(memory)}: {place}" for memory, place in sorted(others.items()))
        table.caption_justify = "left"
    return table


def _way(entry: Entry) -> tuple[str, str, str]:
    return entry.direction, entry.memory, entry.path
