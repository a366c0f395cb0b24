"""A device's memory that goes away, or may not be written or read, in the middle of a transfer.

What a guest does when it switches off a BAR that a dma-buf lies in, or an IOMMU takes a mapping back: each access is a
counted DMA fault, the frame a drop with a name and a line in the trace, and the memory stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nicmodel.client.text import lines
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.nic.state import Drop
from nicmodel.testing.guest_memory import GuestMemory
from nicmodel.vfio_user.protocol import DmaFlag

from .conftest import ENTRIES
from .frames import tcp
from .test_trace import Heard

POISON = 0xA5
BUFFER = 2048
#: Buffers of the queue in the first of two mappings, fewer than the device is given; and where the second begins.
FIRST = 16
HALF = FIRST * BUFFER
BOTH = DmaFlag.READABLE | DmaFlag.WRITABLE


@pytest.fixture
def hbm() -> Iterator[GuestMemory]:
    """A device's memory, poisoned."""
    with GuestMemory("hbm", base=0x40_0000_0000, size=1 << 20) as memory:
        memory.bytes[:] = POISON
        yield memory


def map_halves(driver: Driver, hbm: GuestMemory, second: DmaFlag = BOTH) -> None:
    """Two mappings: the first half of a queue's buffers, and the rest with other rights."""
    driver.client.dma_map(hbm.base, HALF, hbm.fd, 0, BOTH)
    driver.client.dma_map(hbm.base + HALF, hbm.size - HALF, hbm.fd, HALF, second)


def opened(lab: Loopback, hbm: GuestMemory) -> Driver:
    """Queue 1 splits headers off and puts payload into the device's memory; it gets all frames, queue 0 none."""
    driver = lab.driver
    driver.probe()
    driver.open(rx_queues=2, tx_queues=1, ring_entries=ENTRIES, buffer_size=BUFFER, header_split=True)
    driver.restart_rx(1, payload_memory=hbm)
    driver.set_rss(table=[1] * 128)
    return driver


def faults(lab: Loopback) -> int:
    return int(lab.nic.state.device["faults"][0])


def check_fault_is_told(lab: Loopback, heard: Heard, queue: str) -> None:
    """The trace names queue and reason."""
    [dropped] = [event for event in heard if event.get("verdict") == "dma_fault"]
    assert (dropped["kind"], dropped["queue"]) == (queue[:2], queue)
    assert f"{queue} dma_fault" in next(iter(lines(dropped, dropped["time"])))


def test_unmapped_in_the_middle_of_a_stream(lab: Loopback, hbm: GuestMemory) -> None:
    """*Steps*: fill buffers from the first; take the mapping of the second half away; go on, then give it back.

    *Verify*: each frame whose buffer is there arrives, each other one is dropped; not a byte where no mapping is.
    """
    map_halves(lab.driver, hbm)
    driver = opened(lab, hbm)
    frame = tcp(1000)
    driver.client.dma_unmap(hbm.base + HALF, hbm.size - HALF)
    for number in range(FIRST):
        lab.receive(frame)
        assert [packet.frame for packet in driver.poll(1, repost=False)] == [frame], number
    assert (hbm.bytes[HALF:] == POISON).all()
    before = faults(lab)

    heard = Heard(lab, kinds=["rx"])
    lab.receive(frame)
    assert driver.poll(1) == []
    assert (hbm.bytes[HALF:] == POISON).all()
    assert faults(lab) == before + 1
    assert lab.nic.state.drops[1, Drop.DMA_FAULT] == 1
    check_fault_is_told(lab, heard, "rx1")
    heard.end()

    driver.client.dma_map(hbm.base + HALF, hbm.size - HALF, hbm.fd, HALF, BOTH)
    lab.receive(frame)
    [packet] = driver.poll(1)
    assert packet.frame == frame and packet.buffers[0].memory == "hbm"


@pytest.mark.parametrize("second", [None, DmaFlag.READABLE])
def test_a_frame_that_reaches_into_it(lab: Loopback, hbm: GuestMemory, second: DmaFlag | None) -> None:
    """A frame of several buffers, of which the last may not be written any more: none of it is handed over."""
    map_halves(lab.driver, hbm, BOTH if second is None else second)
    driver = opened(lab, hbm)
    for _ in range(FIRST - 1):
        lab.receive(tcp(100))
        assert len(driver.poll(1, repost=False)) == 1
    if second is None:
        driver.client.dma_unmap(hbm.base + HALF, hbm.size - HALF)
    before = faults(lab)
    heard = Heard(lab, kinds=["rx"])
    lab.receive(tcp(2 * BUFFER))
    assert driver.poll(1) == []
    assert (hbm.bytes[HALF:] == POISON).all()
    assert faults(lab) > before
    check_fault_is_told(lab, heard, "rx1")
    # The other queue, in ordinary memory, has not noticed.
    driver.set_rss(table=[0] * 128)
    lab.receive(tcp(100))
    assert [packet.frame for packet in driver.poll(0)] == [tcp(100)]


def test_read_only(lab: Loopback, hbm: GuestMemory) -> None:
    lab.driver.client.dma_map(hbm.base, hbm.size, hbm.fd, 0, DmaFlag.READABLE)
    driver = opened(lab, hbm)
    heard = Heard(lab, kinds=["rx"])
    lab.receive(tcp(1000))
    assert driver.poll(1) == []
    assert (hbm.bytes == POISON).all()
    check_fault_is_told(lab, heard, "rx1")


@pytest.mark.parametrize("rights", [None, DmaFlag.WRITABLE])
def test_sent_from_memory_that_may_not_be_read(lab: Loopback, hbm: GuestMemory, rights: DmaFlag | None) -> None:
    """The packet is not sent, its completion comes nevertheless, and the next packet goes out."""
    driver = lab.driver
    driver.map(hbm)
    driver.probe()
    driver.open(rx_queues=1, tx_queues=1, ring_entries=ENTRIES)
    frame = tcp(5000)
    driver.tx[0].send(frame, fragments=[54, 4096, 904], memory=hbm, kick=False)
    driver.unmap(hbm)
    if rights is not None:
        driver.client.dma_map(hbm.base, hbm.size, hbm.fd, 0, rights)
    before = faults(lab)
    heard = Heard(lab, kinds=["tx"])
    driver.tx[0].kick()
    lab.run()
    assert lab.wire.take() == []
    assert faults(lab) > before
    assert lab.nic.state.drops[lab.nic.profile.queues, Drop.DMA_FAULT] == 1
    check_fault_is_told(lab, heard, "tx0")
    assert len(driver.poll_tx(0)) == 1
    driver.send(0, frame)
    lab.run()
    assert lab.wire.take() == [frame]
