"""``nicmodel inject``, ``link`` and ``reset``: act on a running NIC."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import click

from nicmodel.cli.options import control_option, nic_option
from nicmodel.observe.control import Control

#: Who sends, unless a frame says so itself.
_PEER = "02:00:00:00:00:fe"


@click.command()
@control_option
@nic_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with the completions.")
@click.argument("frames", nargs=-1, required=True, metavar="FRAME...")
def inject(path: str, nic: str | None, as_json: bool, frames: tuple[str, ...]) -> None:
    """Have a NIC receive frames, and tell where each went and why.

    A FRAME is hexadecimal digits, the name of a capture file, or a scapy expression. In an expression, addresses that
    the Ethernet layer leaves out are the NIC's and a made-up peer's.

    \b
      nicmodel inject 'Ether()/IP(dst="192.0.2.1")/TCP(dport=5201)/("x"*1000)'
      nicmodel inject captured.pcap
      nicmodel inject ffffffffffff020000000001080000

    The exit status is 0 if all were delivered or wait for buffers.
    """
    with Control(path) as control:
        nics = {one["name"]: one["mac"] for one in control.stat()}
        mac = nics.get(nic or "") or next(iter(nics.values()))
        data = [frame for text in frames for frame in parse_frames(text, mac)]
        results = control.inject(data, nic)
    for frame, result in zip(data, results, strict=True):
        click.echo(json.dumps(result) if as_json else f"{len(frame)} bytes: {describe(result)}")
    if any(result["verdict"] not in ("delivered", "held") for result in results):
        sys.exit(1)


def parse_frames(text: str, mac: str) -> list[bytes]:
    """The frames that an argument of ``nicmodel inject`` stands for; `mac` is where they go by default.

    Raises:
        click.BadParameter: it stands for none.
    """
    digits = re.sub(r"[\s:]", "", text)
    if re.fullmatch(r"([0-9a-fA-F]{2})+", digits):
        return [bytes.fromhex(digits)]
    import scapy.all as scapy  # slow to load

    if Path(text).is_file():
        try:
            return [bytes(packet) for packet in scapy.PcapReader(text)]
        except scapy.Scapy_Exception as error:
            raise click.BadParameter(f"{text} is not a capture file: {error}") from None
    try:
        packets = list(eval(text, dict(vars(scapy))))
    except Exception as error:
        raise click.BadParameter(
            f"{text!r} is neither hexadecimal, nor a file, nor a scapy expression: {error}"
        ) from None
    return [_encode(packet, mac) for packet in packets]


def _encode(packet: Any, mac: str) -> bytes:
    import scapy.all as scapy

    if not isinstance(packet, scapy.Packet):
        raise click.BadParameter(f"the expression yields {packet!r}, not a packet")
    if isinstance(packet, scapy.Ether):
        # scapy would ask this host's network for the addresses.
        packet.dst = packet.fields.get("dst", mac)
        packet.src = packet.fields.get("src", _PEER)
    return bytes(packet)


def describe(result: dict[str, Any]) -> str:
    """Where a frame went, in words."""
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
@click.argument("state", type=click.Choice(["up", "down"]))
def link(path: str, nic: str | None, state: str) -> None:
    """Plug a NIC's cable in or pull it; the driver is told by the management interrupt."""
    with Control(path) as control:
        up = control.set_link(state == "up", nic)
    click.echo(f"link is {'up' if up else 'down'}")


@click.command()
@control_option
@nic_option
def reset(path: str, nic: str | None) -> None:
    """Have a NIC ask its driver for a reset, as a device in trouble does."""
    with Control(path) as control:
        control.request_reset(nic)
