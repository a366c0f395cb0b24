"""Beginnings and ends: reboots, resets, kills of either side, and a server that stays as it was through all of them.

The guest has NICs of either kind, so that each of its reboots is one with both drivers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import (
    FAR,
    IDPF,
    TROUBLE,
    Footprint,
    connect_idpf,
    connect_pair,
    flood,
    footprint,
    load_driver,
    nics_of,
    ping,
    wait_until,
)

from nicmodel.gvnic.testing.driver import Driver as GvnicDriver
from nicmodel.idpf.testing.driver import Driver as IdpfDriver
from nicmodel.vfio_user import Client
from nicmodel.vfio_user.protocol import PciRegion
from nicmodel.vm.guest import Guest, GuestConfig
from nicmodel.vm.server import NicServer

pytestmark = pytest.mark.guest

PEER = "10.1.0.2"
#: Drivers in Python.
DRIVERS: dict[str, type[GvnicDriver] | type[IdpfDriver]] = {"gvnic": GvnicDriver, "idpf": IdpfDriver}


@pytest.fixture(scope="module")
def server() -> Iterator[NicServer]:
    """Two NICs back to back with PCI revision 0, for which the driver hands the admin queue over in another way."""
    with NicServer(["--wire", "link", "-v", "--revision", "0"], sockets=2) as running:
        yield running


@pytest.fixture(scope="module")
def other() -> Iterator[NicServer]:
    """The server of an idpf, and of a gVNIC at its far end."""
    arguments = [word for port in (IDPF, FAR) for word in ("--device", port.device, "--mac", port.mac)]
    with NicServer(["--wire", "link", "-v", *arguments], sockets=2) as running:
        yield running


@pytest.fixture(scope="module")
def guest(server: NicServer, other: NicServer) -> Iterator[Guest]:
    with Guest(GuestConfig(nics=[*nics_of(server), *nics_of(other)])) as running:
        connect(running)
        yield running


def connect(guest: Guest) -> None:
    """Both pairs, as after each boot."""
    connect_pair(guest)
    connect_idpf(guest)


def test_revision_0(guest: Guest) -> None:
    """The driver binds, and lets go again."""
    assert guest.run("cat /sys/class/net/eth0/device/revision").stdout.strip() == "0x00"
    ping(guest, PEER, count=50, size=4000)
    guest.run("rmmod gve; ip netns del peer", timeout=120)
    load_driver(guest)
    connect_idpf(guest)
    ping(guest, PEER, count=50, size=4000)


def test_a_second_client_waits(guest: Guest, server: NicServer) -> None:
    """It gets no answer while a guest has the device, and the guest does not notice."""
    for _ in range(3):
        with pytest.raises(TimeoutError):
            Client(str(server.sockets[0]), timeout=0.5)
    ping(guest, PEER, count=50, size=4000)
    assert server.report()[0]["vfio_user"]["clients"] == 1


def test_reboot_under_traffic(guest: Guest, server: NicServer, other: NicServer) -> None:
    """The driver idpf says nothing to the device on its way to a reboot."""
    flood(guest, server)
    flood(guest, other, peer=IDPF.peer)
    guest.reboot()
    connect(guest)
    for peer in (PEER, IDPF.peer):
        ping(guest, peer, count=50, size=4000)
    assert not [line for line in guest.dmesg().splitlines() if TROUBLE.search(line)]
    assert "vfio" not in guest.qemu_log()


@pytest.mark.long  # test_layouts.py has it behind an IOMMU
def test_reset_button_under_traffic(guest: Guest, server: NicServer, other: NicServer) -> None:
    """The machine's, which no driver learns of: the devices are reset while they write to memory."""

    def resets() -> list[int]:
        return [int(one.report()[0]["vfio_user"]["device_reset"]) for one in (server, other)]

    before = resets()
    flood(guest, server)
    flood(guest, other, peer=IDPF.peer)
    guest.reset()
    assert all(now > then for now, then in zip(resets(), before, strict=True))
    connect(guest)
    for peer in (PEER, IDPF.peer):
        ping(guest, peer, count=50, size=4000)
    assert not [line for line in guest.dmesg().splitlines() if TROUBLE.search(line)]
    assert "vfio" not in guest.qemu_log()


def sync(driver: GvnicDriver | IdpfDriver) -> None:
    """By its answer the server has done all that was asked for before."""
    driver.client.region_read(PciRegion.CONFIG, 0, 4)


@pytest.mark.parametrize("device", DRIVERS)
def test_a_server_that_is_stopped_says_what_it_did(device: str, tmp_path: Path) -> None:
    """In order, with a driver on it: report written, sockets gone, connection closed."""
    server = NicServer(["--device", device], sockets=1, folder=tmp_path)
    with server, DRIVERS[device](server.sockets[0]) as driver:
        driver.probe()
        driver.open()
        driver.send(0, bytes(60))
        sync(driver)
        (report,) = server.stop()
        assert driver.client.closed_by_server()
    # No message of an idpf's driver says who it is.
    assert (report["driver"] or {}).get("os_version") == {"gvnic": "nicmodel", "idpf": None}[device]
    assert sum(queue["packets"] for queue in report["tx_queues"]) == 1
    assert not server.sockets[0].exists()


@pytest.mark.parametrize("device", DRIVERS)
def test_clients_leave_nothing_behind(device: str) -> None:
    """Sixty of them, every other one without a farewell: descriptors, mappings and memory stay what they were."""

    def visit(number: int) -> None:
        with DRIVERS[device](own.sockets[0]) as driver:
            driver.probe()
            driver.open(header_split=bool(number % 3))
            for queue in driver.tx:
                driver.send(queue, bytes(1000))
            sync(driver)
            assert footprint(own.pid).guest_memory
            if number % 2:
                driver.remove()

    def at_rest() -> Footprint:
        wait_until(lambda: own.report()[0]["client"] is None)
        looks = []
        for _ in range(20):  # the server may see a little later that the connection of that question is closed
            looks.append(footprint(own.pid))
            time.sleep(0.01)
        return min(looks, key=lambda look: look.descriptors)

    with NicServer(["--device", device]) as own:
        for number in range(10):  # what is allocated once
            visit(number)
        before = at_rest()
        visits = 50
        for number in range(visits):
            visit(number)
        after = at_rest()
    assert (after.descriptors, after.guest_memory) == (before.descriptors, 0)
    # A few of the allocator's come and go, but none for each client.
    assert after.mappings < before.mappings + visits // 5
    assert after.anonymous <= before.anonymous + (4 << 20)
