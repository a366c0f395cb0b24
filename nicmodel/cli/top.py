"""``nicmodel top``: what the NICs of a running server do now."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nicmodel.cli.options import control_option, interval_option
from nicmodel.observe.control import Control
from nicmodel.observe.report import named, plain_console, rate, size
from nicmodel.observe.text import escaped


@click.command()
@control_option
@interval_option
@click.option("--once", is_flag=True, help="Print one table and end.")
def top(path: str, interval: float, once: bool) -> None:
    """Rates of every queue, live: frames, bits, interrupts, ring fill, drops by name; DMA by kind of memory."""
    console = plain_console()
    with Control(path) as control:
        before, then = control.stat(), time.monotonic()
        if once:
            time.sleep(interval)
            console.print(view(before, control.stat(), time.monotonic() - then))
            return
        with (
            contextlib.suppress(KeyboardInterrupt),
            Live(console=console, screen=True, auto_refresh=False) as live,
        ):
            while True:
                time.sleep(interval)
                after, now = control.stat(), time.monotonic()
                live.update(view(before, after, now - then), refresh=True)
                before, then = after, now


def view(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], seconds: float) -> RenderableType:
    """The screen, made of two answers of `Control.stat` that are `seconds` apart."""
    parts: list[RenderableType] = []
    for old, new in zip(escaped(before), escaped(after), strict=True):
        parts += [_heading(new), _queues(old, new, seconds), _memory(old, new, seconds)]
    return Group(*parts)


def _heading(nic: Mapping[str, Any]) -> Text:
    link = ("link up", "green") if nic["link_up"] else ("link down", "red")
    return Text.assemble(
        (f"{nic['name']} ", "bold"), f"{nic['mac']}, wire {nic['wire']['name']}, ", link,
        f", {nic['client'] or 'no guest'}",
    )  # fmt: skip


def _queues(old: Mapping[str, Any], new: Mapping[str, Any], seconds: float) -> Table:
    table = Table()
    table.add_column("queue")
    for heading in ("frames/s", "bit/s", "interrupts/s", "ring", "waiting"):
        table.add_column(heading, justify="right")
    table.add_column("drops")
    for way, counter in (("rx", "frames"), ("tx", "packets")):
        for was, queue in zip(old[f"{way}_queues"], new[f"{way}_queues"], strict=True):
            if not queue["active"]:
                continue
            fires = new["interrupts"][queue["vector"]] - old["interrupts"][queue["vector"]]
            head, tail, entries = (
                (queue["buffer_head"], queue["buffer_tail"], queue["buffer_entries"])
                if way == "rx"
                else (queue["head"], queue["tail"], queue["entries"])
            )
            table.add_row(
                f"{way}{queue['queue']}",
                rate(queue[counter] - was[counter], seconds),
                rate(8 * (queue["bytes"] - was["bytes"]), seconds),
                rate(fires, seconds),
                f"{(tail - head) & queue['position_mask']}/{entries}",
                str(queue["held"]) if way == "rx" else "",
                named(queue["drops"]),
            )
    table.add_row("device", *[""] * 5, named(new["device_drops"]))
    return table


def _memory(old: Mapping[str, Any], new: Mapping[str, Any], seconds: float) -> Text:
    """Bytes of DMA by purpose and kind of memory, those that move first."""
    words = []
    for purpose, kinds in new["dma"].items():
        for kind, count in kinds.items():
            moved = count - old["dma"].get(purpose, {}).get(kind, 0)
            words.append(f"{purpose} {kind} {size(count)}" + (f" ({rate(moved, seconds)}B/s)" if moved > 0 else ""))
    return Text(f"DMA: {', '.join(words) or 'none'}; faults: {new['dma_faults']}")
