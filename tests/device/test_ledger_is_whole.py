"""No byte of DMA is missing in the ledger, and none is booked that was not moved.

The account is held against a second one, taken where memory is accessed (`tests.device.bus`), while a driver does all
that makes a device access memory, right and wrong, in every queue format.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable

import pytest

from nicmodel.gvnic.commands import Opcode, QueueFormat
from nicmodel.gvnic.descriptors import RX_BUFFER
from nicmodel.gvnic.testing.adminq import AdminError
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.flows import TCPv4
from nicmodel.gvnic.testing.gqi import GqiQueues
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.jit.compiled import JIT_DISABLED
from nicmodel.nic.purpose import Purpose
from nicmodel.packet.frames import Gso, Offload
from nicmodel.testing.guest_memory import PAGE, GuestMemory
from nicmodel.testing.wire import TestWire
from nicmodel.vfio_user.protocol import DmaFlag

from .bus import Bus
from .conftest import ENTRIES
from .frames import arp, tcp, udp

observing = pytest.mark.skipif(not JIT_DISABLED, reason="compiled code cannot be observed: see the first test")
#: What a driver does in each test, chosen anew each time. Uncompiled, each takes a tenth of a second.
TURNS = 30
FORMATS = (QueueFormat.DQO_RDA, QueueFormat.GQI_RDA, QueueFormat.GQI_QPL)
#: An address where no memory is.
NOWHERE = 1 << 40


@pytest.mark.skipif(JIT_DISABLED, reason="is what this test runs")
@pytest.mark.timeout(900)  # the other tests of this file, uncompiled, in one process
def test_interpreted_code_is_observed(pytestconfig: pytest.Config) -> None:
    long = ["--long"] if pytestconfig.getoption("--long") else []
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *long, __file__],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0 and "passed" in result.stdout, result.stdout


def split(driver: Driver, size: int) -> None:
    """Map the guest's memory anew in regions of `size` bytes, as behind an IOMMU: accesses cross their borders."""
    ram = driver.ram
    driver.unmap(ram)
    for offset in range(0, ram.size, size):
        piece = min(size, ram.size - offset)
        driver.client.dma_map(ram.base + offset, piece, ram.fd, offset, DmaFlag.READABLE | DmaFlag.WRITABLE)


def use_admin_queue(driver: Driver) -> None:
    """Every command that makes the device access memory, and one that fails."""
    driver.report_link_speed()
    driver.nic_timestamp()
    driver.set_rss(table=[0, 1] * 64)
    driver.flow_rules()
    with pytest.raises(AdminError):
        driver.admin(Opcode.REPORT_LINK_SPEED, address=NOWHERE)


@observing
@pytest.mark.parametrize(
    ("regions", "rsc"),
    [
        ("one", False),
        ("pages", True),
        ("device memory", False),
        *(
            pytest.param(*more, marks=pytest.mark.long)
            for more in (("one", True), ("pages", False), ("device memory", True))
        ),
    ],
)
def test_dqo(make_lab: Callable[..., Loopback], monkeypatch: pytest.MonkeyPatch, regions: str, rsc: bool) -> None:
    chance = random.Random(f"{regions} {rsc}")
    wire = TestWire(offloads=Offload.ALL if rsc else Offload.NONE)
    lab = make_lab(wire=wire)
    driver = lab.driver
    if regions == "pages":
        split(driver, PAGE)
    hbm = driver.add_memory("hbm", 8 << 20) if regions == "device memory" else None
    bus = Bus(lab.nic, monkeypatch)
    driver.probe()
    driver.open(rx_queues=2, tx_queues=1, ring_entries=ENTRIES, header_split=True, rsc=rsc, payload_memory=hbm)
    driver.report_stats()
    driver.add_flow_rule(TCPv4(dst_port=5201), queue=1)
    use_admin_queue(driver)
    sequence = 0
    for _ in range(TURNS):
        match chance.randrange(7):
            case 0:
                lab.receive(*(udp(chance.randrange(8000)) for _ in range(chance.randrange(1, 8))), arp())
            case 1:
                lab.receive(*(tcp(1000, seq=sequence + 1000 * number, dport=5201, flags="A") for number in range(9)))
                sequence += 9000
            case 2:
                whole = tcp(5000, dport=5201)
                lab.wire.inject(whole, gso=Gso.TCPV4, segment=1000, header=len(whole) - 5000)
            case 3:
                queue = chance.randrange(2)
                entry = (int(lab.nic.state.rx[queue]["buffer_head"]) + chance.randrange(3)) % ENTRIES
                word = chance.choice((RX_BUFFER.buffer_address, RX_BUFFER.header_address)).word
                driver.rx[queue].buffer_ring[entry, word] = NOWHERE
                lab.receive(*(tcp(size, dport=dport) for size in (8800, 6000, 100) for dport in (5000, 5201)))
            case 4:
                size = chance.randrange(60, 8000)
                fragments = [10, size - 10] if chance.randrange(2) else None
                driver.send(
                    0, udp(size)[:size], fragments=fragments, report_event=bool(chance.randrange(2)), memory=hbm
                )
            case 5:
                driver.send(0, tcp(6000), tso=(chance.choice((100, 1000)), 54), report_event=True)
            case 6:
                lab.advance(2_000_000_000)
        lab.run()
        driver.poll_tx(0)
        if chance.randrange(3):
            driver.poll_all()
        assert bus.booked() == bus.moved
    driver.close()
    assert bus.booked() == bus.moved
    ledger = lab.nic.state.ledger.sum(axis=(0, 2))
    assert all(ledger[purpose] > 0 for purpose in Purpose)


@observing
@pytest.mark.parametrize("qpl", [False, True])
def test_gqi(make_lab: Callable[..., Loopback], monkeypatch: pytest.MonkeyPatch, qpl: bool) -> None:
    chance = random.Random(qpl)
    lab = make_lab(formats=FORMATS)
    bus = Bus(lab.nic, monkeypatch)
    lab.driver.probe()
    gqi = GqiQueues(lab.driver, qpl, 16)
    lab.driver.report_stats()
    use_admin_queue(lab.driver)
    for turn in range(TURNS):
        match chance.randrange(4):
            case 0:
                lab.receive(*(udp(chance.randrange(8000)) for _ in range(chance.randrange(1, 8))))
            case 1:
                gqi.send(tcp(100 + turn), pieces=1 + turn % 3)
            case 2:
                gqi.send(tcp(3000), tso=(1000, 54))
            case 3 if not qpl:
                slot = lab.driver.ram.read(gqi.data_ring, 8)
                lab.driver.ram.write(gqi.data_ring, NOWHERE.to_bytes(8, "big"))
                lab.receive(*[udp(3000)] * 8)
                lab.driver.ram.write(gqi.data_ring, slot)
        taken = gqi.taken
        gqi.receive()
        gqi.fill(gqi.taken - taken)
        assert bus.booked() == bus.moved
    ledger = lab.nic.state.ledger.sum(axis=(0, 2))
    assert all(ledger[purpose] > 0 for purpose in Purpose if purpose != Purpose.HEADER)


def test_an_access_of_the_admin_queue_that_crosses_memories(lab: Loopback) -> None:
    """Each part is booked to the kind of memory that it lies in."""
    driver = lab.driver
    nic = lab.nic
    with GuestMemory("other", base=driver.ram.base + driver.ram.size, size=PAGE) as other:
        driver.map(other)
        driver.probe()
        kind = nic.dma.kinds.index("other")
        before = nic.state.ledger[-1, Purpose.ANSWER].copy()
        driver.admin(Opcode.REPORT_LINK_SPEED, address=other.base - 3)
        moved = nic.state.ledger[-1, Purpose.ANSWER] - before
        assert (moved[0], moved[kind]) == (3 + 4, 5)  # and the status
