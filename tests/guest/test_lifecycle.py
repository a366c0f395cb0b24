"""Beginnings and ends: reboots, resets, kills of either side, and a server that stays as it was through all of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from lab import TROUBLE, connect_pair, ping, wait_until

from nicmodel.testing.driver import Driver
from nicmodel.vfio_user import Client
from nicmodel.vm.guest import Guest, GuestConfig
from nicmodel.vm.layout import Nic
from nicmodel.vm.server import NicServer

pytestmark = pytest.mark.guest

PEER = "10.1.0.2"
PAIR = ["--wire", "link", "-v"]
#: A flood in the background, which whatever happens happens under.
FLOOD = f"ping -q -f -s 4000 {PEER}"


def config(server: NicServer) -> GuestConfig:
    return GuestConfig(nics=[Nic(path) for path in server.sockets])


def flood(guest: Guest, server: NicServer) -> None:
    """Start one, and see it arrive."""
    guest.start(FLOOD)
    before = received(server)
    wait_until(lambda: received(server) > before + 100)


def received(server: NicServer) -> int:
    return sum(int(queue["frames"]) for queue in server.report()[0]["rx_queues"])


@pytest.fixture(scope="module")
def server() -> Iterator[NicServer]:
    """Two NICs back to back with PCI revision 0, for which the driver hands the admin queue over in another way."""
    with NicServer([*PAIR, "--revision", "0"], sockets=2) as running:
        yield running


@pytest.fixture(scope="module")
def guest(server: NicServer) -> Iterator[Guest]:
    with Guest(config(server)) as running:
        connect_pair(running)
        yield running


def test_revision_0(guest: Guest) -> None:
    """The driver binds, and lets go again."""
    assert guest.run("cat /sys/class/net/eth0/device/revision").stdout.strip() == "0x00"
    ping(guest, PEER, count=50, size=4000)
    guest.run("rmmod gve; ip netns del peer; modprobe gve; until [ -e /sys/class/net/eth1 ]; do sleep 0.05; done")
    connect_pair(guest)
    ping(guest, PEER, count=50, size=4000)


def test_a_second_client_waits(guest: Guest, server: NicServer) -> None:
    """It gets no answer while a guest has the device, and the guest does not notice."""
    for _ in range(3):
        with pytest.raises(TimeoutError):
            Client(str(server.sockets[0]), timeout=0.5)
    ping(guest, PEER, count=50, size=4000)
    assert server.report()[0]["vfio_user"]["clients"] == 1


def test_reboot_under_traffic(guest: Guest, server: NicServer) -> None:
    flood(guest, server)
    guest.reboot()
    connect_pair(guest)
    ping(guest, PEER, count=50, size=4000)
    assert not [line for line in guest.dmesg().splitlines() if TROUBLE.search(line)]


def test_reset_button_under_traffic(guest: Guest, server: NicServer) -> None:
    """The machine's, which no driver learns of: the device is reset while it writes to memory."""
    resets = server.report()[0]["vfio_user"]["device_reset"]
    flood(guest, server)
    greetings = guest._channel.greetings
    guest.qmp.execute("system_reset")
    guest._await_boot(greetings + 1)
    assert server.report()[0]["vfio_user"]["device_reset"] > resets
    connect_pair(guest)
    ping(guest, PEER, count=50, size=4000)
    assert not [line for line in guest.dmesg().splitlines() if TROUBLE.search(line)]


def test_each_side_survives_the_others_death() -> None:
    """Both by SIGKILL.

    *Steps*: kill QEMU under traffic; start another one on the same server; kill the server; unload the driver.
    *Verify*: the server lets go of the first guest's memory and serves the second; that one can unload its driver
    though the device is gone, and lives on.

    The server dies while the guest is paused, having read all messages: QEMU 11.1 aborts (an assertion in util/error.c)
    when it reads ECONNRESET, which is what a UNIX socket says whose other end was closed with messages unread.
    """
    with NicServer(PAIR, sockets=2) as server:
        with Guest(config(server)) as first:
            connect_pair(first)
            assert footprint(server.pid).guest_memory
            flood(first, server)
            first.kill()
            wait_until(lambda: [report["client"] for report in server.report()] == [None, None])
            assert not any(queue["active"] for report in server.report() for queue in report["rx_queues"])
            assert not footprint(server.pid).guest_memory
        with Guest(config(server)) as second:
            connect_pair(second)
            ping(second, PEER, count=50, size=4000)
            second.qmp.execute("stop")
            for _ in range(2):  # when the loop has come round, what had been in the sockets is done
                server.report()
            server.kill()
            second.qmp.execute("cont")
            second.start(FLOOD)
            second.run("rmmod gve", timeout=120)
            assert "eth0" not in second.run("ls /sys/class/net").stdout
            assert not second.run(f"ping -q -c 1 -W 1 {PEER}", check=False).stdout.count("1 received")


def test_a_server_that_is_stopped_says_what_it_did(tmp_path: Path) -> None:
    """In order, with a driver on it: report written, sockets gone, connection closed."""
    server = NicServer(sockets=1, folder=tmp_path)
    with server, Driver(server.sockets[0]) as driver:
        driver.probe()
        driver.open()
        driver.send(0, bytes(60))
        driver.device_status()
        (report,) = server.stop()
        assert driver.client.closed_by_server()
    assert report["driver"]["os_version"] == "nicmodel"
    assert sum(queue["packets"] for queue in report["tx_queues"]) == 1
    assert not server.sockets[0].exists()


@dataclass(frozen=True)
class Footprint:
    """What a process holds: descriptors, mappings, memory of its own (bytes), and mappings of guests' memory."""

    descriptors: int
    mappings: int
    anonymous: int
    guest_memory: int


def footprint(pid: int) -> Footprint:
    process = Path("/proc", str(pid))
    maps = (process / "maps").read_text().splitlines()
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return Footprint(
        descriptors=len(list((process / "fd").iterdir())),
        mappings=len(maps),
        anonymous=int(status["RssAnon"].split()[0]) << 10,
        guest_memory=sum("/memfd:" in line for line in maps),
    )


def test_clients_leave_nothing_behind() -> None:
    """Sixty of them, every other one without a farewell: descriptors, mappings and memory stay what they were."""

    def visit(number: int) -> None:
        with Driver(own.sockets[0]) as driver:
            driver.probe()
            driver.open(header_split=bool(number % 3))
            for queue in driver.tx:
                driver.send(queue, bytes(1000))
            driver.device_status()
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

    with NicServer() as own:
        for number in range(10):  # what is allocated once
            visit(number)
        before = at_rest()
        visits = 50
        for number in range(visits):
            visit(number)
        after = at_rest()
    assert (after.descriptors, after.guest_memory) == (before.descriptors, 0)
    # Less than one each: a connection's own buffer may wait for the garbage collector.
    assert after.mappings < before.mappings + visits
    assert after.anonymous <= before.anonymous + (4 << 20)
