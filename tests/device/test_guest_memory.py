"""Guest memory that changes under a NIC: unmapped, mapped anew, taken away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from nicmodel.gvnic.commands import Opcode
from nicmodel.gvnic.registers import ADMINQ_PFN
from nicmodel.gvnic.testing.adminq import AdminError
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.nic.state import Drop
from nicmodel.testing.guest_memory import PAGE, GuestMemory
from nicmodel.vfio_user.protocol import PciRegion

from .frames import tcp


@pytest.fixture
def hbm(lab: Loopback) -> GuestMemory:
    """Memory of another device, to be taken away: the test's own process would not survive that of "ram"."""
    lab.driver.probe()
    return lab.driver.add_memory("hbm", 8 << 20)


@pytest.fixture
def successor(hbm: GuestMemory) -> Iterator[GuestMemory]:
    """Other memory for the same addresses."""
    with GuestMemory("successor", base=hbm.base, size=hbm.size) as memory:
        yield memory


def opened(lab: Loopback, memory: GuestMemory) -> Driver:
    lab.driver.open(rx_queues=1, tx_queues=1, ring_entries=64, header_split=False, payload_memory=memory)
    return lab.driver


def drops(lab: Loopback, reason: Drop) -> int:
    return int(lab.nic.state.drops[:, reason].sum())


def in_pages(driver: Driver, memory: GuestMemory) -> None:
    """Map memory page by page, as a vIOMMU does."""
    for page in range(0, memory.size, PAGE):
        driver.client.dma_map(memory.base + page, PAGE, memory.fd, page)


@pytest.mark.parametrize("pages", [False, True], ids=["one region", "pages"])
def test_received_bytes_go_where_the_memory_is_now(
    lab: Loopback, hbm: GuestMemory, successor: GuestMemory, pages: bool
) -> None:
    """*Steps*: unmap a queue's buffers by a range that is larger; frames; map other memory there; frames.

    *Verify*: the first are DMA faults, the others are in the new memory; nothing is written to the old.
    """
    driver = opened(lab, hbm)
    if pages:
        driver.unmap(hbm)
        in_pages(driver, hbm)
    lab.receive(tcp(2000))
    assert [packet.frame for packet in driver.poll(0)] == [tcp(2000)]
    driver.client.dma_unmap(hbm.base, 1 << 36)
    hbm.bytes[:] = 0
    lab.receive(tcp(2000), tcp(2000))
    assert drops(lab, Drop.DMA_FAULT) == 2
    if pages:
        in_pages(driver, successor)
    else:
        driver.client.dma_map(successor.base, successor.size, successor.fd)
    lab.receive(tcp(1500))
    assert tcp(1500) in successor.bytes.tobytes()
    assert not hbm.bytes.any()


def test_sent_bytes_come_from_where_the_memory_is_now(lab: Loopback, hbm: GuestMemory, successor: GuestMemory) -> None:
    """*Steps*: the packet's page is exchanged between its posting and the doorbell. *Verify*: the new page is sent."""
    driver = opened(lab, hbm)
    frame = tcp(1000)
    other = frame[:54] + bytes(reversed(frame[54:]))
    address = hbm.allocate(PAGE)
    successor.write(address, other[54:])
    hbm.free(address)
    driver.tx[0].send(frame, fragments=[54, len(frame) - 54], memory=hbm, kick=False)
    assert hbm.read(address, 20) == frame[54:74]
    driver.client.dma_unmap(hbm.base, hbm.size)
    driver.client.dma_map(successor.base, successor.size, successor.fd)
    driver.tx[0].kick()
    lab.run()
    assert lab.wire.take() == [other]


def test_neighbours_come_and_go_under_traffic(lab: Loopback, hbm: GuestMemory) -> None:
    """*Steps*: thousands of regions around those in use are mapped and unmapped between frames, in ranges and alone."""
    driver = opened(lab, hbm)
    with GuestMemory("others", base=1 << 40, size=64 << 20) as others:
        mapped = 0
        for turn in range(60):
            for page in range(100):
                for base in (0, 1 << 40):
                    driver.client.dma_map(base + (turn * 100 + page) * 2 * PAGE, PAGE, others.fd, page * PAGE)
                    mapped += 1
            lab.receive(tcp(3000))
            assert [packet.frame for packet in driver.poll(0)] == [tcp(3000)]
            if turn % 3 == 2:
                driver.client.dma_unmap((1 << 40) + (turn * 100 - 150) * 2 * PAGE, 151 * 2 * PAGE)
                driver.client.dma_unmap((turn * 100 + 30) * 2 * PAGE, PAGE)
                mapped -= 152
        assert len(lab.nic.link.dma) == mapped + 2  # type: ignore[union-attr]
        assert drops(lab, Drop.DMA_FAULT) == 0
        driver.client.dma_unmap(1 << 40, 1 << 41)


def take_away(memory: GuestMemory) -> None:
    """Nobody in this process may touch it any more, but the NIC."""
    os.ftruncate(memory.fd, 0)


def check_lost(lab: Loopback, memory: GuestMemory) -> None:
    """The loss is counted once, its regions are gone, the device has started over, and the driver can do so."""
    lab.run()
    dma = lab.nic.link.dma  # type: ignore[union-attr]
    assert lab.nic.counters["memory_lost"] == 1
    assert lab.server.stats["dma_lost"] == 1
    assert lab.server.stats["dma_faults"] >= 1
    assert dma.regions["start"].tolist() == [lab.ram.base]
    assert int.from_bytes(lab.driver.client.region_read(PciRegion.BAR0, ADMINQ_PFN.offset, 4), "big") == 0
    assert not lab.nic.state.rx["active"].any()
    os.ftruncate(memory.fd, memory.size)
    lab.driver.disconnect()
    again = lab.connect()
    again.probe()
    again.open(rx_queues=1, tx_queues=1, ring_entries=64)
    lab.receive(tcp(700))
    assert [packet.frame for packet in again.poll(0)] == [tcp(700)]
    again.disconnect()
    assert lab.nic.counters["memory_lost"] == 1


def test_buffers_are_taken_away(lab: Loopback, hbm: GuestMemory) -> None:
    opened(lab, hbm)
    lab.run()
    take_away(hbm)
    lab.receive(*(tcp(4000) for _ in range(8)))
    check_lost(lab, hbm)


def test_packets_are_taken_away(lab: Loopback, hbm: GuestMemory) -> None:
    """No byte is sent that the driver has not posted."""
    driver = opened(lab, hbm)
    lab.run()
    driver.send(0, tcp(3000), fragments=[54, 3000], memory=hbm)
    take_away(hbm)
    lab.run()
    assert lab.wire.take() == []
    assert drops(lab, Drop.DMA_FAULT) == 1
    check_lost(lab, hbm)


def test_what_a_command_needs_is_taken_away(lab: Loopback, hbm: GuestMemory) -> None:
    address = hbm.allocate(PAGE)
    take_away(hbm)
    with pytest.raises((AdminError, OSError, TimeoutError)):
        lab.driver.admin(Opcode.DESCRIBE_DEVICE, descriptor_address=address, available_length=PAGE, version=1)
    check_lost(lab, hbm)


def test_the_other_nics_do_not_notice(make_lab: Callable[..., Loopback]) -> None:
    labs = [make_lab(), make_lab()]
    for lab in labs:
        lab.driver.probe()
    hbm = labs[0].driver.add_memory("hbm", 1 << 20)
    # The same file at both.
    labs[1].driver.client.dma_map(hbm.base, hbm.size, hbm.fd)
    opened(labs[0], hbm)
    labs[1].driver.open(rx_queues=1, tx_queues=1, ring_entries=64)
    take_away(hbm)
    labs[0].receive(tcp(4000))
    labs[1].receive(tcp(1000))
    assert [packet.frame for packet in labs[1].driver.poll(0)] == [tcp(1000)]
    assert len(labs[1].nic.link.dma) == 2  # type: ignore[union-attr]
    assert labs[1].nic.counters["memory_lost"] == 0
    check_lost(labs[0], hbm)


_OTHERS = """
import ctypes, os, signal, sys
from nicmodel.gvnic.testing.loopback import Loopback
lab = Loopback()
if sys.argv[1] == "touch":
    ctypes.string_at(8, 1)
os.kill(os.getpid(), signal.{name})
"""


@pytest.mark.parametrize("how", ["touch", "kill"])
@pytest.mark.parametrize("name", ["SIGSEGV", "SIGBUS"])
def test_other_faults_are_what_they_were(how: str, name: str) -> None:
    """A signal for any other reason ends the process as ever."""
    ended = subprocess.run([sys.executable, "-c", _OTHERS.format(name=name), how], capture_output=True)
    assert ended.returncode == -(signal.SIGSEGV if how == "touch" else signal.Signals[name])


def test_memory_that_cannot_be_had(lab: Loopback) -> None:
    """Huge pages that the host does not have: mapping them works, touching one is SIGBUS."""
    lab.driver.probe()
    try:
        fd = os.memfd_create("huge", os.MFD_HUGETLB)
    except OSError:
        pytest.skip("no huge pages in this kernel")
    size = 1 << 30
    with open("/proc/meminfo") as info:
        free = next(int(line.split()[1]) for line in info if line.startswith("HugePages_Free"))
    if free:
        pytest.skip("this host has huge pages to give")
    os.ftruncate(fd, size)
    lab.driver.client.dma_map(1 << 40, PAGE, fd, PAGE)
    with pytest.raises((AdminError, OSError, TimeoutError)):
        lab.driver.admin(Opcode.DESCRIBE_DEVICE, descriptor_address=1 << 40, available_length=PAGE, version=1)
    lab.run()
    assert lab.nic.counters["memory_lost"] == 1
    os.close(fd)
