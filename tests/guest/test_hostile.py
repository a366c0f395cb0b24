"""A real server against clients that mean harm: it answers, drops or counts, and serves the next guest as before.

The in-process rings go into breadth (tests/protocol/test_malformed.py, tests/device/test_garbage.py); here is what
only a process of its own shows, that it is still there. Messages of the protocol are the same for each kind of NIC.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest
from lab import IDPF, connect_idpf, nics_of, ping

from nicmodel.gvnic.commands import SLOT_SIZE, Opcode
from nicmodel.gvnic.registers import Bar
from nicmodel.gvnic.testing.adminq import AdminError
from nicmodel.gvnic.testing.driver import Driver as GvnicDriver
from nicmodel.idpf.descriptors import TX_FLOW_DATA
from nicmodel.idpf.registers import Bar as IdpfBar
from nicmodel.idpf.testing.driver import Driver as IdpfDriver
from nicmodel.idpf.testing.mailbox import Refused, Silent
from nicmodel.idpf.virtchnl import Op, QueueType
from nicmodel.testing.guest_memory import PAGE
from nicmodel.vfio_user import Client, Command
from nicmodel.vfio_user.protocol import HEADER, MAX_MESSAGE, REGION_ACCESS, PciRegion
from nicmodel.vm.guest import Guest, GuestConfig
from nicmodel.vm.server import NicServer

pytestmark = pytest.mark.guest

#: Parts of arguments: small numbers, large ones, and the driver's memory, which begins at 256 MiB and ends at 512 MiB.
WORDS = [0, 1, 2, 0xFFFF, 0x0FFF_F000, 0x1000_0000, 0x1FFF_FFF8, 0x7FFF_FFFF, 0xDEAD_0000, 0xFFFF_FFFF]


Driver = GvnicDriver | IdpfDriver
#: By kind of NIC, its number at the server, and a driver of it.
SOCKETS = {"gvnic": 0, "idpf": 1}
DRIVERS: dict[int, type[GvnicDriver] | type[IdpfDriver]] = {0: GvnicDriver, 1: IdpfDriver}

on_each_device = pytest.mark.parametrize("driver", SOCKETS.values(), ids=SOCKETS, indirect=True)


@pytest.fixture(scope="module")
def server() -> Iterator[NicServer]:
    """A NIC of each kind, back to back, which all tests of this file wear out in turn."""
    kinds = [word for device in SOCKETS for word in ("--device", device)]
    with NicServer(["--wire", "link", *kinds], sockets=len(SOCKETS)) as running:
        yield running


@pytest.fixture(autouse=True)
def it_lives(server: NicServer) -> Iterator[None]:
    """After each test it serves well-behaved drivers, and no exception has reached its log."""
    yield
    for number, kind in DRIVERS.items():
        with kind(server.sockets[number]) as driver:
            driver.probe()
            driver.open()
            driver.remove()
    assert "Traceback" not in server.log()


@pytest.fixture
def driver(server: NicServer, request: pytest.FixtureRequest) -> Iterator[Driver]:
    with DRIVERS[request.param](server.sockets[request.param]) as driver:
        driver.probe()
        yield driver


def sync(driver: Driver) -> None:
    """By its answer the server has done all that was asked for before."""
    driver.client.region_read(PciRegion.CONFIG, 0, 4)


@pytest.mark.parametrize("negotiate", [True, False])
def test_messages_of_noise(server: NicServer, negotiate: bool) -> None:
    noise = random.Random(1)
    for _ in range(40):
        with Client(str(server.sockets[0]), negotiate=negotiate) as client:
            try:
                for _ in range(20):
                    payload = noise.randbytes(noise.randrange(80))
                    command = noise.choice([*Command, 0, 99, 0xFFFF])
                    client.raw(HEADER.pack(1, command, HEADER.size + len(payload), 0x10, 0), payload)
                client.raw(noise.randbytes(200))
            except ConnectionError:
                continue  # thrown out already


@pytest.mark.parametrize("size", [0, HEADER.size - 1, MAX_MESSAGE + 1, 0xFFFF_FFFF])
def test_impossible_lengths(server: NicServer, size: int) -> None:
    with Client(str(server.sockets[0])) as client:
        client.raw(HEADER.pack(1, Command.REGION_READ, size, 0, 0))
        assert client.closed_by_server()


def test_descriptors_by_the_hundred(server: NicServer) -> None:
    fd = os.memfd_create("flood")
    try:
        with Client(str(server.sockets[0])) as client:
            for _ in range(50):
                client.raw(HEADER.pack(1, Command.DEVICE_RESET, HEADER.size, 0x10, 0), fds=[fd] * 100)
            client.device_info()
    finally:
        os.close(fd)


def test_memory_that_is_not_there(server: NicServer) -> None:
    """A file that is shorter than what is to be mapped of it would end the server with SIGBUS at the first access."""
    fd = os.memfd_create("short")
    os.ftruncate(fd, PAGE)
    read_end, write_end = os.pipe()
    try:
        with Client(str(server.sockets[0])) as client:
            for start, size, descriptor, offset in (
                (0, 16 * PAGE, fd, 0),
                (0, PAGE, fd, PAGE),
                (0, PAGE, fd, (1 << 64) - PAGE),
                (0, PAGE, read_end, 0),
                ((1 << 64) - PAGE, 2 * PAGE, fd, 0),
                (0, 0, fd, 0),
                (0, 1 << 63, fd, 0),
            ):
                with pytest.raises(OSError) as refused:
                    client.dma_map(start, size, descriptor, offset)
                assert refused.value.errno in (errno.EINVAL, errno.EACCES)
    finally:
        for descriptor in (fd, read_end, write_end):
            os.close(descriptor)


@pytest.mark.parametrize("number", SOCKETS.values(), ids=SOCKETS)
def test_registers_out_of_range(server: NicServer, number: int) -> None:
    with Client(str(server.sockets[number])) as client:
        for region in (*PciRegion, 9, 0xFFFF_FFFF):
            size = client.region_info(region).size if region < 9 else 0
            for offset, count in ((size, 4), (size - 2, 4), ((1 << 64) - 4, 8), (0, size + 1), (0, MAX_MESSAGE)):
                if offset >= 0:
                    with pytest.raises(OSError) as refused:
                        client.request(Command.REGION_READ, REGION_ACCESS.pack(offset, region, count))
                    assert refused.value.errno == errno.EINVAL


@on_each_device
def test_every_register_and_doorbell_takes_anything(driver: Driver) -> None:
    driver.open()
    noise = random.Random(2)
    bars = {Bar.REGISTERS: 64, Bar.DOORBELLS: 1024} if isinstance(driver, GvnicDriver) else {IdpfBar.REGISTERS: 0x9000}
    for bar, size in bars.items():
        for _ in range(2000):
            data = noise.randbytes(noise.choice([1, 2, 4, 4, 4]))
            driver.client.region_write(bar, noise.randrange(size), data, posted=True)
    sync(driver)


@on_each_device
def test_commands_of_noise(driver: Driver) -> None:
    """Known commands, or messages, with arguments that mean little."""
    noise = random.Random(3)

    def words(count: int) -> bytes:
        order: Literal["big", "little"] = "big" if isinstance(driver, GvnicDriver) else "little"
        return b"".join(noise.choice(WORDS).to_bytes(4, order) for _ in range(count))

    if isinstance(driver, GvnicDriver):
        for _ in range(100):
            opcodes = [noise.choice([*Opcode, 0x7777]) for _ in range(20)]
            slots = [int(opcode).to_bytes(4, "big") + bytes(4) + words((SLOT_SIZE - 8) // 4) for opcode in opcodes]
            with pytest.raises(AdminError):
                driver.admin_batch(slots)
        return
    refused = 0
    for _ in range(1000):
        try:
            driver.request(noise.choice([*Op, 0x7777]), words(noise.randrange(60)))
        except Refused:
            refused += 1
        except Silent:  # as after RESET_VF
            driver.set_up()
    assert refused > 500


@on_each_device
def test_rings_of_noise(driver: Driver) -> None:
    """Descriptors that point anywhere, and doorbells that announce them."""
    driver.open(header_split=True)
    noise = random.Random(4)
    for number, tx in driver.tx.items():
        for _ in range(20):
            if isinstance(driver, GvnicDriver):
                ring = driver.tx[number].ring
                ring[:] = np.frombuffer(noise.randbytes(ring.size), np.uint8).reshape(ring.shape)
                driver.doorbells.ring(driver.tx[number].doorbell_index, noise.randrange(tx.entries))
            else:
                driver.ram.write(driver.tx[number].ring, noise.randbytes(tx.entries * TX_FLOW_DATA.size))
                start, spacing = driver.tails[QueueType.TX]
                driver.registers.write_at(start + spacing * number, noise.randrange(tx.entries))
    sync(driver)


@on_each_device
def test_memory_that_goes_away(driver: Driver) -> None:
    """All of it, under open queues and commands that wait."""
    driver.open()
    for queue in driver.tx:
        driver.send(queue, bytes(1000))
    driver.client.dma_unmap(driver.ram.base, driver.ram.size)
    if isinstance(driver, GvnicDriver):
        for index in range(64):
            driver.doorbells.ring(index, 1)
    else:
        for start, spacing in driver.tails.values():
            for number in range(8):
                driver.registers.write_at(start + spacing * number, 2)
    sync(driver)


def test_then_a_guest_boots_and_pings(server: NicServer) -> None:
    with Guest(GuestConfig(nics=nics_of(server))) as guest:
        connect_idpf(guest)
        ping(guest, IDPF.peer, count=50, size=4000)
