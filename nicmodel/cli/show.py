"""``nicmodel show``: all that a NIC holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from nicmodel.cli.options import control_option, nic_option
from nicmodel.cli.tables import heading, pairs, rows
from nicmodel.client.control import Control
from nicmodel.client.report import plain_console, size
from nicmodel.client.text import escaped, fields

#: Memory regions that are listed; behind an IOMMU every page is one.
_MAX_REGIONS = 32
#: What a line of the RSS table begins with: the number of its first entry.
_RSS_MARGIN = 7


@click.command()
@control_option
@nic_option
@click.option("--json", "as_json", is_flag=True, help="Print the whole state as JSON.")
def show(path: str, nic: str | None, as_json: bool) -> None:
    """Show all that a NIC holds: registers, queues, rules, memory.

    Also the admin queue, or the mailbox, what the driver says of itself, the device descriptor and the options offered,
    RSS, interrupts, and the faults and the weather that the NIC has. What is the same for all queues is told once,
    below their table. Addresses are guest addresses.
    """
    with Control(path) as control:
        found = control.show(nic)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    print_state(plain_console(), escaped(found))


def print_state(console: Console, found: Mapping[str, Any]) -> None:
    """Print what `nicmodel.observe.detail` has found, as tables no wider than the console."""
    console.print(Text(f"{found['name']}, queue format {found['queue_format']}", style="bold"))
    heading(console, "registers")
    bars = found["bars"].items() if isinstance(found["bars"], Mapping) else enumerate(found["bars"])
    addresses = {f"bar_{number}_address": address for number, address in bars}
    pairs(console, {**found["registers"], "pci_command": found["pci_command"], **addresses})
    # Not every kind of NIC has all of these.
    for name, title in (("admin_queue", "admin queue"), ("mailbox", "mailbox"), ("vport", "vport")):
        if name in found:
            _section(console, title, found[name])
    if "driver" in found:
        _section(console, "driver", found["driver"])
    if "descriptor" in found:
        _section(console, "device descriptor", found["descriptor"])
        heading(console, "options offered")
        rows(console, [{"option": name, "fields": fields(option)} for name, option in found["options"].items()])
    for way, title in (("rx", "receive queues"), ("tx", "transmit queues")):
        queues = [{"queue": name, **queue} for name, queue in found["queues"].items() if name.startswith(way)]
        _table(console, title, queues, once=True)
    for name, title in (("small_buffer_queues", "second buffer queues"), ("completion_queues", "completion queues")):
        if name in found:
            _table(console, title, [{"queue": queue, **settings} for queue, settings in found[name].items()], once=True)
    _rss(console, found["rss"])
    _table(console, "interrupts", _runs(found["blocks"]), once=True)
    _table(
        console, "flow rules, the first that matches wins",
        [{**rule, "match": fields(rule["match"])} for rule in found["rules"]],
    )  # fmt: skip
    memory = [{**region, "size": size(region["size"])} for region in found["memory"]]
    _table(console, "memory", memory[:_MAX_REGIONS])
    if (more := found["memory_regions"] - _MAX_REGIONS) > 0:
        console.print(f"and {more:,} regions more")
    faults = [{**fault, "parameters": fields(fault["parameters"])} for fault in found.get("faults", ())]
    _table(console, "faults and weather", faults)


def _runs(blocks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Notification blocks, those in a row that differ by their vector only in one record: ``0-23``."""
    runs = [[*run] for _, run in groupby(enumerate(blocks), lambda one: {**one[1], "vector": None})]
    return [
        {
            "block": _span(run[0][0], run[-1][0]),
            **run[0][1],
            "vector": _span(run[0][1]["vector"], run[-1][1]["vector"]),
        }
        for run in runs
    ]


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _section(console: Console, title: str, values: Mapping[str, Any] | None) -> None:
    heading(console, title if values else f"{title}: none")
    if values:
        pairs(console, values)


def _table(console: Console, title: str, found: Sequence[Mapping[str, Any]], *, once: bool = False) -> None:
    heading(console, title if found else f"{title}: none")
    if found:
        rows(console, found, once=once)


def _rss(console: Console, rss: Mapping[str, Any]) -> None:
    heading(console, "RSS")
    pairs(console, {name: rss[name] for name in ("set_by", "hash_types", "key")})
    table = [str(queue) for queue in rss["table"]]
    width = max(map(len, table), default=1) + 1
    in_row = 1
    while _RSS_MARGIN + width * in_row * 2 <= console.width and in_row < len(table):
        in_row *= 2
    console.print("  table: entry, and the queues of it and those that follow")
    for first in range(0, len(table), in_row):
        line = "".join(f"{queue:>{width}}" for queue in table[first : first + in_row])
        console.print(f"{first:{_RSS_MARGIN - 1}}:{line}")
