"""Every frame that comes from the wire, or goes to it, is in exactly one place of the NIC's account."""

from __future__ import annotations

import random
from typing import Any

import pytest

from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.testing.flows import TCPv4
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.nic.mac import parse_mac
from nicmodel.observe.snapshot import snapshot
from nicmodel.packet.frames import Gso, Offload
from nicmodel.testing.wire import TestWire
from nicmodel.vfio_user.poll import Poller
from nicmodel.wire.link import link

from .conftest import ENTRIES
from .frames import NIC_MAC, arp, tcp, udp

#: A queue that a rule names and that is never created.
MISSING = 7
PAYLOAD = 1000


def account(lab: Loopback) -> tuple[int, int]:
    """Frames that came to the NIC in both directions, and frames that it accounts for."""
    report = snapshot(lab.nic)
    wire: dict[str, int] = {name: count for name, count in report["wire"].items() if name != "name"}
    moved = {name: wire.pop(name, 0) for name in ("rx_frames", "rx_bytes", "tx_frames", "tx_bytes")}
    came = moved["rx_frames"] + sum(queue["segments"] for queue in report["tx_queues"])
    held = sum(queue["held"] for queue in report["rx_queues"])
    lost = sum(report["drops"].values()) + sum(wire.values())
    return came, moved["tx_frames"] + report["delivered"] + held + lost


@pytest.mark.parametrize("rsc", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_received_frames_are_delivered_held_or_dropped_by_name(seed: int, rsc: bool) -> None:
    """*Steps*: flows that can be merged, frames for others, too long, too short, for no queue, still to be cut, some of
    them while buffers are short, the cable is pulled or the queues are gone.
    """
    chance = random.Random(seed)
    with Loopback(Profile(mac=parse_mac(NIC_MAC))) as lab:
        lab.driver.probe()
        assert account(lab) == (0, 0)
        lab.wire.inject(arp())
        lab.driver.open(rx_queues=4, ring_entries=ENTRIES, header_split=bool(seed % 2), rsc=rsc)
        lab.driver.add_flow_rule(TCPv4(dst_port=81), queue=MISSING)
        sequence = 0

        def frame() -> tuple[bytes, dict[str, Any]]:
            nonlocal sequence
            match chance.randrange(10):
                case 0:
                    return udp(chance.randrange(9000), dst="192.0.2.1"), {}
                case 1:
                    return b"\x02\0\0\0\0\x09" + arp()[6:], {}
                case 2:
                    return tcp(dport=81), {}
                case 3:
                    return arp()[: chance.choice((5, 13, 14, 20))], {}
                case 4:
                    whole = tcp(5 * PAYLOAD, sport=chance.randrange(4000, 4100))
                    return whole, {"gso": Gso.TCPV4, "segment": PAYLOAD, "header": len(whole) - 5 * PAYLOAD}
                case _:
                    sequence += PAYLOAD
                    return tcp(PAYLOAD, seq=sequence, flags="A"), {}

        for _ in range(200):
            match chance.randrange(12):
                case 0:
                    lab.nic.set_cable(not lab.nic.port.cable)
                case 1:
                    lab.driver.close()
                    lab.driver.open(rx_queues=4, ring_entries=ENTRIES, rsc=rsc)
                case 2:
                    lab.advance(300_000_000)
                case 3 | 4:
                    lab.driver.poll_all()
                case 5:
                    lab.receive(*[udp()] * 400)  # more than buffers and backlog take
                case _:
                    lab.run()
                    data, record = frame()
                    if record:
                        lab.wire.inject(data, **record)
                    else:
                        lab.wire.inject(data, *(frame()[0] for _ in range(chance.randrange(20))))
            came, accounted = account(lab)
            assert came == accounted
        drops = snapshot(lab.nic)["drops"]
        assert {"not_ours", "no_queue", "runt", "over_mru", "no_buffers", "device_down"} <= drops.keys()
        assert bool(sum(queue["coalesced"] for queue in snapshot(lab.nic)["rx_queues"])) == rsc


@pytest.mark.parametrize("offloads", [Offload.NONE, Offload.ALL])
def test_sent_frames_are_on_the_wire_or_lost_by_name(offloads: Offload) -> None:
    """Packets that become one frame or many, one that is refused, some of them while the cable is pulled."""
    with Loopback(Profile(mac=parse_mac(NIC_MAC)), wire=TestWire(offloads=offloads)) as lab:
        lab.driver.probe()
        lab.driver.open(tx_queues=1)
        for plugged in (True, False, True):
            lab.nic.set_cable(plugged)
            for size in (10, 1000, 8000):
                lab.driver.send(0, tcp(size), checksum=True)
            lab.run()
            came, accounted = account(lab)
            assert came == accounted
        assert snapshot(lab.nic)["drops"] == {"device_down": 3}
        assert lab.wire.counters["tx_frames"] == 6


def test_a_cut_cable_counts_what_it_loses() -> None:
    """The wire's own losses are part of the account."""
    ours, theirs = link()
    with Loopback(Profile(mac=parse_mac(NIC_MAC)), wire=ours) as lab:  # type: ignore[arg-type]
        lab.driver.probe()
        lab.driver.open(tx_queues=1)
        lab.driver.send(0, udp())
        lab.run()
        theirs.start(Poller(), lambda _: None, lambda: None, lambda: None)
        lab.driver.send(0, udp())
        lab.run()
        assert ours.counters["not_connected"] == ours.counters["tx_frames"] == 1
        assert account(lab) == (2, 2)
