"""What goes wrong and mends itself: resets that the device asks for, a pulled cable, a wire that takes nothing."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from fleet import STALLED, Fleet
from lab import (
    CABLES,
    IDPF,
    LINK0,
    LINK1,
    STOCK,
    Lab,
    Port,
    add_address6,
    ethtool,
    on_each_device,
    times_set_up,
    wait_until,
)
from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import Ether
from streams import Traffic, streams

from nicmodel.client.control import Control

pytestmark = pytest.mark.guest


def statistic(shown: str, name: str) -> int:
    """A counter of ``ethtool -S``."""
    found = re.search(rf" {name}: (\d+)\n", shown)
    assert found, shown
    return int(found[1])


@pytest.mark.parametrize(
    ("cable", "asked"),
    [
        (CABLES["gvnic"], [LINK0]),
        (CABLES["gvnic"], [LINK1]),
        (CABLES["gvnic"], [LINK0, LINK1]),
        (CABLES["idpf"], [IDPF]),
    ],
    ids=["here", "there", "both", "idpf"],
)
def test_the_device_asks_for_a_reset_under_traffic(traffic: Traffic, asked: list[Port]) -> None:
    """Each driver resets its device once, and the streams outlive it."""
    lab = traffic.lab

    def resets() -> list[int]:
        return [times_set_up(lab, port) for port in asked]

    expected, log = [count + 1 for count in resets()], len(lab.guest.dmesg())
    try:
        for port in asked:
            with lab.control(port) as control:
                control.request_reset(port.name)
        wait_until(lambda: resets() == expected, timeout=120)
        lab.await_carrier(*asked)
        traffic.goes_on()
        assert resets() == expected
        notices = [STOCK[port.device].notices for port in asked]
        assert all(lab.guest.dmesg()[log:].count(notice) == len(asked) for notice in notices)
    finally:
        for port in asked:
            add_address6(lab.guest, port)


@on_each_device
def test_the_link_flaps_under_traffic(traffic: Traffic) -> None:
    """At once the guest sees each change, and the speed with the link; streams outlive them."""
    lab, here = traffic.lab, traffic.cable.here

    def detected() -> bool:
        said = ethtool(lab, here, "")
        up = "Link detected: yes" in said
        # idpf tells the speed of a link that is up only (idpf_ethtool.c, idpf_get_link_ksettings).
        assert ("Speed: 100000Mb/s" in said and "Duplex: Full" in said) or (not up and here.device == "idpf")
        return up

    def changes() -> int:
        return int(lab.run(f"cat /sys/class/net/{here.interface}/carrier_changes").stdout)

    with lab.control(here) as control:
        for _ in range(3):
            before = changes()
            assert control.set_link(False, here.name) is False
            wait_until(lambda: not detected(), timeout=120)
            assert control.set_link(True, here.name) is True
            wait_until(detected, timeout=120)
            assert changes() == before + 2
            traffic.goes_on()


@pytest.mark.long
def test_transmit_completions_that_never_come(bench: Lab) -> None:
    """The device sends, and does not say so: the kernel's watchdog finds a queue hanging, the driver resets the device,
    and once completions come again the streams go on.
    """
    lab, name, log = bench, f"nic{LINK0.number}", len(bench.guest.dmesg())

    def count(counter: str) -> int:
        return statistic(ethtool(lab, LINK0, "-S"), counter)

    resets, timeouts = count("reset_cnt"), count("tx_timeouts")
    with streams(lab, CABLES["gvnic"]) as traffic, Control(lab.server.control) as control:
        control.add_fault("tx-never", nic=name)
        try:
            wait_until(lambda: count("reset_cnt") > resets, timeout=120, pause=1, what=lambda: lab.guest.dmesg()[log:])
        finally:
            control.end_fault(nic=name)
            # A queue that was new when the fault ended may wait for completions, too: the kernel would say so in the
            # midst of a later test.
            by_itself = count("reset_cnt")
            control.request_reset(name)
            wait_until(lambda: count("reset_cnt") > by_itself, what=lambda: lab.guest.dmesg()[log:])
            lab.await_carrier(LINK0)
            lab.run(f"ip addr replace {LINK0.address6}/64 dev {LINK0.interface} nodad")
        assert count("tx_timeouts") > timeouts
        check_log_of_a_hang(lab.guest.dmesg()[log:])
        traffic.goes_on()


def check_log_of_a_hang(said: str) -> None:
    """The watchdog and the driver have spoken, and nobody has complained of anything else."""
    assert "NETDEV WATCHDOG" in said and "Timeout on tx queue" in said and "Performing reset" in said
    assert not re.search(r"Reset failed|Call Trace|AQ command failed|Invalid|BUG", said), said


class Peer:
    """The far end of a stream wire, a length before each frame: it reads only when it is told to, and answers pings."""

    def __init__(self, connection: socket.socket) -> None:
        self._file = connection.makefile("rb")
        self._connection = connection
        self._thread = threading.Thread(target=self._read)

    def read(self) -> None:
        """From now on, until the connection ends."""
        self._thread.start()

    def close(self) -> None:
        """End the connection."""
        self._connection.shutdown(socket.SHUT_RDWR)
        if self._thread.is_alive():
            self._thread.join()
        self._file.close()

    def _read(self) -> None:
        while len(length := self._file.read(4)) == 4:
            frame = Ether(self._file.read(*struct.unpack("!I", length)))
            if ICMP in frame and frame[ICMP].type == 8:
                request = frame[IP]
                answer = Ether(src=frame.dst, dst=frame.src) / IP(src=request.dst, dst=request.src) / request.payload
                answer[ICMP].type = 0
                del answer[ICMP].chksum
                data = bytes(answer)
                self._connection.sendall(struct.pack("!I", len(data)) + data)


@contextmanager
def connected(fleet: Fleet) -> Iterator[Peer]:
    """Plug a peer into the wire of `STALLED`."""
    with closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.connect(str(fleet.stream))
        fleet.await_carrier(STALLED)
        peer = Peer(connection)
        try:
            yield peer
        finally:
            peer.close()


@pytest.mark.long
def test_a_transmit_queue_that_hangs(booted_fleet: Fleet) -> None:
    """*Steps*: the wire takes nothing while the guest sends; then it does again.
    *Verify*: the kernel's watchdog finds the queue hanging, the driver resets the device, and traffic flows again.
    """
    fleet, guest = booted_fleet, booted_fleet.guests[STALLED.guest]

    def count(name: str) -> int:
        return statistic(fleet.run(STALLED, f"ethtool -S {STALLED.interface}"), name)

    resets, timeouts, log = count("reset_cnt"), count("tx_timeouts"), len(guest.dmesg())
    far = STALLED.address.rpartition(".")[0] + ".2"
    guest.run(f"ip neigh replace {far} lladdr 02:00:00:00:03:01 dev {STALLED.interface} nud permanent")
    # More bytes on their way than the driver's ring and the kernel's byte queue limits let through.
    buffer = guest.run("cat /proc/sys/net/core/wmem_default").stdout.strip()
    guest.run("sysctl -q net.core.wmem_default=67108864")

    def state() -> str:
        return guest.dmesg()[log:] + guest.run(f"tc -s qdisc show dev {STALLED.interface}").stdout

    with connected(fleet) as peer:
        flood = guest.start(f"exec socat -u -b 8000 OPEN:/dev/zero UDP-SENDTO:{far}:9")
        try:
            wait_until(lambda: count("reset_cnt") > resets, timeout=120, pause=1, what=state)
        finally:
            flood.kill()
            flood.wait(60)
            guest.run(f"sysctl -q net.core.wmem_default={buffer}")
        assert count("tx_timeouts") > timeouts
        check_log_of_a_hang(guest.dmesg()[log:])
        peer.read()
        fleet.await_carrier(STALLED)
        # The route has gone with the interface for a moment, the neighbour with it.
        guest.run(f"ip neigh replace {far} lladdr 02:00:00:00:03:01 dev {STALLED.interface} nud permanent")
        guest.run(f"ping -q -c 20 -i 0.05 -w 120 -s 1000 {far}", timeout=150)
    assert fleet.report(STALLED)["dma_faults"] == 0
