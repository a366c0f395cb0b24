"""Queues come and go: no DMA after DESTROY, one queue exchanged while others run, statistics, clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from nicmodel.gvnic.commands import Opcode, Stat, Status
from nicmodel.gvnic.descriptors import RX_COMPLETION
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.testing.adminq import AdminError, decode_command
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.flows import TCPv4
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.gvnic.testing.rx import RxConfig
from nicmodel.gvnic.testing.tx import TxCompletion
from nicmodel.testing.guest_memory import GuestMemory

from .conftest import ENTRIES
from .frames import arp, pattern, tcp

POISON = 0x5A
MS = 1_000_000


@pytest.fixture
def driver(lab: Loopback) -> Driver:
    """Three receive queues; TCP to port 5000 + q goes to queue q."""
    driver = lab.driver
    driver.probe()
    driver.open(rx_queues=3, tx_queues=2, ring_entries=ENTRIES, header_split=True)
    for queue in range(3):
        driver.add_flow_rule(TCPv4(dst_port=5000 + queue), queue)
    return driver


@pytest.fixture
def hbm() -> Iterator[GuestMemory]:
    """Memory of another device."""
    with GuestMemory("hbm", base=0x40_0000_0000, size=1 << 20) as memory:
        yield memory


def to(queue: int, length: int = 100) -> bytes:
    """A frame for a queue."""
    return tcp(pattern(length, queue), dport=5000 + queue)


def is_poison(memory: GuestMemory) -> bool:
    return bool((memory.bytes == POISON).all())


def test_destroy_ends_dma(lab: Loopback, driver: Driver) -> None:
    """*Steps*: destroy all queues while frames come, poison all memory. *Verify*: it stays poison.

    Only the statistics region is still the device's, and the clock stands still.
    """
    lab.receive(*[to(queue) for queue in range(3) for _ in range(40)])
    driver.send(0, tcp())
    for queue in range(3):
        driver.admin(Opcode.DESTROY_RX_QUEUE, queue_id=queue)
    for queue in range(2):
        driver.admin(Opcode.DESTROY_TX_QUEUE, queue_id=queue)
    lab.ram.bytes[:] = POISON
    lab.wire.inject(*[to(queue) for queue in range(3)])
    for index in range(1, 64):
        driver.doorbells.ring(index, 32)
    lab.run()
    lab.wire.inject(*[to(queue) for queue in range(3)])
    assert is_poison(lab.ram)


def test_destroy_one(lab: Loopback, driver: Driver) -> None:
    """*Steps*: destroy one queue with a backlog. *Verify*: its memory is left alone, the others work on."""
    lab.receive(*[to(1)] * 60)
    queue = driver.rx[1]
    driver.admin(Opcode.DESTROY_RX_QUEUE, queue_id=1)
    del driver.rx[1]
    queue.free()
    places = [
        lab.ram.view(queue.completion_ring_address, ENTRIES * 32),
        lab.ram.view(queue.buffer_ring_address, ENTRIES * 32),
        lab.ram.view(queue.headers, ENTRIES * 128),
        lab.ram.view(queue.payloads, ENTRIES * 4096),
    ]
    for place in places:
        place[:] = POISON
    driver.doorbells.ring(lab.nic.doorbells.rx(1), 0)
    lab.receive(to(0), to(1), to(2))
    assert [packet.frame for packet in driver.poll_all()] == [to(0), to(2)]
    assert all((place == POISON).all() for place in places)


def test_new_queue_starts_empty(lab: Loopback, driver: Driver) -> None:
    """A queue created again has no buffers, no backlog and the first generation, whatever was before."""
    lab.receive(*[to(1)] * 60)
    driver.admin(Opcode.DESTROY_RX_QUEUE, queue_id=1)
    driver.rx.pop(1).free()
    queue = driver.make_rx(1, RxConfig(entries=ENTRIES, buffer_size=2048, header_size=128))
    driver.admin_batch([queue.create_command()])
    driver.rx[1] = queue
    lab.receive(to(1))
    assert driver.poll(1, repost=False) == []  # no buffers: it waits
    queue.post()
    lab.run()
    assert [packet.frame for packet in driver.poll(1)] == [to(1)]


@pytest.mark.parametrize("size", [1, 13, 129])
def test_header_buffers_that_cannot_be(driver: Driver, size: int) -> None:
    """14 bytes of any frame go to a header buffer, however small that is; the device offers one of 128 bytes."""
    driver.admin(Opcode.DESTROY_RX_QUEUE, queue_id=1)
    queue = driver.make_rx(1, RxConfig(entries=ENTRIES, buffer_size=2048, header_size=size))
    with pytest.raises(AdminError) as refused:
        driver.admin_batch([queue.create_command()])
    assert refused.value.status == Status.INVALID_ARGUMENT


def test_restart_into_device_memory(lab: Loopback, driver: Driver, hbm: GuestMemory) -> None:
    """*Steps*: exchange a queue's buffers for device memory and back, with traffic on all queues before and after.

    *Verify*: payload follows the queue, old buffers are not touched, other queues lose nothing.
    """
    driver.map(hbm)
    for memory in (hbm, lab.ram, hbm):
        lab.receive(to(0), to(1), to(2))
        assert [packet.frame for packet in driver.poll_all()] == [to(0), to(1), to(2)]
        lab.receive(to(0), to(2))  # stays in the rings over the restart
        old = driver.rx[1]
        driver.restart_rx(1, payload_memory=memory)
        before = old.payload_memory.read(old.payloads, ENTRIES * old.config.buffer_size)
        lab.receive(to(1), to(1))
        packets = driver.poll_all()
        assert [packet.frame for packet in packets] == [to(0), to(1), to(1), to(2)]
        assert {buffer.memory for packet in packets if packet.queue == 1 for buffer in packet.buffers} == {memory.name}
        if old.payload_memory is not memory:
            assert old.payload_memory.read(old.payloads, len(before)) == before


def test_restart_many_times(lab: Loopback, driver: Driver) -> None:
    """Nothing is left over by a restart, in the driver's memory or in the device."""
    driver.restart_rx(2)
    allocated = lab.ram.allocated
    for _ in range(20):
        driver.restart_rx(2)
        lab.receive(to(2), to(0))
        assert [packet.frame for packet in driver.poll_all()] == [to(0), to(2)]
    assert lab.ram.allocated == allocated


def test_frames_between_destroy_and_create(lab: Loopback, driver: Driver) -> None:
    """They may be lost, but they must not reach the old buffers."""
    queue = driver.rx[1]
    driver.admin(Opcode.DESTROY_RX_QUEUE, queue_id=1)
    lab.ram.view(queue.payloads, ENTRIES * 4096)[:] = POISON
    lab.receive(to(1), to(2))
    assert (lab.ram.view(queue.payloads, ENTRIES * 4096) == POISON).all()
    assert [packet.queue for packet in driver.rx[2].poll()] == [2]


def test_queue_0_is_not_restarted(driver: Driver) -> None:
    with pytest.raises(ValueError, match="queue 0"):
        driver.restart_rx(0)


@pytest.mark.parametrize("entries", [256, 1024, 4096])
def test_ring_sizes(lab: Loopback, entries: int) -> None:
    """Every size between the limits that the device offers."""
    driver = lab.driver
    driver.probe()
    for _ in range(2):
        driver.open(rx_queues=1, tx_queues=1, ring_entries=entries, buffer_size=2048)
        frames = [tcp(pattern(8, number)) for number in range(entries // 2)]
        lab.receive(*frames)
        assert [packet.frame for packet in driver.poll(0)] == frames
        for frame in frames[: entries // 4]:
            driver.send(0, frame)
        lab.run()
        assert lab.wire.take() == frames[: entries // 4]
        driver.poll_tx(0)
        driver.close()


def test_rings_of_different_sizes(lab: Loopback) -> None:
    """Buffer queue and completion queue turn over at different places."""
    driver = lab.driver
    driver.probe()
    queue = driver.make_rx(0, RxConfig(entries=ENTRIES))
    ring = driver.ram.allocate_zeroed(2 * ENTRIES * 32)
    longer = {"completion_ring_address": ring, "completion_ring_entries": 2 * ENTRIES}
    driver.admin(Opcode.CREATE_RX_QUEUE, **decode_command(queue.create_command()) | longer)
    driver.set_rss(table=[0] * 128)
    for lap in range(6 * ENTRIES):
        if lap % 32 == 0:
            queue.ring((lap + 32) % ENTRIES)
            queue.buffer_ring[:] = queue.descriptors
        lab.receive(tcp(1))
        generation = RX_COMPLETION.generation.get(lab.ram.read(ring + lap % (2 * ENTRIES) * 32, 32))
        assert generation == 1 - lap // (2 * ENTRIES) % 2


@pytest.mark.parametrize("repeat", range(3))
def test_reopen_with_other_settings(lab: Loopback, driver: Driver, repeat: int) -> None:
    """`ethtool -G`, `-L`, `tcp-data-split`: the queues are made anew, rules and RSS stay."""
    settings = [
        {"header_split": False, "buffer_size": 2048, "rx_queues": 3},
        {"header_split": True, "buffer_size": 4096, "rx_queues": 8, "ring_entries": 128},
        {"header_split": True, "buffer_size": 2048, "rx_queues": 4, "rsc": True},
    ]
    driver.close()
    driver.open(**({"ring_entries": ENTRIES} | settings[repeat]))  # type: ignore[arg-type]
    lab.receive(to(2, 5000))
    (packet,) = driver.poll_all()
    assert packet.queue == 2
    assert packet.split == settings[repeat]["header_split"]
    assert packet.frame == to(2, 5000)


# Statistics


def test_statistics_region(lab: Loopback, driver: Driver) -> None:
    """*Steps*: make drops of every sort, let the interval pass. *Verify*: the region's end, four entries a queue."""
    lab.receive(*[to(1)] * 1000)
    lab.receive(tcp(9000))
    lab.advance(20_000 * MS)
    stats = driver.read_stats()
    assert set(stats) == {(queue, stat) for queue in range(3) for stat in Stat}
    assert stats[1, Stat.RX_NO_BUFFERS_POSTED] > 0
    assert stats[1, Stat.RX_QUEUE_DROP_COUNT] >= stats[1, Stat.RX_NO_BUFFERS_POSTED]
    assert stats[0, Stat.RX_NO_BUFFERS_POSTED] == 0
    assert stats[0, Stat.RX_DROPS_PACKET_OVER_MRU] == 1


def test_statistics_leave_the_drivers_part_alone(lab: Loopback, driver: Driver) -> None:
    """The device writes the last entries only, fewer when there are fewer queues."""
    region = driver.stats_region
    region[:] = POISON
    lab.advance(20_000 * MS)
    assert (region[: -3 * 4 * 16] == POISON).all()
    assert (region[-3 * 4 * 16 :] != POISON).any()
    driver.close()
    region[:] = POISON
    lab.advance(20_000 * MS)
    assert (region == POISON).all()


def test_statistics_interval(lab: Loopback, driver: Driver) -> None:
    """Every interval, and never after the driver took the region back."""
    region = driver.stats_region
    for _ in range(3):
        region[:] = POISON
        lab.advance(19_999 * MS)
        assert (region == POISON).all()
        lab.advance(MS)
        assert not (region == POISON).all()
    driver.admin(Opcode.REPORT_STATS)
    region[:] = POISON
    lab.advance(100_000 * MS)
    assert (region == POISON).all()


@pytest.mark.parametrize("length", [8, 16, 8 + 3 * 4 * 16 - 1])
def test_statistics_region_too_small(lab: Loopback, driver: Driver, length: int) -> None:
    """Whatever the driver says of its length, nothing outside is written."""
    place = lab.ram.allocate(4096)
    lab.ram.view(place, 4096)[:] = POISON
    driver.admin(Opcode.REPORT_STATS, address=place + 2048, length=length, interval_ms=10)
    lab.advance(100 * MS)
    view = lab.ram.view(place, 4096)
    assert (view[:2048] == POISON).all()
    assert (view[2048 + length :] == POISON).all()


def test_statistics_region_unmapped(lab: Loopback, driver: Driver, hbm: GuestMemory) -> None:
    """A region that goes away is given up; the device lives."""
    driver.map(hbm)
    driver.admin(Opcode.REPORT_STATS, address=hbm.base, length=1544, interval_ms=10)
    driver.unmap(hbm)
    lab.advance(100 * MS)
    lab.receive(to(0))
    assert len(driver.poll_all()) == 1


# Clock


def test_clock(lab: Loopback, driver: Driver) -> None:
    """The NIC's clock runs with the one that stamps packets, in ns."""
    first = driver.nic_timestamp()
    lab.advance(123_456_789)
    assert driver.nic_timestamp() == first + 123_456_789


def test_clock_without_the_option(make_lab: Callable[..., Loopback]) -> None:
    driver = make_lab(timestamps=False).driver
    driver.probe()
    assert driver.description is not None
    assert not driver.description.has_timestamps


def test_counters_array_is_written_within_its_bounds(lab: Loopback, driver: Driver) -> None:
    """In the DQO formats the array is of no use, but `ethtool -S` shows it: it stays finite and in place."""
    start = driver.counters.ctypes.data - lab.ram.bytes.ctypes.data
    end = start + driver.counters.nbytes
    around = np.concatenate([lab.ram.bytes[start - 64 : start], lab.ram.bytes[end : end + 64]])
    for number in range(10):
        driver.send(0, tcp(number))
    lab.receive(arp())
    lab.run()
    after = np.concatenate([lab.ram.bytes[start - 64 : start], lab.ram.bytes[end : end + 64]])
    assert np.array_equal(around, after)


# Transmit


def test_transmit_queue_comes_back(lab: Loopback, driver: Driver) -> None:
    """Indices and generation start over with each queue."""
    for _ in range(3):
        tags = []
        for number in range(20):
            tags.append(driver.send(0, tcp(number)))
        lab.run()
        assert len(lab.wire.take()) == 20
        completions: list[TxCompletion] = driver.poll_tx(0)
        assert [value for kind, value in completions if kind.name == "PACKET"] == tags
        driver.close()
        driver.open(rx_queues=3, tx_queues=2, ring_entries=ENTRIES)


def test_fewer_vectors_than_queues_want(make_lab: Callable[..., Loopback]) -> None:
    """The driver uses as many queues as it has vectors for."""
    lab = make_lab(queues=8, msix_vectors=6)
    driver = lab.driver
    driver.probe()
    assert (driver.max_tx_queues, driver.max_rx_queues, driver.blocks) == (2, 2, 4)
    driver.open(ring_entries=ENTRIES)
    driver.set_rss(table=[1] * 128)
    lab.receive(tcp())
    assert len(driver.poll(1)) == 1


@pytest.mark.parametrize("vectors", [-1, 1, 2, 128])
def test_vectors_that_no_driver_can_use(vectors: int) -> None:
    with pytest.raises(ValueError, match=f"{vectors} MSI-X vectors"):
        Profile(msix_vectors=vectors)
