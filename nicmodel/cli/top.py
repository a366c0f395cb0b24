"""``nicmodel top``: what the NICs of a running server do now."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nicmodel.cli.options import control_option, interval_option
from nicmodel.cli.tables import as_many_as_fit, lines_of
from nicmodel.client.control import Control
from nicmodel.client.report import named, plain_console, rate, size
from nicmodel.client.text import escaped

#: From this width on there is room for whole headings, and for the drops of each queue by name.
_WIDE = 100
#: Reasons of drops, or purposes of DMA, in one line at most; a guest may have many kinds of memory.
_MAX_WORDS = 24


@click.command()
@control_option
@interval_option
@click.option("--once", is_flag=True, help="Print one table and end.")
def top(path: str, interval: float, once: bool) -> None:
    """Show the rates of every queue, live.

    Frames, bits and interrupts a second, how many buffers or descriptors of the ring are posted, frames that wait for
    buffers, and drops by name; DMA by purpose and kind of memory. If there are more queues than lines, the busiest are
    shown.
    """
    console = plain_console()
    with Control(path) as control:
        before, then = control.stat(), time.monotonic()
        if once:
            time.sleep(interval)
            console.print(view(console, before, control.stat(), time.monotonic() - then))
            return
        with (
            contextlib.suppress(KeyboardInterrupt),
            Live(console=console, screen=True, auto_refresh=False) as live,
        ):
            while True:
                time.sleep(interval)
                after, now = control.stat(), time.monotonic()
                live.update(view(console, before, after, now - then, height=console.height), refresh=True)
                before, then = after, now


def view(
    console: Console, before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], seconds: float, *,
    height: int | None = None,
) -> RenderableType:  # fmt: skip
    """The screen, made of two answers of `Control.stat` that are `seconds` apart.

    Args:
        console: where it is shown; its width decides which columns there are.
        before: the first answer.
        after: the second one.
        seconds: see there.
        height: lines that there are; None: as many as it takes. With fewer than the NICs need, some of their queues
            are left out, then whole NICs, and it is said how many.
    """
    nics = [_Nic(old, new, seconds, console.width) for old, new in zip(escaped(before), escaped(after), strict=True)]
    if height is None:
        return Group(*(nic.view() for nic in nics))

    least = [lines_of(console, nic.view(1)) for nic in nics]
    count = len(nics)
    while count > 1 and sum(least[:count]) + (count < len(nics)) > height:
        count -= 1
    room = height - (count < len(nics))
    views: list[RenderableType] = []
    for number, nic in enumerate(nics[:count]):
        share = (room - sum(least[number:count])) // (count - number) + least[number]
        views.append(as_many_as_fit(console, nic.view, len(nic.queues), share))
        room -= lines_of(console, views[-1])
    if count < len(nics):
        views.append(Text(f"and {len(nics) - count} more NICs", style="bold"))
    return Group(*views)


@dataclass(frozen=True)
class _Queue:
    """What a queue has done between two answers."""

    name: str
    frames: int
    dropped: int
    bits: int
    interrupts: int
    posted: int
    entries: int
    waiting: int | None
    drops: Mapping[str, int]


class _Nic:
    """A NIC's part of the screen."""

    def __init__(self, old: Mapping[str, Any], new: Mapping[str, Any], seconds: float, width: int) -> None:
        self._old, self._new, self._seconds, self._wide = old, new, seconds, width >= _WIDE
        self.queues = list(_queues(old, new))

    def view(self, most: int | None = None) -> RenderableType:
        """All of it, or with no more than `most` queues."""
        busiest = sorted(self.queues, key=lambda queue: queue.frames + queue.dropped, reverse=True)
        hidden = [] if most is None else busiest[most:]
        left_out = {queue.name for queue in hidden}
        shown = [queue for queue in self.queues if queue.name not in left_out]
        parts: list[RenderableType] = [self._heading(), self._table(shown)]
        if hidden:
            frames = rate(sum(queue.frames for queue in hidden), self._seconds)
            parts.append(f"and {len(hidden)} more queues, {frames} frames/s")
        if not self._wide:
            parts.append(f"drops: {_few(self._new['drops'])}")
        parts.append(self._memory())
        return Group(*parts)

    def _heading(self) -> Text:
        nic = self._new
        link = ("link up", "green") if nic["link_up"] else ("link down", "red")
        return Text.assemble(
            (f"{nic['name']} ", "bold"), f"{nic['mac']}, wire {nic['wire']['name']}, ", link,
            f", {nic['client'] or 'no guest'}",
        )  # fmt: skip

    def _table(self, queues: Sequence[_Queue]) -> Table:
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1) if self._wide else 0)
        table.add_column("queue", no_wrap=True)
        for name in ("frames/s", "bit/s", "interrupts/s" if self._wide else "irq/s", "ring", "waiting"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("drops", justify="left" if self._wide else "right")
        for queue in queues:
            table.add_row(
                queue.name,
                *(rate(count, self._seconds) for count in (queue.frames, queue.bits, queue.interrupts)),
                f"{queue.posted}/{queue.entries}",
                "" if queue.waiting is None else str(queue.waiting),
                self._drops(queue.drops),
            )
        table.add_row("device", *[""] * 5, self._drops(self._new["device_drops"]))
        return table

    def _drops(self, drops: Mapping[str, int]) -> str:
        return _few(drops) if self._wide else f"{sum(drops.values()):,}"

    def _memory(self) -> Text:
        """Bytes of DMA by purpose and kind of memory."""
        words = []
        for purpose, kinds in self._new["dma"].items():
            for kind, count in kinds.items():
                moved = count - self._old["dma"].get(purpose, {}).get(kind, 0)
                now = f" ({rate(moved, self._seconds)}B/s)" if moved > 0 else ""
                words.append(f"{purpose} {kind} {size(count)}{now}")
        more = [f"{len(words) - _MAX_WORDS} more"] if len(words) > _MAX_WORDS else []
        return Text(f"DMA: {', '.join(words[:_MAX_WORDS] + more) or 'none'}; faults: {self._new['dma_faults']}")


def _queues(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[_Queue]:
    for way, counter in (("rx", "frames"), ("tx", "packets")):
        for was, queue in zip(old[f"{way}_queues"], new[f"{way}_queues"], strict=True):
            if not queue["active"]:
                continue
            head, tail, entries = (
                (queue["buffer_head"], queue["buffer_tail"], queue["buffer_entries"])
                if way == "rx"
                else (queue["head"], queue["tail"], queue["entries"])
            )
            yield _Queue(
                name=f"{way}{queue['queue']}",
                frames=queue[counter] - was[counter],
                dropped=sum(queue["drops"].values()) - sum(was["drops"].values()),
                bits=8 * (queue["bytes"] - was["bytes"]),
                interrupts=new["interrupts"][queue["vector"]] - old["interrupts"][queue["vector"]],
                posted=(tail - head) % queue["positions"],
                entries=entries,
                waiting=queue["held"] if way == "rx" else None,
                drops=queue["drops"],
            )


def _few(drops: Mapping[str, int]) -> str:
    return named(dict(list(drops.items())[:_MAX_WORDS]))
