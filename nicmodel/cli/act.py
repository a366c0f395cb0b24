"""``nicmodel inject``, ``send``, ``link`` and ``reset``: act on a running NIC."""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any

import click

from nicmodel.cli.options import control_option, nic_option
from nicmodel.cli.tables import wrapped
from nicmodel.client.control import Control
from nicmodel.client.text import escaped
from nicmodel.nearest import Choice
from nicmodel.testing.frames import PEER_MAC, encode, read_capture

_FRAMES = click.argument("frames", nargs=-1, required=True, metavar="FRAME...")
_BROADCAST = "ff:ff:ff:ff:ff:ff"


@click.command()
@control_option
@nic_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with the completions.")
@_FRAMES
def inject(path: str, nic: str | None, as_json: bool, frames: tuple[str, ...]) -> None:
    """Have a NIC receive frames; see where each went and why.

    A FRAME is hexadecimal digits, the name of a capture file, or a scapy expression. In an expression, addresses that
    the Ethernet layer leaves out are the NIC's and a made-up peer's.

    \b
      nicmodel inject 'Ether()/IP(dst="192.0.2.1")/TCP(dport=5201)/("x"*1000)'
      nicmodel inject captured.pcap
      nicmodel inject ffffffffffff020000000001080000

    The exit status is 0 if all were delivered or wait for buffers.
    """
    with Control(path) as control:
        mac = _mac(control, nic)
        data = [frame for text in frames for frame in parse_frames(text, mac)]
        results = control.inject(data, nic)
    for frame, result in zip(data, results, strict=True):
        click.echo(json.dumps(result) if as_json else wrapped(f"{len(frame)} bytes: {describe(result)}"))
    if any(result["verdict"] not in ("delivered", "held") for result in results):
        sys.exit(1)


@click.command()
@control_option
@nic_option
@_FRAMES
def send(path: str, nic: str | None, frames: tuple[str, ...]) -> None:
    """Put frames on a NIC's wire, as if its driver had sent them.

    A FRAME is what it is for `nicmodel inject`; addresses that an Ethernet layer leaves out are the NIC's as the source
    and broadcast as the destination.

    The exit status is 0 if the wire has taken all.
    """
    with Control(path) as control:
        mac = _mac(control, nic)
        data = [frame for text in frames for frame in parse_frames(text, _BROADCAST, mac)]
        sent = control.send(data, nic)
    click.echo(f"{sent} of {len(data)} frames sent")
    if sent < len(data):
        sys.exit(1)


def _mac(control: Control, nic: str | None) -> str:
    """The address of the NIC that is meant; of any, if the name is wrong, which the server will say."""
    macs: dict[str, str] = {one["name"]: one["mac"] for one in control.stat()}
    return macs.get(nic or "") or next(iter(macs.values()))


def parse_frames(text: str, dst: str, src: str = PEER_MAC) -> list[bytes]:
    """The frames that an argument stands for; `dst` and `src` stand in for addresses that it leaves out.

    Raises:
        click.BadParameter: it stands for none.
    """
    digits = re.sub(r"[\s:]", "", text)
    if re.fullmatch(r"([0-9a-fA-F]{2})+", digits):
        return [bytes.fromhex(digits)]
    import scapy.all as scapy  # slow to load

    if os.path.isfile(text):
        try:
            return list(read_capture(text))
        except (scapy.Scapy_Exception, OSError, EOFError) as error:
            raise click.BadParameter(f"{text} is not a capture file that can be read: {error}") from None
    try:
        packets = list(eval(text, dict(vars(scapy))))
    except Exception as error:
        raise click.BadParameter(
            f"{text!r} is neither hexadecimal, nor a file, nor a scapy expression: {error}"
        ) from None
    for packet in packets:
        if not isinstance(packet, scapy.Packet):
            raise click.BadParameter(f"the expression yields {packet!r}, not a packet")
    return [encode(packet, dst, src) for packet in packets]


def describe(result: dict[str, Any]) -> str:
    """Where a frame went, in words."""
    result = escaped(result)
    if "queue" not in result:
        return str(result["verdict"])
    reason = f"rule {result['rule']}" if "rule" in result else f"table entry {result['table_entry']}"
    words = [f"{result['verdict']}, {result['queue']} by {reason}, hash {result['hash']:#010x}"]
    if "completions" in result:
        words.append(f"header {result['header']} + payload {result['payload']} bytes")
        words.append("completion " + ", ".join(str(one["index"]) for one in result["completions"]))
    return "; ".join(words)


@click.command()
@control_option
@nic_option
@click.argument("state", type=Choice(["up", "down"]))
def link(path: str, nic: str | None, state: str) -> None:
    """Plug a NIC's cable in, or pull it out.

    The driver learns of it by the management interrupt.
    """
    with Control(path) as control:
        up = control.set_link(state == "up", nic)
    click.echo(f"link is {'up' if up else 'down'}")


@click.command()
@control_option
@nic_option
def reset(path: str, nic: str | None) -> None:
    """Have a NIC ask its driver for a reset.

    A real device does so when it is in trouble.
    """
    with Control(path) as control:
        control.request_reset(nic)
