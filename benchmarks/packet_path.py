"""The packet path alone: frames from memory to a driver's buffers in shared memory, on one core.

    python benchmarks/packet_path.py
    python benchmarks/packet_path.py --length 1514 --split

What is timed is the device: taking a batch, and the doorbell with which the driver posts the buffers again. The driver
is in no hurry and not timed. The peer is a compiled loop that only copies the same bytes from the same batch to buffers
of the same kind, in turns with the device: no NIC can be faster than the memory. Each has its own buffers, and takes
them in turn: as many as the ring has, which the processor's caches may well hold, or so many that they are cold.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import click
import numpy as np
import numpy.typing as npt
from plot import Curve, Curves, Panel
from report import counted, output_option, write
from rich.progress import track
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from nicmodel.client.results import Column
from nicmodel.gvnic.descriptors import RX_BUFFER
from nicmodel.gvnic.device import Nic
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.registers import Bar
from nicmodel.gvnic.testing.bars import Doorbells
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.flows import TCPv4
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.gvnic.testing.rx import RxQueue
from nicmodel.jit.addresses import copy
from nicmodel.jit.compiled import compiled, i64, u64
from nicmodel.packet.frames import Batch, FrameFlag, Gso
from nicmodel.testing.guest_memory import PAGE, GuestMemory

#: Addresses in this process, shape (buffers,).
Addresses: TypeAlias = npt.NDArray[np.uint64]

MAC = bytes([2, 0, 0, 0, 0, 1])
LENGTHS = (64, 256, 1514, 4096 + 66, 9014, 65226)
#: Payload of the segments that an aggregated frame stands for.
SEGMENT = 1448
HEADER = 54
FIRST_PORT = 10_000
#: Of so many flows each has a source port of its own.
SOURCE_PORTS = 50_000
RING, BUFFER = 4096, 4096
#: Bytes of data buffers that are taken in turn: what the ring holds, and more than the caches do.
WARM, COLD = RING * BUFFER, 128 << 20
#: Bytes of a batch, and frames: what the tap takes at once.
BATCH_BYTES, BATCH_FRAMES = 1 << 20, 512
#: Parts that a measurement is cut into, to see how far it moves by itself.
PARTS = 5
#: Frames longer than this come aggregated.
LONGEST = 9014


class DirectDoorbells(Doorbells):
    """Doorbells without the socket: they are kept until the device is to see them."""

    def __init__(self, nic: Nic) -> None:
        self._nic = nic
        self._rung: list[tuple[int, int]] = []

    def ring(self, index: int, value: int) -> None:
        """Keep one."""
        self._rung.append((index, value))

    def pass_on(self) -> None:
        """Give the device what was kept."""
        for index, value in self._rung:
            self._nic.region_write(Bar.DOORBELLS, 4 * index, value.to_bytes(4, "little"))
        self._rung.clear()


@dataclass(frozen=True)
class Case:
    """One row: the frames, and what the device has to do with them."""

    length: int
    split: bool = False
    flows: int = 1
    rules: int = 0
    vouched: bool = False
    cold: bool = False


def cases(lengths: tuple[int, ...], split: bool | None) -> Iterator[Case]:
    """All lengths with and without header split and checksums to verify, long ones to cold memory as well; then flows
    and rules, at two lengths.
    """
    for length in lengths:
        for splits in (False, True) if split is None else (split,):
            for vouched in (False, True):
                yield Case(length, splits, vouched=vouched)
            if length >= 1514:
                yield Case(length, splits, cold=True)
    for length in lengths:
        if length in (64, 1514):
            for flows in (1, 64, 10_000):
                for rules in (0, 1, 1000):
                    if flows > 1 or rules > 0:
                        yield Case(length, bool(split), flows, rules)


def _one_flow(split: bool, *, vouched: bool, cold: bool) -> Callable[[dict[str, Any]], bool]:
    return lambda row: (
        row["flows"] == 1 and row["rules"] == 0
        and (row["split"], row["vouched"], row["cold"]) == (split, vouched, cold)
    )  # fmt: skip


def _by_length(split: bool, what: str, figure: Callable[[dict[str, Any]], float]) -> list[Curve]:
    """One curve for each way that frames of one flow come; what `figure` says of them."""
    ways = [
        ("checksums verified", False, False, "-"),
        ("checksums vouched for", True, False, "--"),
        ("cold buffers", False, True, ":"),
    ]
    return [
        Curve(f"{what}, {name}", _one_flow(split, vouched=vouched, cold=cold), lambda row: float(row["length"]), figure,
              style=style)
        for name, vouched, cold, style in ways
    ]  # fmt: skip


def _by_flows(length: int) -> list[Curve]:
    styles = {0: ("-", "o"), 1: ("--", "s"), 1000: (":", "^")}
    return [
        Curve(
            counted(rules, "rule"), lambda row, rules=rules: (  # type: ignore[misc]
                (row["length"], row["rules"]) == (length, rules)
                and not (row["split"] or row["vouched"] or row["cold"])
            ),
            lambda row: float(row["flows"]), lambda row: float(row["mpps"]), style=style, marker=marker,
        )
        for rules, (style, marker) in styles.items()
    ]  # fmt: skip


def _copy(split: bool) -> Curve:
    return Curve(
        "the bare copy", _one_flow(split, vouched=False, cold=False), lambda row: float(row["length"]),
        lambda row: float(row["copy_gbps"]), "baseline", marker="",
    )  # fmt: skip


PLOT = Curves(
    [
        *(
            Panel(f"header split {'on' if split else 'off'}: throughput", "bytes of a frame", "Gbit/s",
                  [*_by_length(split, "the device", lambda row: float(row["gbps"])), _copy(split)])
            for split in (False, True)
        ),
        *(
            Panel(f"header split {'on' if split else 'off'}: time beyond the bare copy", "bytes of a frame",
                  "ns for each frame",
                  _by_length(split, "the device", lambda row: float(row["beyond_ns"])), log=False)
            for split in (False, True)
        ),
        *(
            Panel(f"many flows and rules, {length:,} bytes", "flows", "million frames a second", _by_flows(length),
                  log=False)
            for length in (64, 1514)
        ),
    ]
)  # fmt: skip


@click.command()
@click.option("--length", "lengths", type=int, multiple=True, help=f"Length of frames, again and again: {LENGTHS}.")
@click.option("--split/--no-split", default=None, help="Only with header split, or without; default: both.")
@click.option("--seconds", default=0.5, show_default=True, help="For each figure, of device and of peer.")
@output_option
def main(lengths: tuple[int, ...], split: bool | None, seconds: float, output: Path) -> None:
    """Measure, print a table and write it to benchmarks/results."""
    found = list(cases(lengths or LENGTHS, split))
    rows = [measure(case, seconds) for case in track(found, "packet path", transient=True)]
    columns = (
        Column("length", "bytes", ","), Column("split_text", "header split"), Column("checksum", "checksums"),
        Column("memory", "buffers"),
        Column("flows", "flows", ","), Column("rules", "rules", ","), Column("mpps", "Mpps", ".2f"),
        Column("gbps", "Gbit/s", ".1f"), Column("copy_gbps", "copy alone, Gbit/s", ".1f"),
        Column("ratio", "ratio", ".2f"), Column("beyond_ns", "beyond the copy, ns", ".0f"),
    )  # fmt: skip
    write("packet_path", "Packet path alone, receive, one core", columns, rows, PLOT, output)


def label(row: dict[str, Any]) -> str:
    """A row's name in the plot."""
    parts = [f"{row['length']:,} bytes"]
    if row["split"]:
        parts.append("split")
    if row["vouched"]:
        parts.append("checksums vouched for")
    if row["cold"]:
        parts.append("cold")
    if row["flows"] > 1 or row["rules"]:
        parts.append(f"{counted(row['flows'], 'flow')}, {counted(row['rules'], 'rule')}")
    return ", ".join(parts)


@contextmanager
def open_nic(
    case: Case, *, queues: int = 1, entries: int = RING, check: bool = False
) -> Iterator[tuple[Loopback, DirectDoorbells]]:
    """A NIC and its driver, set up for a case, all buffers posted: `queues` receive queues of `entries` each."""
    profile = Profile(
        mac=MAC, max_mtu=9216, queues=max(queues, Profile.queues), min_ring=min(entries, Profile.min_ring)
    )
    with Loopback(profile, ram=GuestMemory("ram", size=1 << 30), check=check) as bench:
        driver = bench.driver
        driver.doorbells = doorbells = DirectDoorbells(bench.nic)
        driver.probe()
        driver.open(
            rx_queues=queues, tx_queues=1, ring_entries=entries, buffer_size=BUFFER,
            header_split=case.split, rsc=case.length > LONGEST,
        )  # fmt: skip
        for number in range(case.rules):
            driver.add_flow_rule(TCPv4(dst_port=FIRST_PORT + number), queue=0)
        bench.run()
        doorbells.pass_on()
        bench.nic.work()
        yield bench, doorbells
        assert bench.nic.state.drops.sum() == 0
        assert all(queue.errors == 0 for queue in driver.rx.values())


def measure(case: Case, seconds: float) -> dict[str, Any]:
    """Medians of the device and of the copy for one case."""
    with open_nic(case) as (bench, doorbells):
        driver = bench.driver
        batches = make_batches(case)
        header = HEADER if case.split else 0
        buffers = batches[0].count * -(-(case.length - header) // BUFFER)
        pool = Pool(bench.ram, driver.rx[0], COLD if case.cold else WARM)
        for _ in range((RING + pool.buffers) // buffers + 1):  # until the device has used each of the pool's buffers
            pool.renew(buffers)
            deliver(bench.nic, driver, doorbells, batches[0])
        device: list[float] = []
        peer: list[float] = []
        ends = time.perf_counter() + 2 * seconds
        while time.perf_counter() < ends or len(device) < 4:
            turn = len(device)
            batch = batches[turn % len(batches)]
            places = pool.places(buffers)
            pool.renew(buffers)
            # In turns, so that none always finds in the caches what the other has read.
            if turn % 2:
                peer.append(copy_once(batch, header, *places))
            device.append(deliver(bench.nic, driver, doorbells, batch))
            if not turn % 2:
                peer.append(copy_once(batch, header, *places))
    frames = batches[0].count
    per_frame, per_copy = float(np.median(device)) / frames, float(np.median(peer)) / frames
    return {
        **asdict(case),
        "split_text": "on" if case.split else "off",
        "checksum": "vouched for" if case.vouched else "verified",
        "memory": "cold" if case.cold else "the ring's",
        "mpps": 1e-6 / per_frame,
        "gbps": 8e-9 * case.length / per_frame,
        "copy_gbps": 8e-9 * case.length / per_copy,
        "ratio": per_copy / per_frame,
        "beyond_ns": 1e9 * (per_frame - per_copy),
        "runs": [
            float(np.median(theirs) / np.median(ours))
            for ours, theirs in zip(np.array_split(device, PARTS), np.array_split(peer, PARTS), strict=True)
            if len(ours) and len(theirs)
        ],
    }


def make_batches(case: Case, frames: int = 0) -> list[Batch]:
    """Full batches that hold all flows, of `frames` at least."""
    aggregated = case.length > LONGEST
    plain = bytes(
        Ether(src="02:00:00:00:00:02", dst=MAC.hex(":"))
        / IP(src="192.0.2.1", dst="192.0.2.2")
        / TCP(sport=1, dport=FIRST_PORT + case.rules // 2, flags="A")
        / np.random.default_rng(1).bytes(case.length - HEADER)
    )
    count = max(1, min(BATCH_FRAMES, BATCH_BYTES // case.length, RING * BUFFER // 2 // case.length))
    flags = FrameFlag.CSUM_VALID if case.vouched else FrameFlag.NONE
    offload: dict[str, Any] = {"gso": Gso.TCPV4, "segment": SEGMENT, "header": HEADER} if aggregated else {}
    batches = []
    for start in range(0, max(case.flows, count, frames), count):
        batch = Batch(count * case.length, count)
        for number in range(start, start + count):
            frame = bytearray(plain)
            # The checksum stays right: what the ports gain the other field loses.
            more, port = divmod(number % case.flows, SOURCE_PORTS)
            frame[34:36] = (1 + port).to_bytes(2, "big")
            frame[36:38] = (int.from_bytes(plain[36:38], "big") + more).to_bytes(2, "big")
            frame[52:54] = (0xFFFF - port - more).to_bytes(2, "big") if port + more else b"\0\0"
            batch.append(bytes(frame), flags=flags, **offload)
        batches.append(batch)
    return batches


def deliver(nic: Nic, driver: Driver, doorbells: DirectDoorbells, batch: Batch) -> float:
    """Seconds that the device takes for a batch; the driver then takes it and posts the buffers again."""
    begin = time.perf_counter()
    nic.ingress.deliver(batch)
    taken = time.perf_counter() - begin
    for queue in driver.rx.values():
        queue.discard()
    begin = time.perf_counter()
    doorbells.pass_on()
    nic.work()
    return taken + time.perf_counter() - begin


class Pool:
    """Data buffers of the device's and as many of the copy's, each of the two taking its own in the same order.

    Args:
        ram: where they are.
        queue: the queue whose buffers they become.
        size: bytes of each half, a multiple of the ring's.

    Attributes:
        buffers: how many the device has.
    """

    def __init__(self, ram: GuestMemory, queue: RxQueue, size: int) -> None:
        self.buffers = size // BUFFER
        self._queue = queue
        self._size = size
        self._next = 0
        self._payloads = ram.allocate(2 * size)
        self._headers = ram.allocate(max(RING * queue.config.header_size, 1))
        self._to_host = ram.bytes.ctypes.data - ram.base
        ram.view(self._payloads, 2 * size)[::PAGE] = 0  # the pages are there from now on

    def renew(self, count: int) -> None:
        """Have the next `count` buffers that the device fills be posted at the pool's next places afterwards."""
        queue = self._queue
        posted = queue.buffer_ring[(int(queue.state.head) + np.arange(count)) % RING]
        ids = posted[:, RX_BUFFER.buffer_id.word] >> np.uint64(RX_BUFFER.buffer_id.shift)
        ids &= np.uint64(RX_BUFFER.buffer_id.mask)
        queue.descriptors[ids, RX_BUFFER.buffer_address.word] = self._payloads + self._offsets(count, self._size)
        self._next += count

    def places(self, count: int) -> tuple[Addresses, Addresses]:
        """Addresses in this process of the next header and data buffers for the copy, shape (count,) each."""
        headers = self._to_host + self._headers + self._offsets(count, RING * BUFFER) // BUFFER * self._stride
        data = self._to_host + self._payloads + self._size + self._offsets(count, self._size)
        return headers.astype(np.uint64, copy=False), data.astype(np.uint64, copy=False)

    @property
    def _stride(self) -> int:
        return self._queue.config.header_size

    def _offsets(self, count: int, size: int) -> Addresses:
        """Offsets of the next `count` buffers in an area of `size` bytes."""
        return (np.uint64(self._next) + np.arange(count, dtype=np.uint64)) * np.uint64(BUFFER) % np.uint64(size)


def copy_once(batch: Batch, header: int, headers: Addresses, payloads: Addresses) -> float:
    """Seconds that copying the same bytes takes."""
    begin = time.perf_counter()
    copy_frames(batch.data, batch.frames, batch.count, header, headers, payloads, BUFFER)
    return time.perf_counter() - begin


@compiled
def copy_frames(
    data: npt.NDArray[np.uint8], frames: npt.NDArray[np.void], count: int, header: int,
    headers: Addresses, payloads: Addresses, buffer_size: int,
) -> None:  # fmt: skip
    """Copy each frame's first `header` bytes to the next header buffer, and the rest to as many others as it takes."""
    buffer = 0
    source = u64(data.ctypes.data)
    for number in range(count):
        frame = frames[number]
        start = source + u64(frame.offset)
        left = i64(frame.length) - header
        if header > 0:
            copy(headers[buffer], start, header)
            start += u64(header)
        while left > 0:
            piece = min(left, buffer_size)
            copy(payloads[buffer], start, piece)
            start += u64(piece)
            left -= piece
            buffer += 1


if __name__ == "__main__":
    main()
