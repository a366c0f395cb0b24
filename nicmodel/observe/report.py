"""Counters as a person reads them in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def named(counts: Mapping[str, int]) -> str:
    """``no_buffers 12, over_mru 1``, or ``none``."""
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"


def size(count: int) -> str:
    """A number of bytes with a binary unit."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.1f} {units[0]}" if units[0] != "B" else f"{count} B"


def show(snapshots: Sequence[Mapping[str, Any]]) -> None:
    """Print what `nicmodel.observe.snapshot.snapshot` has collected."""
    console = Console()
    for nic in snapshots:
        table = Table(title=f"{nic['name']} {nic['mac']}, wire {nic['wire']['name']}", title_justify="left")
        table.add_column("queue")
        for heading in ("frames", "bytes", "drops", "DMA"):
            table.add_column(heading, justify="right" if heading in ("frames", "bytes") else "left")
        for way, counter in (("rx", "frames"), ("tx", "packets")):
            for queue in nic[f"{way}_queues"]:
                if queue[counter] or queue["drops"]:
                    table.add_row(
                        f"{way}{queue['queue']}", f"{queue[counter]:,}", size(queue["bytes"]), named(queue["drops"]),
                        _dma(queue["dma"]),
                    )  # fmt: skip
        table.add_row("device", "", "", named(nic["device_drops"]), "")
        console.print(table)
        if nic["dma_faults"]:
            console.print(f"DMA faults: {nic['dma_faults']}")
        for rule in nic["rules"]:
            console.print(
                f"rule {rule['location']}: {rule['flow_type']} to queue {rule['queue']}, {rule['hits']:,} hits"
            )


def _dma(ledger: Mapping[str, Mapping[str, int]]) -> str:
    return ", ".join(
        f"{purpose} {size(count)} {kind}"
        for purpose in ("payload", "header", "transmit")
        for kind, count in ledger.get(purpose, {}).items()
    )
