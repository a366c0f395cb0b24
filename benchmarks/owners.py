"""Buffers of two owners, taken in turn, behind one queue: what goes wrong in three kinds of ring.

    python benchmarks/owners.py

Owner A's flow is steady and its program gives each buffer back at once. Owner B's either is silent, or is as steady,
but its program gives nothing back. Asked is what A has of it, and whose memory payload is written to:

- *plain*: the ring knows nothing of owners, as today's;
- *tagged, in order*: the NIC obeys the owners' tags, but looks no further than the ring's next buffer;
- *tagged, sorted*: it looks ahead and keeps a list for each owner (`nicmodel.gvnic.options.owners`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from plot import Plot, Series
from report import Column, output_option, write
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.testing.flows import UDPv4
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.nic.state import Drop
from nicmodel.testing.guest_memory import GuestMemory

MAC = bytes([2, 0, 0, 0, 0, 1])
A, B = 0, 1
PORTS = (5001, 5002)
RING, PAYLOAD, BURST = 256, 1000, 8
#: By name: whether buffers are tagged, and how many the NIC looks ahead.
RINGS = {"plain": (False, 1), "tagged, in order": (True, 1), "tagged, sorted": (True, RING)}
OTHERS = ("silent", "keeps its buffers")


def run(ring: str, other: str, milliseconds: int) -> dict[str, Any]:
    """One case: a burst of frames for each owner that sends, every millisecond."""
    tagged, lookahead = RINGS[ring]
    profile = Profile(mac=MAC, owners=2, owner_lookahead=lookahead)
    frames = [bytes(Ether(dst=MAC.hex(":")) / IP() / UDP(dport=port) / bytes(PAYLOAD)) for port in PORTS]
    written = [[0, 0], [0, 0]]  # by whose payload, by whose memory
    packets = [0, 0]
    with Loopback(profile, ram=GuestMemory("ram", size=64 << 20)) as lab:
        driver = lab.driver
        driver.probe()
        memories = [driver.add_memory(name, 8 << 20) for name in ("a", "b")]
        driver.open(rx_queues=2, tx_queues=1, ring_entries=RING, header_split=True)
        for owner, port in enumerate(PORTS):
            driver.add_flow_rule(UDPv4(dst_port=port), queue=1, owner=owner)
        queue = driver.share_rx(1, memories, tagged=tagged)
        for _ in range(milliseconds):
            lab.receive(*[frames[A]] * BURST, *([frames[B]] * BURST if other != "silent" else ()))
            for packet in queue.poll(repost=False):
                flow = PORTS.index(int.from_bytes(packet.header[36:38], "big"))
                packets[flow] += 1
                for buffer in packet.buffers:
                    written[flow][("a", "b").index(buffer.memory)] += buffer.length
                if flow == A:
                    queue.give_back(packet)
            queue.post()
            lab.advance(1_000_000)
        lost = int(lab.nic.state.drops[1, Drop.NO_BUFFERS])
        waiting = int(lab.nic.state.rx[1]["held"])
    sent = BURST * milliseconds
    return {
        "ring": ring, "other": other, "sent": sent, "received": packets[A], "share": 100 * packets[A] / sent,
        "other_received": packets[B], "a_in_b": written[A][B], "b_in_a": written[B][A], "lost": lost,
        "waiting": waiting,
    }  # fmt: skip


PLOT = Plot(
    series=(Series("share", "of A's frames received"),),
    label=lambda row: f"{row['ring']}; B {row['other']}",
    note=lambda row: f"{row['a_in_b'] + row['b_in_a']:,} bytes in the other's memory",
    unit=lambda row: "%",
)


@click.command()
@click.option("--milliseconds", default=1000, show_default=True, help="Virtual time for each case.")
@output_option
def main(milliseconds: int, output: Path) -> None:
    """Run all cases, print a table and write it to benchmarks/results."""
    rows = [run(ring, other, milliseconds) for ring in RINGS for other in OTHERS]
    columns = (
        Column("ring", "ring"), Column("other", "owner B"), Column("sent", "frames for A", ",d"),
        Column("received", "A has received", ",d"), Column("share", "%", ".1f"),
        Column("other_received", "B has received", ",d"), Column("a_in_b", "A's bytes in B's memory", ",d"),
        Column("b_in_a", "B's bytes in A's memory", ",d"),
    )  # fmt: skip
    write("owners", "Buffers of two owners behind one queue", columns, rows, PLOT, output)


if __name__ == "__main__":
    main()
