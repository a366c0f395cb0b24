"""More comes than the driver has buffers for: the wire keeps it if it can, and other queues have their frames."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.flows import UDPv4
from nicmodel.gvnic.testing.nic import TestNic
from nicmodel.nic.backlog import HELD_NS, HELD_PER_QUEUE
from nicmodel.nic.state import Drop
from nicmodel.packet.frames import Batch, Offload
from nicmodel.testing.clock import VirtualClock
from nicmodel.wire.fd import _FEW, _REST_NS, FdWire

ENTRIES = 256
MAC = "02:00:00:00:00:01"


class KernelQueue(FdWire):
    """Frames in a queue, as a tap's are, until they are read."""

    offloads = Offload.NONE

    def __init__(self) -> None:
        super().__init__("queue", os.eventfd(0, os.EFD_NONBLOCK), Batch(1 << 20, 512))
        self.queue: deque[bytes] = deque()

    def put(self, frames: list[bytes]) -> None:
        self.queue.extend(frames)
        os.eventfd_write(self._fd, 1)

    def _read(self, fd: int, data: Any, frames: Any) -> tuple[int, int, int, int, int]:
        batch = self._incoming
        while self.queue and batch.count < len(frames):
            batch.append(self.queue.popleft())
        if not self.queue and len(frames):
            os.eventfd_read(fd)
        octets = sum(map(len, batch))
        return batch.count, batch.used, octets, 0, 0 if self.queue else errno.EAGAIN

    def _write(self, fd: int, data: Any, frames: Any, first: int, count: int) -> tuple[int, int, int]:
        return count, 0, 0

    def _close(self) -> None:
        os.close(self._fd)


def numbered(first: int, count: int, port: int = 1) -> list[bytes]:
    made = Ether(src="02:00:00:00:00:09", dst=MAC) / IP(src="192.0.2.9", dst="192.0.2.1") / UDP(sport=9, dport=port)
    return [bytes(made / number.to_bytes(8, "big")) for number in range(first, first + count)]


class Bench:
    """A NIC whose wire is such a queue, and a driver with two receive queues, the second for port 2."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.wire = KernelQueue()
        profile = Profile(mac=bytes.fromhex(MAC.replace(":", "")), min_ring=ENTRIES)
        self.nic = TestNic(profile, wire=self.wire, clock=self.clock)
        self.driver: Driver = self.nic.connect()
        self.driver.probe()
        self.driver.open(rx_queues=2, tx_queues=1, ring_entries=ENTRIES, buffer_size=2048)
        self.driver.add_flow_rule(UDPv4(dst_port=1), queue=0)
        self.driver.add_flow_rule(UDPv4(dst_port=2), queue=1)
        self.clock.turn()

    def numbers(self, queue: int = 0) -> list[int]:
        """Numbers of the frames that the driver finds; the NIC has used the buffers that it posts."""
        found = [int.from_bytes(packet.frame[42:50], "big") for packet in self.driver.poll(queue)]
        self.clock.turn()
        return found

    @property
    def lost(self) -> int:
        drops = self.nic.device.state.drops
        return int(drops.sum() - drops[:, Drop.HELD].sum())


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    with made.nic, made.driver:
        yield made


def test_what_the_driver_is_too_slow_for_waits_in_the_wire(bench: Bench) -> None:
    """*Verify*: all frames come, in order, and no more are read than the NIC has room for."""
    bench.wire.put(numbered(0, 300))
    bench.clock.turn()
    bench.wire.put(numbered(300, 4700))
    bench.clock.turn()
    found: list[int] = []
    while len(found) < 5000:
        read = 5000 - len(bench.wire.queue)
        assert read <= len(found) + ENTRIES + 2 * _FEW + HELD_PER_QUEUE
        now = bench.numbers()
        assert now
        found += now
    assert found == list(range(5000))
    assert bench.lost == 0


def test_a_driver_that_takes_nothing_costs_little(bench: Bench) -> None:
    """*Verify*: some frames are read in each rest's time, and no more; those that have waited too long are lost."""
    bench.wire.put(numbered(0, 20_000))
    bench.clock.turn()
    read = len(bench.wire.queue)
    rests = 2 * HELD_NS // _REST_NS
    bench.clock.advance(rests * _REST_NS)
    assert rests * _FEW / 2 <= read - len(bench.wire.queue) <= (rests + 1) * _FEW
    assert bench.lost > 0


def test_other_queues_have_room(bench: Bench) -> None:
    """*Steps*: the first queue is full, and frames for the second come in between. *Verify*: these come at once."""
    bench.wire.put(numbered(0, 1000))
    bench.clock.turn()
    mixed = [frame for pair in zip(numbered(0, 200, port=1), numbered(0, 200, port=2), strict=True) for frame in pair]
    bench.wire.queue.clear()
    bench.wire.put(mixed)
    bench.clock.advance(_REST_NS)
    assert bench.numbers(1) == list(range(200))
    assert not bench.wire.queue


def test_it_goes_on_after_a_rest(bench: Bench) -> None:
    """*Steps*: overload; the driver takes everything. *Verify*: whole batches are read again, and sending works."""
    bench.wire.put(numbered(0, 2000))
    bench.clock.turn()
    while bench.wire.queue or bench.numbers():
        bench.numbers()
    for _ in range(4):
        bench.wire.put(numbered(0, 100))
        bench.clock.turn()
        assert bench.numbers() == list(range(100))
    bench.driver.send(0, numbered(0, 1)[0])
    bench.clock.turn()
    assert bench.wire.counters["tx_frames"] == 1


def test_it_ends_in_a_rest(bench: Bench) -> None:
    """*Verify*: nobody asks for the descriptor that was closed."""
    bench.wire.put(numbered(0, 2000))
    bench.clock.turn()
    assert bench.wire.queue
    bench.wire.stop()
    bench.clock.advance(10 * _REST_NS)
    assert bench.wire.queue
