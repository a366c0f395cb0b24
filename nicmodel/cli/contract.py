"""``nicmodel rules`` and ``nicmodel findings``: the contract, and how a driver has broken it."""

from __future__ import annotations

import json
from collections.abc import Mapping

import click

from nicmodel.cli.devices import DEVICES, device_option
from nicmodel.cli.options import BROKEN, control_option
from nicmodel.cli.tables import plain_table, wrapped
from nicmodel.client.control import Control
from nicmodel.client.report import plain_console
from nicmodel.nearest import did_you_mean
from nicmodel.observe.findings import Rule, as_text


@click.command()
@click.argument("names", nargs=-1, metavar="[RULE]...")
@device_option
@click.option("--json", "as_json", is_flag=True, help="Print the rules in full, as JSON.")
def rules(names: tuple[str, ...], device: str, as_json: bool) -> None:
    """List the rules that a driver has to keep.

    With a RULE: that rule in full, with why and where it is written down. RX-BUF-003 names one rule; RX or ADM-QUE,
    the beginning of names, stands for all that begin so.
    """
    known, areas = DEVICES[device].rules, DEVICES[device].areas
    chosen = [rule for rule in known.values() if not names or rule.name.startswith(tuple(map(str.upper, names)))]
    unknown = [name for name in names if not any(rule.startswith(name.upper()) for rule in known)]
    if unknown:
        raise click.UsageError(
            f"no rule is called {unknown[0]}, or begins so; the areas are {', '.join(areas)}"
            + did_you_mean(unknown[0], known)
        )
    if as_json:
        click.echo(json.dumps([_as_dict(rule, areas) for rule in chosen], indent=1))
    elif names:
        click.echo(wrapped("\n\n".join(_in_full(rule, areas) for rule in chosen)))
    else:
        table = plain_table("rule", "severity", "says")
        for rule in chosen:
            table.add_row(rule.name, rule.severity.value, rule.says)
        console = plain_console()
        console.print(table)
        console.print(f"{len(chosen)} rules; nicmodel rules NAME tells why, and where it is written down")


def _as_dict(rule: Rule, areas: Mapping[str, str]) -> dict[str, str]:
    return {
        "rule": rule.name,
        "area": areas[rule.area],
        "severity": rule.severity.value,
        "says": rule.says,
        "why": rule.why,
        "source": rule.source,
    }


def _in_full(rule: Rule, areas: Mapping[str, str]) -> str:
    fields = _as_dict(rule, areas)
    return "\n".join([f"{rule.name}: {rule.says}", *(f"  {name:<9}{fields[name]}" for name in
                                                     ("why", "area", "severity", "source"))])  # fmt: skip


@click.command()
@control_option
@click.option("--nic", metavar="NAME", help="Only findings of this NIC of the server: nic0, nic1, …")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def findings(path: str, nic: str | None, as_json: bool) -> None:
    """List the rules that drivers have broken on a running server.

    The server has to be started with --check or --strict.

    The exit status is 3 if there is any finding.
    """
    with Control(path) as control:
        found = control.findings(nic)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        click.echo(wrapped("\n".join(map(as_text, found))) or "no findings")
    if found:
        raise click.exceptions.Exit(BROKEN)
