"""Deferred placement against immediate placement: what it costs the NIC, and how long it takes.

    python benchmarks/deferred.py
    python benchmarks/deferred.py --length 1514

The same frames go to two NICs in turn: payload into posted buffers, and payload kept until a placement request for
each packet has named its place, which is one of as many pages. *Throughput* is the device's time alone: taking the
batch, the doorbells, and the requests; the driver is in no hurry and not timed. *Latency* is one frame from the wire to
the last completion that its driver needs, with the driver's own work in Python: reading the completion, and for
deferred placement writing a request and reading what came of it. It does not look at the payload, and doorbells do not
go through the socket, in either.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from packet_path import FIRST_PORT, HEADER, LONGEST, MAC, SEGMENT, DirectDoorbells
from plot import Plot, Series
from report import output_option, write
from rich.progress import track
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from nicmodel.client.results import Column
from nicmodel.gvnic.descriptors import RX_COMPLETION
from nicmodel.gvnic.options.deferred.declarations import RX_DEFERRED
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.packet.frames import Batch, FrameFlag, Gso
from nicmodel.testing.guest_memory import GuestMemory

LENGTHS = (64, 256, 1514, 4096 + HEADER, 9014, 65226)
RING, BUFFER = 1024, 4096
NIC_BYTES = 8 << 20
#: Frames of a batch, and bytes: less than the ring and the NIC's memory hold.
BATCH_FRAMES, BATCH_BYTES = 256, 1 << 20


class Bench:
    """A NIC whose queue has deferred placement, or not, and the accelerator's memory that the payload is for."""

    def __init__(self, length: int, *, deferred: bool) -> None:
        profile = Profile(mac=MAC, max_mtu=9216, coalesce=False, deferred_bytes=NIC_BYTES, deferred_usecs=10_000_000)
        self.lab = Loopback(profile, ram=GuestMemory("ram", size=256 << 20))
        self.driver: Driver = self.lab.driver
        self.driver.doorbells = self.doorbells = DirectDoorbells(self.lab.nic)
        self.driver.probe()
        self.hbm = self.driver.add_memory("hbm", 256 << 20)
        self.driver.open(
            rx_queues=1, tx_queues=1, ring_entries=RING, buffer_size=BUFFER, header_split=True, rsc=length > LONGEST,
            payload_memory=self.hbm,
        )  # fmt: skip
        self.pages = self.hbm.allocate(RING * BUFFER)
        self.hbm.bytes[:] = 0  # every page is there before the clock runs
        self.next = 0
        self.ring = self.driver.defer_placement(0, entries=4096) if deferred else None
        self.lab.run()
        self.tell()
        self.batch = make_batch(length, BATCH_FRAMES)
        self.one = make_batch(length, 1)

    def tell(self) -> None:
        """The device sees the doorbells."""
        self.doorbells.pass_on()
        self.lab.nic.work()

    def take(self) -> list[bytes]:
        """The first completion of each packet that has come; its buffers are posted again."""
        queue = self.driver.rx[0]
        first, entries = int(queue.state.completion), queue.config.entries
        count = queue.discard()
        raws = [queue.completion_ring[(first + number) % entries].tobytes() for number in range(count)]
        return raws if self.ring is not None else [raw for raw in raws if RX_COMPLETION.split_header.get(raw)]

    def request(self, completion: bytes) -> None:
        """Name the place of a packet's payload: page by page, as an accelerator's memory is handed out."""
        if self.ring is None:
            return
        length, pieces = RX_DEFERRED.payload_length.get(completion), []
        for start in range(0, length, BUFFER):
            pieces.append((self.pages + self.next, min(BUFFER, length - start)))
            self.next = (self.next + BUFFER) % (RING * BUFFER)
        self.ring.place(RX_DEFERRED.handle.get(completion), pieces, ring=False)

    def throughput(self) -> float:
        """Seconds of the device for each frame of a batch."""
        begin = time.perf_counter()
        self.lab.nic.ingress.deliver(self.batch)
        taken = time.perf_counter() - begin
        packets = self.take()
        assert len(packets) == self.batch.count
        for packet in packets:
            self.request(packet)
        if self.ring is not None:
            self.ring.post()
        begin = time.perf_counter()
        self.tell()
        self.lab.run()  # a turn of the event loop executes some of the requests
        taken += time.perf_counter() - begin
        self.finish(len(packets))
        return taken / len(packets)

    def latency(self) -> float:
        """Seconds from the wire to the payload at its place, known to the driver."""
        begin = time.perf_counter()
        self.lab.nic.ingress.deliver(self.one)
        (packet,) = self.take()
        if self.ring is not None:
            self.request(packet)
            self.ring.post()
            self.tell()
            self.lab.run()
            self.finish(1)
        taken = time.perf_counter() - begin
        self.tell()
        return taken

    def finish(self, count: int) -> None:
        """All requests have been executed."""
        if self.ring is not None:
            placed = self.ring.poll()
            assert len(placed) == count and all(placement.status == 1 for placement in placed)

    def close(self) -> None:
        """End it; nothing was lost on the way."""
        assert self.lab.nic.state.drops.sum() == 0 and self.driver.rx[0].errors == 0
        assert self.ring is None or self.lab.nic.state.placement_rings["full"].sum() == 0
        self.lab.close()


def make_batch(length: int, count: int) -> Batch:
    """Frames of one flow, as many as fit, checksums vouched for: the same work for both but for the payload."""
    plain = bytes(
        Ether(src="02:00:00:00:00:02", dst=MAC.hex(":"))
        / IP(src="192.0.2.1", dst="192.0.2.2")
        / TCP(sport=1, dport=FIRST_PORT, flags="A")
        / np.random.default_rng(1).bytes(length - HEADER)
    )
    count = max(1, min(count, BATCH_BYTES // length))
    offload: dict[str, Any] = {"gso": Gso.TCPV4, "segment": SEGMENT, "header": HEADER} if length > LONGEST else {}
    batch = Batch(count * length, count)
    for _ in range(count):
        batch.append(plain, flags=FrameFlag.CSUM_VALID, **offload)
    return batch


def measure(length: int, seconds: float) -> dict[str, Any]:
    """Medians of both for one length of frame, measured in turn."""
    benches = [Bench(length, deferred=deferred) for deferred in (False, True)]
    taken: dict[str, tuple[list[float], list[float]]] = {"throughput": ([], []), "latency": ([], [])}
    for name, figures in taken.items():
        ends = time.perf_counter() + seconds
        while time.perf_counter() < ends or len(figures[0]) < 10:
            for bench, values in zip(benches, figures, strict=True):
                values.append(getattr(bench, name)())
    for bench in benches:
        bench.close()
    at_once, deferred = (float(np.median(values)) for values in taken["throughput"])
    soon, later = (float(np.median(values)) for values in taken["latency"])
    return {
        "length": length,
        "immediate_mpps": 1e-6 / at_once, "deferred_mpps": 1e-6 / deferred, "ratio": at_once / deferred,
        "immediate_gbps": 8e-9 * length / at_once, "deferred_gbps": 8e-9 * length / deferred,
        "immediate_us": 1e6 * soon, "deferred_us": 1e6 * later,
        "immediate_us_p99": 1e6 * float(np.percentile(taken["latency"][0], 99)),
        "deferred_us_p99": 1e6 * float(np.percentile(taken["latency"][1], 99)),
    }  # fmt: skip


PLOT = Plot(
    series=(Series("deferred_gbps", "deferred"), Series("immediate_gbps", "immediate", "other")),
    label=lambda row: f"{row['length']:,} bytes",
    note=lambda row: (
        f"{row['ratio']:.2f} of immediate, {row['deferred_us']:.0f} instead of {row['immediate_us']:.0f} µs"
    ),
    unit=lambda row: "Gbit/s",
)


@click.command()
@click.option("--length", "lengths", type=int, multiple=True, help=f"Length of frames, again and again: {LENGTHS}.")
@click.option("--seconds", default=1.0, show_default=True, help="For throughput and for latency of each length.")
@output_option
def main(lengths: tuple[int, ...], seconds: float, output: Path) -> None:
    """Measure, print a table and write it to benchmarks/results."""
    rows = [measure(length, seconds) for length in track(lengths or LENGTHS, "deferred placement", transient=True)]
    columns = (
        Column("length", "bytes", ","), Column("immediate_mpps", "immediate, Mpps", ".2f"),
        Column("deferred_mpps", "deferred, Mpps", ".2f"), Column("immediate_gbps", "immediate, Gbit/s", ".1f"),
        Column("deferred_gbps", "deferred, Gbit/s", ".1f"), Column("ratio", "ratio", ".2f"),
        Column("immediate_us", "immediate, µs", ".0f"), Column("deferred_us", "deferred, µs", ".0f"),
        Column("immediate_us_p99", "p99", ".0f"), Column("deferred_us_p99", "p99", ".0f"),
    )  # fmt: skip
    title = "Deferred against immediate placement: throughput of the device, latency with the driver in Python"
    write("deferred", title, columns, rows, PLOT, output)


if __name__ == "__main__":
    main()
