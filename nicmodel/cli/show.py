"""``nicmodel show``: all that a NIC holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.table import Table

from nicmodel.cli.options import control_option, nic_option
from nicmodel.observe.control import Control
from nicmodel.observe.report import plain_console, size
from nicmodel.observe.text import escaped, fields, is_hex

#: Memory regions that are listed; behind an IOMMU every page is one.
_MAX_REGIONS = 32
#: Entries of the RSS table in one line.
_TABLE_ROW = 32


@click.command()
@control_option
@nic_option
@click.option("--json", "as_json", is_flag=True, help="Print the whole state as JSON.")
def show(path: str, nic: str | None, as_json: bool) -> None:
    """Registers, options offered, queues with their rings, RSS, flow rules and memory of a NIC."""
    with Control(path) as control:
        found = control.show(nic)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    found = escaped(found)
    click.echo(f"registers  {fields(found['registers'])} pci_command={','.join(found['pci_command']) or '-'}")
    click.echo(f"admin      {fields(found['admin_queue'])}")
    click.echo(f"driver     {fields(found['driver']) if found['driver'] else 'none'}")
    click.echo(f"descriptor {fields(found['descriptor'])}")
    for name, option in found["options"].items():
        click.echo(f"option     {name} {fields(option)}")
    click.echo(f"format     {found['queue_format']}")
    for name, queue in found["queues"].items():
        click.echo(f"queue      {name} {fields(queue)}")
    _rss(found["rss"])
    _table("interrupts", found["blocks"])
    _table(
        "flow rules, the first that matches wins", [{**rule, "match": fields(rule["match"])} for rule in found["rules"]]
    )
    memory = [{**region, "size": size(region["size"])} for region in found["memory"]]
    _table("memory", memory[:_MAX_REGIONS])
    if (more := found["memory_regions"] - _MAX_REGIONS) > 0:
        click.echo(f"and {more:,} regions more")


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows that all have the same keys, which become the headings."""
    if not rows:
        click.echo(f"{title}: none")
        return
    table = Table(title=title, title_justify="left")
    for name, value in rows[0].items():
        table.add_column(name.replace("_", " "), justify="right" if isinstance(value, int) else "left")
    for row in rows:
        table.add_row(*(_cell(name, value) for name, value in row.items()))
    plain_console().print(table)


def _cell(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:#x}" if isinstance(value, int) and is_hex(name) else str(value)


def _rss(rss: Mapping[str, Any]) -> None:
    click.echo(f"RSS        table by the {rss['set_by']}, hashes {','.join(rss['hash_types']) or 'nothing'}")
    click.echo(f"RSS key    {rss['key']}")
    for first in range(0, len(rss["table"]), _TABLE_ROW):
        row = rss["table"][first : first + _TABLE_ROW]
        click.echo(f"RSS table  {first:3}: {' '.join(map(str, row))}")
