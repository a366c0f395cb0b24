"""What only idpf has, or does in another way than gve. What both have is in this ring's other files, for either."""

from __future__ import annotations

from typing import Any

import pytest
from lab import (
    FAR,
    IDPF,
    IN_PEER,
    Lab,
    await_carrier,
    connect_idpf,
    ethtool,
    nics_of,
    ping,
    quiet_log,
    reload_idpf,
    send_file,
    times_set_up,
    wait_until,
)

from nicmodel.vm.guest import Guest, GuestConfig
from nicmodel.vm.kernel import kernel_named
from nicmodel.vm.server import NicServer

pytestmark = pytest.mark.guest

FILE_SIZE = 4 << 20
#: What the driver says of a device that it takes.
WORDS = {"enabling device (0000 -> 0002)", "Device HW Reset initiated"}


def test_what_the_driver_says(lab: Lab) -> None:
    said = {line.split(": ", 1)[1] for line in lab.guest.dmesg().splitlines() if " idpf 0000" in line}
    assert said >= WORDS
    assert not [line for line in said if "PTP" in line], "the device has a clock"
    assert lab.report(IDPF)["vport"] == {"created": True, "enabled": True}


def test_addresses_and_modes(lab: Lab) -> None:
    """*Verify*: the device hears of the groups of IPv6, of another address, and of promiscuous mode; loopback loops."""

    def filters() -> dict[str, Any]:
        found: dict[str, Any] = lab.report(IDPF)["filters"]
        return found

    def received() -> int:
        return sum(int(queue["frames"]) for queue in lab.report(IDPF)["rx_queues"])

    assert {IDPF.mac, "33:33:00:00:00:01"} <= set(filters()["addresses"]) and filters()["promiscuous"] == []
    lab.run("ip link set idpf0 promisc on")
    wait_until(lambda: filters()["promiscuous"] == ["unicast"])
    lab.run("ip link set idpf0 promisc off; ip link set idpf0 allmulticast on")
    wait_until(lambda: filters()["promiscuous"] == ["multicast"])
    lab.run("ip link set idpf0 allmulticast off; ip link set idpf0 address 02:00:00:00:00:99")
    assert "02:00:00:00:00:99" in filters()["addresses"]
    ping(lab.guest, IDPF.peer, count=20, size=1400)
    lab.run(f"ip link set idpf0 address {IDPF.mac}")
    ethtool(lab, IDPF, "-K", "loopback on")
    lab.await_carrier(IDPF)
    assert lab.report(IDPF)["loopback"]
    before = received()
    lab.run(f"ping -c 1 -W 1 {IDPF.peer} || true")
    wait_until(lambda: received() > before)
    ethtool(lab, IDPF, "-K", "loopback off")
    lab.await_carrier(IDPF)
    ping(lab.guest, IDPF.peer, count=20, size=1400)


def test_statistics_are_the_devices(lab: Lab) -> None:
    """The driver asks every 10 seconds. *Verify*: its numbers reach those of the device."""
    ping(lab.guest, IDPF.peer, count=20, size=1400)

    def counts() -> list[int]:
        names = ("rx_packets", "tx_packets", "rx_bytes", "tx_bytes")
        return [int(lab.run(f"cat /sys/class/net/idpf0/statistics/{name}").stdout) for name in names]

    before = counts()
    ping(lab.guest, IDPF.peer, count=50, size=1400)
    wait_until(lambda: all(now >= then + 50 for now, then in zip(counts(), before, strict=True)), pause=1.0)


def test_a_reset_behind_the_drivers_back(lab: Lab) -> None:
    """By the bus: it has to notice by itself. *Verify*: it comes back, with its addresses."""
    before, log = times_set_up(lab, IDPF), len(lab.guest.dmesg())
    lab.run("echo 1 > /sys/bus/pci/drivers/idpf/0000*/reset")
    wait_until(lambda: times_set_up(lab, IDPF) > before)
    lab.await_carrier(IDPF)
    ping(lab.guest, IDPF.peer, count=20, size=1400)
    assert "HW reset detected" in lab.guest.dmesg()[log:]


def test_reload_under_traffic(lab: Lab) -> None:
    """*Verify*: the device lets go when the bus takes it away, as the driver sends no reset; all works afterwards."""
    for _ in range(2):
        lab.guest.start(f"exec ping -q -f -s 1400 {IDPF.peer}")
        lab.run("sleep 0.3; rmmod idpf; pkill ping", timeout=120)
        found = lab.report(IDPF)
        assert found["reset_state"] == "COMPLETED" and not found["vport"]["created"]
        assert not any(queue["active"] for queue in found["rx_queues"] + found["tx_queues"])
        reload_idpf(lab.guest)
    ping(lab.guest, IDPF.peer, count=20, size=1400)


@pytest.mark.long  # tests/device/idpf/test_faults.py has all of them, by the driver in Python
def test_faults_on_demand(lab: Lab) -> None:
    """*Verify*: a message that is refused keeps the interface down, and the log says so; then it comes up. Replies and
    completions that are late, and interrupts without a cause, cost nothing but time.
    """
    with lab.control(IDPF) as control:
        control.add_fault("mailbox-status", nic=IDPF.name, message="CONFIG_TX_QUEUES", status="NO_SPACE", count=1)
        log = len(lab.guest.dmesg())
        assert lab.guest.run("ip link set idpf0 down; ip link set idpf0 up", check=False).status != 0
        assert "Failed to configure queues for vport" in lab.guest.dmesg()[log:]
        lab.run("ip link set idpf0 up")
        lab.await_carrier(IDPF)
        ping(lab.guest, IDPF.peer, count=20, size=1400)
        harmless: tuple[tuple[str, dict[str, Any]], ...] = (
            ("mailbox-late", {"delay": 0.05}), ("mailbox-unasked", {}), ("rx-late", {"delay": 0.002}),
            ("tx-late", {"delay": 0.002}), ("irq-spurious", {}), ("dma-slow", {"delay": 0.002}),
        )  # fmt: skip
        for fault, parameters in harmless:
            control.add_fault(fault, nic=IDPF.name, **parameters)
            lab.run("ip link set idpf0 down; ip link set idpf0 up")
            lab.await_carrier(IDPF)
            ping(lab.guest, IDPF.peer, count=20, size=1400)
            (one,) = control.faults(IDPF.name)
            assert one["hits"] > 0, fault
            control.end_fault(nic=IDPF.name)


@pytest.mark.long
def test_an_older_kernel() -> None:
    """Linux 6.12: no n-tuple rules and no XDP in its driver yet, and markers that its poll takes.

    *Verify*: traffic both ways, other rings and channels, removal and reload; a quiet log.
    """
    devices = [word for port in (IDPF, FAR) for word in ("--device", port.device)]
    with (
        NicServer(["--wire", "link", *devices], sockets=2) as own,
        Guest(GuestConfig(nics=nics_of(own), kernel=kernel_named("trixie"))) as older,
        quiet_log(older),
    ):
        assert older.run("uname -r").stdout.startswith("6.12.")
        connect_idpf(older)
        for setting in ("tcp-data-split on", "tcp-data-split off", "rx 192 tx 160"):
            older.run(f"ethtool -G idpf0 {setting}", timeout=120)
            await_carrier(older, IDPF)
            send_file(older, IDPF.peer, FILE_SIZE)
            send_file(older, IDPF.address, FILE_SIZE, here=IN_PEER, there="")
        older.run("ethtool -L idpf0 combined 4", timeout=120)
        await_carrier(older, IDPF)
        ping(older, IDPF.peer, count=20, size=1400)
        older.run("rmmod idpf", timeout=120)
        reload_idpf(older)
        ping(older, IDPF.peer, count=20, size=1400)
