"""``nicmodel faults``, ``nicmodel fault`` and ``nicmodel weather``: faults on demand, and what is none."""

from __future__ import annotations

from typing import TextIO

import click
from rich.table import Table

from nicmodel.cli.devices import DEVICES, device_option
from nicmodel.cli.help import HelpGroup
from nicmodel.cli.options import control_option, nic_option
from nicmodel.cli.tables import wrapped
from nicmodel.client.control import Control
from nicmodel.client.report import plain_console
from nicmodel.client.text import escaped, fields
from nicmodel.faults.fault import FaultError
from nicmodel.faults.weather import FORM, Weather, behaviours
from nicmodel.nearest import did_you_mean


@click.command()
@click.argument("names", nargs=-1, metavar="[FAULT...]")
@device_option
def faults(names: tuple[str, ...], device: str) -> None:
    """List the faults that a NIC can be given.

    With a FAULT's name: its parameters, and how the stock driver reacts to it.
    """
    known, effects = DEVICES[device].faults, DEVICES[device].effects
    for name in names:
        if name not in known:
            nearest = did_you_mean(name, known)
            raise click.BadParameter(f"there is no fault {name!r}{nearest or '; nicmodel faults lists them'}")
    console = plain_console()
    if not names:
        table = Table(box=None, pad_edge=False)
        for heading in ("where", "fault", "what it does"):
            table.add_column(heading, no_wrap=heading == "fault")
        for kind in known.values():
            table.add_row(kind.where, kind.name, kind.summary())
        console.print(table)
        return
    for name in names:
        kind = known[name]
        console.print(f"{name} ({kind.where}): {kind.summary()}")
        console.print(f"The stock driver: {effects.get(name, kind.effect)}")
        if kind.source:
            console.print(f"The contract allows it: {kind.source}")
        table = Table(box=None, pad_edge=False)
        for heading in ("parameter", "default", "meaning"):
            table.add_column(heading)
        for one in kind.parameters().values():
            meaning = f"{one.meaning} ({one.allowed})" if one.allowed else one.meaning
            table.add_row(one.name, "" if one.default is None else str(one.default), meaning)
        console.print(table)


@click.command()
@click.argument("text", metavar=f"[{FORM}]", required=False)
@device_option
def weather(text: str | None, device: str) -> None:
    """List what devices may do and rarely do, or draw a weather from it.

    `nicmodel serve --weather` has a NIC do it, each behaviour with a probability and times that are drawn from a seed.
    With that seed this command prints what was drawn, as a scenario in TOML for `nicmodel fault play`. Each behaviour
    can also be begun by `nicmodel fault add`; `nicmodel faults NAME` tells its parameters.

    \b
      nicmodel weather
      nicmodel weather 7:0.3
      nicmodel weather 7:0.3:tx-miss,rx-scatter
    """
    if text is not None:
        try:
            click.echo(Weather.parse(text).toml(DEVICES[device].faults), nl=False)
        except FaultError as error:
            raise click.BadParameter(str(error)) from None
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("where", "behaviour", "what it does"):
        table.add_column(heading, no_wrap=heading == "behaviour")
    for kind in behaviours(DEVICES[device].faults).values():
        told = f"{kind.summary()} Packets are lost: only where it is named." if kind.loses else kind.summary()
        table.add_row(kind.where, kind.name, told)
    plain_console().print(table)


@click.group(cls=HelpGroup)
def fault() -> None:
    """Begin faults on a running NIC, list and end them."""


@fault.command()
@control_option
@nic_option
@click.option("--seed", type=int,
              help="Seed of the fault's random numbers: the same seed and traffic give the same hits.")  # fmt: skip
@click.argument("name", metavar="FAULT")
@click.argument("parameters", nargs=-1, metavar="[PARAMETER=VALUE...]")
def add(path: str, nic: str | None, seed: int | None, name: str, parameters: tuple[str, ...]) -> None:
    """Begin a fault and print its number.

    `nicmodel faults` lists the faults and their parameters.

    \b
      nicmodel fault add wire-drop probability=0.01 duration=10
      nicmodel fault add admin-status opcode=CREATE_RX_QUEUE \\
        status=RESOURCE_EXHAUSTED count=1
    """
    values = {}
    for text in parameters:
        key, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"{text!r} is not of the form PARAMETER=VALUE")
        values[key] = value
    with Control(path) as control:
        click.echo(control.request("fault", nic=nic, fault=name, parameters=values, seed=seed)["id"])


@fault.command("list")
@control_option
@nic_option
def list_(path: str, nic: str | None) -> None:
    """List faults that are active or scheduled, with their hits."""
    with Control(path) as control:
        for one in escaped(control.faults(nic)):
            told = f"{one['id']}: {one['fault']} {one['state']}, {one['hits']:,} hits; {fields(one['parameters'])}"
            click.echo(wrapped(told))


@fault.command()
@control_option
@click.argument("file", type=click.File(encoding="utf-8", errors="surrogateescape"))
def play(path: str, file: TextIO) -> None:
    """Begin the faults of a scenario.

    FILE is a scenario in TOML; its times count from now.
    """
    with Control(path) as control:
        control.begin_scenario(file.read())


@fault.command()
@control_option
@nic_option
@click.argument("numbers", nargs=-1, type=int, metavar="[NUMBER...]")
def end(path: str, nic: str | None, numbers: tuple[int, ...]) -> None:
    """End faults.

    Each NUMBER is what `nicmodel fault add` printed; without any, all faults end.
    """
    with Control(path) as control:
        for number in numbers or (None,):
            control.end_fault(number, nic=nic)
