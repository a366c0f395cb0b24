"""Direct data placement for NVMe/TCP: how much is placed when the network loses and reorders, and what it costs.

    python benchmarks/ddp.py

The first table is what a reader finds: the data that the device had put in place, and what was left to be copied, the
digests that the device vouched for, and the questions it asked. The second is the device alone, as in
`packet_path.py`: taking frames of a flow in order, the peer being the same frames received the ordinary way.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from plot import Plot, Series
from report import output_option, write
from rich.progress import track

from nicmodel.client.results import Column
from nicmodel.gvnic.options.ddp.declarations import DdpDigest
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.gvnic.testing.nvme_tcp import Reader, data_pdu, response
from nicmodel.packet.frames import FrameFlag
from nicmodel.testing.frames import Frames
from nicmodel.testing.guest_memory import GuestMemory
from nicmodel.testing.tcp_stream import TcpStream, arrivals

MAC = bytes([2, 0, 0, 0, 0, 1])
MSS = 1448
#: Probabilities that a segment is lost, and that it changes places with the next.
NETWORKS = ((0, 0), (0.001, 0), (0.01, 0), (0.03, 0), (0, 0.01), (0, 0.1))
#: Sizes of reads, KiB.
READS = (4, 32, 128)
BOTH = DdpDigest.HEADER | DdpDigest.DATA
FRAMES = 256


PLOT = Plot(
    series=(Series("placed", "placed"), Series("copied", "copied", "other")),
    label=lambda row: f"{row['read']} KiB, loss {row['loss']:.1%}, reordered {row['reorder']:.0%}",
    note=lambda row: f"of the digests {row['vouched']:.0%}",
    unit=lambda row: "share of the data",
)
SPEED_PLOT = Plot(
    series=(Series("gbps", "placed"), Series("ordinary_gbps", "the ordinary way", "other")),
    label=lambda row: f"digests: {row['digests']}",
    note=lambda row: f"{row['ratio']:.2f}",
    unit=lambda row: "Gbit/s",
)


@click.command()
@click.option("--read", "reads", type=int, multiple=True, help=f"Size of reads, KiB, again and again: {READS}.")
@click.option("--megabytes", default=4, show_default=True, help="Of data for each line of the first table.")
@click.option("--seconds", default=1.0, show_default=True, help="For each line of the second.")
@output_option
def main(reads: tuple[int, ...], megabytes: int, seconds: float, output: Path) -> None:
    """Measure, print two tables and write them to benchmarks/results."""
    cases = [(read, network) for read in reads or READS for network in NETWORKS]
    rows = [place(read << 10, megabytes << 20, *network) for read, network in track(cases, "placement", transient=True)]
    columns = [
        Column("read", "reads, KiB", ","), Column("loss", "loss", ".2%"), Column("reorder", "reordered", ".0%"),
        Column("placed", "placed", ".2%"), Column("copied", "copied", ".2%"), Column("vouched", "vouched", ".1%"),
        Column("lost", "sync lost", ","), Column("requests", "requests", ","), Column("confirmed", "confirmed", ","),
    ]  # fmt: skip
    write("ddp", "Direct data placement under loss and reordering", columns, rows, PLOT, output)
    rows = [speed(digests, seconds) for digests in (0, int(BOTH))]
    columns = [
        Column("digests", "digests"), Column("gbps", "placed, Gbit/s", ".1f"),
        Column("ordinary_gbps", "ordinary, Gbit/s", ".1f"), Column("ratio", "ratio", ".2f"),
    ]  # fmt: skip
    write("ddp_speed", "Direct data placement, the device alone, one core", columns, rows, SPEED_PLOT, output)


def start(driver: Driver, stream: TcpStream, digests: int) -> Reader:
    """The driver with an open queue, and who reads the stream."""
    driver.probe()
    driver.open(rx_queues=1, tx_queues=1, ring_entries=1024, header_split=True)
    return Reader(
        driver, source=stream.source, destination=stream.destination, source_port=stream.source_port,
        destination_port=stream.destination_port, sequence=stream.sequence, digests=digests,
    )  # fmt: skip


def make_stream(read: int, total: int, digests: int) -> TcpStream:
    """Reads of `read` bytes one after the other, each one PDU and a response."""
    stream = TcpStream("192.0.2.1", "192.0.2.2", 4420, 40000, MAC.hex(":"))
    data = np.random.default_rng(1).bytes(read)
    stream.data = b"".join(
        data_pdu(command, data, digests=digests) + response(command, digests=digests)
        for command in range(total // read)
    )
    return stream


def place(read: int, total: int, loss: float, reorder: float) -> dict[str, Any]:
    """What becomes of a stream that a network has had in its hands."""
    stream = make_stream(read, total, BOTH)
    with Loopback(Profile(mac=MAC, ddp_flows=1)) as bench:
        reader = start(bench.driver, stream, BOTH)
        commands = iter(range(total // read))
        for segment in arrivals(len(stream.data), random.Random(1), loss=loss, reorder=reorder):
            while len(reader.reads) < 64 and (command := next(commands, None)) is not None:
                reader.read(command, read)
            bench.receive(stream.segment(*segment))
            for packet in bench.driver.poll(0):
                reader.take(packet)
            for command in list(reader.done):
                bench.ram.free(reader.done.pop(command).pieces[0][0])
        assert reader.placed + reader.copied == total and not reader.wrong
        return {
            "read": read >> 10, "loss": loss, "reorder": reorder,
            "placed": reader.placed / total, "copied": reader.copied / total,
            "vouched": reader.vouched / (reader.vouched + reader.checked), **bench.nic.ddp.counters,
        }  # fmt: skip


def speed(digests: int, seconds: float) -> dict[str, Any]:
    """Payload of a stream in order: Gbit/s when it is placed, and when nobody has asked for that."""
    length = FRAMES * MSS
    stream = make_stream(128 << 10, length, digests)
    frames = Frames(stream.segments(MSS), flags=FrameFlag.CSUM_VALID)
    with Loopback(Profile(mac=MAC, ddp_flows=1), ram=GuestMemory("ram", size=512 << 20)) as bench:
        reader = start(bench.driver, stream, digests)
        for command in range(length // (128 << 10)):
            reader.read(command, 128 << 10)
        placed: list[float] = []
        ordinary: list[float] = []
        tracker = bench.nic.state.ddp_trackers
        before = tracker.copy()
        ends = time.perf_counter() + seconds
        while time.perf_counter() < ends:
            for times, active in ((placed, 1), (ordinary, 0)):
                tracker[:] = before  # the same stream again
                bench.nic.state.ddp_flows["active"] = active
                bench.run()
                batch = frames.part(0, len(frames))
                begin = time.perf_counter()
                bench.nic.ingress.deliver(batch)
                times.append(time.perf_counter() - begin)
                bench.driver.rx[0].discard()
                bench.run()
        assert bench.nic.state.drops.sum() == 0
    one, other = float(np.median(placed)), float(np.median(ordinary))
    rate = 8e-9 * len(stream.data)
    return {
        "digests": "header and data" if digests else "none",
        "gbps": rate / one, "ordinary_gbps": rate / other, "ratio": other / one,
    }  # fmt: skip


if __name__ == "__main__":
    main()
