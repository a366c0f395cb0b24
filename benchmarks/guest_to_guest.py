"""Guest to guest: through our link and our switch, beside virtio-net over QEMU's own stream socket.

    python benchmarks/guest_to_guest.py
    python benchmarks/guest_to_guest.py --case "link 1500 x1" --seconds 5

Both guests have all three NICs, which are measured in turns. The link and the switch pass on TCP segments of up to
64 KiB as they are; QEMU's socket carries frames of the MTU's size.
"""

from __future__ import annotations

import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np
from plot import Plot, Series
from report import counted, output_option, write
from rich.console import Console
from rich.progress import track
from testbed import IPERF_PORT, LARGEST_MTU, MEMORY, enter_namespace, interfaces, wait_for_listener

from nicmodel.client.results import Column
from nicmodel.vm.guest import Guest, GuestConfig
from nicmodel.vm.layout import Nic
from nicmodel.vm.server import NicServer

PEER = "virtio-net"
#: The number of each wire is that of its NIC in each guest, and of its network.
WIRES = ("link", "switch", PEER)
GOAL = 2.0
CASES = {
    f"{wire} {mtu} x{streams}": (wire, mtu, streams)
    for mtu in (1500, LARGEST_MTU)
    for streams in (1, 4)
    for wire in WIRES
    if wire != PEER
}


def mac(guest: int, wire: int) -> str:
    """The address of a guest's NIC."""
    return f"02:00:00:00:{guest + 1:02x}:{wire + 1:02x}"


def address(guest: int, wire: int) -> str:
    """Likewise its IPv4 address."""
    return f"10.9.{wire}.{guest + 1}"


class Pair:
    """Two guests with three connections; use it as a context manager."""

    guests: list[Guest]

    def __init__(self, vcpus: int) -> None:
        self._vcpus = vcpus
        self._mtu = 0
        self._interfaces: list[dict[str, str]] = []

    def __enter__(self) -> Pair:
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="nicmodel-"))
            options = [word for wire in ("link", "link", "switch", "switch") for word in ("--wire", wire)]
            options += [word for wire in (0, 1) for guest in (0, 1) for word in ("--mac", mac(guest, wire))]
            server = stack.enter_context(NicServer(options, sockets=4))
            self.guests = []
            for number in (0, 1):
                stream = f"addr.type=unix,addr.path={folder}/stream.sock,server={'off' if number else 'on'}"
                config = GuestConfig(
                    nics=[Nic(server.sockets[number]), Nic(server.sockets[2 + number])], vcpus=self._vcpus,
                    memory=MEMORY, arguments=[
                        "-netdev", f"stream,id=stream,{stream}",
                        "-device", f"virtio-net-pci,netdev=stream,mac={mac(number, WIRES.index(PEER))},romfile=",
                    ],
                )  # fmt: skip
                self.guests.append(stack.enter_context(Guest(config)))
            for number, guest in enumerate(self.guests):
                self._interfaces.append(interfaces(guest))
                guest.run("sysctl -q net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")
                for wire in range(len(WIRES)):
                    interface = self._interfaces[number][mac(number, wire)]
                    guest.run(f"ip addr add {address(number, wire)}/24 dev {interface}; ip link set {interface} up")
            self.guests[1].start(f"iperf3 -s -p {IPERF_PORT}")
            wait_for_listener(self.guests[1], IPERF_PORT)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def set_mtu(self, mtu: int) -> None:
        """Set the MTU of all NICs."""
        if mtu == self._mtu:
            return
        self._mtu = mtu
        for number, guest in enumerate(self.guests):
            for wire in range(len(WIRES)):
                guest.run(f"ip link set {self._interfaces[number][mac(number, wire)]} mtu {mtu}")
        for wire in range(len(WIRES)):
            self.guests[0].run(f"until ping -q -c 1 -W 1 {address(1, wire)} >/dev/null; do :; done", timeout=60)

    def iperf(self, wire: str, seconds: int, streams: int) -> float:
        """Gbit/s of TCP from the first guest that arrive at the second."""
        wait_for_listener(self.guests[1], IPERF_PORT)  # which iperf3 does anew for each run
        server = address(1, WIRES.index(wire))
        command = f"iperf3 -c {server} -p {IPERF_PORT} -t {seconds} -P {streams} -J"
        said: dict[str, Any] = json.loads(self.guests[0].run(command, timeout=60 + seconds).stdout)
        return float(said["end"]["sum_received"]["bits_per_second"] / 1e9)


PLOT = Plot(
    series=(Series("gbps", "nicmodel"), Series("peer", "virtio-net over QEMU's stream socket", "virtio-net")),
    label=lambda row: f"{row['wire']}, MTU {row['mtu']}, {counted(row['streams'], 'stream')}",
    note=lambda row: f"{row['ratio']:.2f} ×",
    unit=lambda row: "Gbit/s",
    goal=lambda row: GOAL * float(row["peer"]),
)


@click.command()
@click.option("--case", "names", type=click.Choice(list(CASES)), multiple=True, help="Only this one; again and again.")
@click.option("--seconds", default=2, show_default=True, help="Of each run.")
@click.option("--rounds", default=2, show_default=True, help="Runs of each row; the median counts.")
@click.option("--vcpus", default=2, show_default=True, help="Of each guest.")
@output_option
def main(names: tuple[str, ...], seconds: int, rounds: int, vcpus: int, output: Path) -> None:
    """Measure, print a table and write it to benchmarks/results."""
    enter_namespace()
    chosen = [CASES[name] for name in names or CASES]
    settings = list(dict.fromkeys((mtu, streams) for _, mtu, streams in chosen))
    rows = []
    with Pair(vcpus) as pair:
        for mtu, streams in track(settings, "guest to guest", console=Console(stderr=True), transient=True):
            pair.set_mtu(mtu)
            wires = [wire for wire in WIRES if wire == PEER or (wire, mtu, streams) in chosen]
            runs: dict[str, list[float]] = {wire: [] for wire in wires}
            for _ in range(rounds):
                for wire in wires:
                    time.sleep(0.2)  # what the run before has left behind is over
                    runs[wire].append(pair.iperf(wire, seconds, streams))
            rows += [row(wire, mtu, streams, runs) for wire in wires if wire != PEER]
            click.echo(f"MTU {mtu}, {counted(streams, 'stream')}: {rows[-1]['ratio']:.2f}", err=True)
        accel = pair.guests[0].accel
    columns = (
        Column("wire", "wire"), Column("mtu", "MTU", "d"), Column("streams", "streams", "d"),
        Column("gbps", "Gbit/s", ".2f"), Column("peer", "virtio-net over QEMU's socket", ".2f"),
        Column("ratio", "ratio", ".2f"), Column("goal_text", "goal"), Column("held", "held"),
    )  # fmt: skip
    title = f"Guest to guest, TCP ({accel.upper()}, {vcpus} CPUs each)"
    write("guest_to_guest", title, columns, rows, PLOT, output)


def row(wire: str, mtu: int, streams: int, runs: dict[str, list[float]]) -> dict[str, Any]:
    """One of our wires beside QEMU's."""
    ours, peer = float(np.median(runs[wire])), float(np.median(runs[PEER]))
    return {
        "wire": wire,
        "mtu": mtu,
        "streams": streams,
        "gbps": ours,
        "peer": peer,
        "ratio": ours / peer,
        "goal_text": f"≥ {GOAL:g}",
        "held": "yes" if ours >= GOAL * peer else "no",
        "runs": {name: values for name, values in runs.items() if name in (wire, PEER)},
    }


if __name__ == "__main__":
    main()
