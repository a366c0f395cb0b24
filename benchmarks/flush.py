"""Three ways to take a receive queue's buffers from the NIC: how soon nothing writes to them, and who suffers.

    python benchmarks/flush.py

A *flush* hands the buffers back on command (an option of this model), a *restart* destroys and creates the queue, as
Linux does when a dma-buf is unbound, and a *reset* of the device is what is left without either. In each, a frame comes
to the queue and one to every other queue while it has no buffers, and again when it is done. Times are the driver's, in
Python, with every command through the socket: from the decision to where the device can no longer write, and to where
the queue has other buffers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from plot import Plot, Series
from report import Column, output_option, write
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from nicmodel.gvnic.commands import Inner, Opcode
from nicmodel.gvnic.options.flush.declarations import ALL_OWNERS, FLUSH_RX_QUEUE
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.testing.flows import UDPv4
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.nic.state import Drop
from nicmodel.testing.guest_memory import GuestMemory

MAC = bytes([2, 0, 0, 0, 0, 1])
QUEUES, RING, QUEUE = 4, 1024, 3
FIRST_PORT = 10_000


class Bench:
    """A NIC whose last queue has its buffers in an accelerator's memory; a flow to each queue."""

    def __init__(self) -> None:
        self.lab = Loopback(Profile(mac=MAC, queue_flush=True), ram=GuestMemory("ram", size=256 << 20))
        self.lab.driver.probe()
        self.hbm = self.lab.driver.add_memory("hbm")
        self.frames = [
            bytes(Ether(dst=MAC.hex(":")) / IP() / UDP(dport=FIRST_PORT + queue) / bytes(1000))
            for queue in range(QUEUES)
        ]
        self.up()
        self.lab.driver.restart_rx(QUEUE, payload_memory=self.hbm)

    def up(self) -> None:
        """Interface and rules."""
        driver = self.lab.driver
        driver.open(rx_queues=QUEUES, tx_queues=1, ring_entries=RING, header_split=True)
        for queue in range(QUEUES):
            driver.add_flow_rule(UDPv4(dst_port=FIRST_PORT + queue), queue=queue, location=queue)

    def traffic(self) -> None:
        """A frame to each queue."""
        self.lab.receive(*self.frames)

    def flush(self, between: Callable[[], None]) -> None:
        """Get the buffers back by the command."""
        driver = self.lab.driver
        driver.extended(Inner.FLUSH_RX_QUEUE, np.array((QUEUE, ALL_OWNERS), FLUSH_RX_QUEUE))
        between()
        driver.rx[QUEUE].discard(repost=False)
        driver.rx[QUEUE].exchange(self.lab.ram)
        driver.rx[QUEUE].post()

    def restart(self, between: Callable[[], None]) -> None:
        """Get the buffers back by a new queue (`Driver.restart_rx`)."""
        driver = self.lab.driver
        old = driver.rx[QUEUE]
        new = driver.make_rx(QUEUE, old.config)
        driver.admin(Opcode.DESTROY_RX_QUEUE, queue_id=QUEUE)
        between()
        driver.admin_batch([new.create_command()])
        driver.rx[QUEUE] = new
        new.post()
        driver.enable(driver.rx_block(QUEUE))
        old.free()

    def reset(self, between: Callable[[], None]) -> None:
        """Get the buffers back by a reset of the device."""
        driver = self.lab.driver
        driver.release()
        between()
        driver.setup_adminq()
        driver.verify_compatibility()
        driver.setup_resources()
        self.up()


def measure(way: str) -> dict[str, Any]:
    """One way, once."""
    bench = Bench()
    lab = bench.lab
    bench.traffic()
    stopped = paused = begin = 0.0

    def between() -> None:
        nonlocal stopped, paused
        stopped = time.perf_counter() - begin
        bench.traffic()
        paused = time.perf_counter() - begin - stopped

    commands = sum(lab.nic.admin.executed.values())
    written = int(lab.nic.state.ledger[QUEUE, 0].sum())
    lost = lab.nic.state.drops[:, Drop.RUNT :].sum(axis=1)
    begin = time.perf_counter()
    getattr(bench, way)(between)
    lab.run()
    done = time.perf_counter() - begin - paused
    commands = sum(lab.nic.admin.executed.values()) - commands
    bench.traffic()
    lost = lab.nic.state.drops[:, Drop.RUNT :].sum(axis=1) - lost
    mine = int(lost[QUEUE])
    row: dict[str, Any] = {
        "way": way, "stopped_us": 1e6 * stopped, "done_us": 1e6 * done, "commands": commands,
        "lost": mine + (int(lost[-1]) if way == "reset" else 0) // QUEUES, "lost_others": int(lost.sum()) - mine,
        "written": int(lab.nic.state.ledger[QUEUE, 0].sum()) - written,
    }  # fmt: skip
    if way == "reset":  # a device that is down does not know whose its frames are
        row["lost_others"] -= row["lost"]
    lab.close()
    return row


PLOT = Plot(
    series=(Series("stopped_us", "no write after"), Series("done_us", "other buffers after", "other")),
    label=lambda row: str(row["way"]),
    note=lambda row: f"{row['lost'] + row['lost_others']} of {QUEUES} frames lost",
    unit=lambda row: "µs",
)


@click.command()
@click.option("--rounds", default=20, show_default=True, help="Of each way; the medians count.")
@output_option
def main(rounds: int, output: Path) -> None:
    """Measure, print a table and write it to benchmarks/results."""
    rows = []
    for way in ("flush", "restart", "reset"):
        found = [measure(way) for _ in range(rounds)]
        rows.append({**found[0], **{name: float(np.median([row[name] for row in found]))
                                    for name in ("stopped_us", "done_us")}})  # fmt: skip
    columns = (
        Column("way", "way"), Column("stopped_us", "no write after, µs", ",.0f"),
        Column("done_us", "other buffers after, µs", ",.0f"), Column("commands", "commands", ",d"),
        Column("lost", "frames lost of 1", ",d"), Column("lost_others", f"of {QUEUES - 1} to other queues", ",d"),
    )  # fmt: skip
    write("flush", "Taking a receive queue's buffers from the NIC", columns, rows, PLOT, output)


if __name__ == "__main__":
    main()
