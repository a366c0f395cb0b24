"""Packet-injection tests with a stock guest: the fixtures `guest` and `guest_nic`, as a user's tests have them."""

from __future__ import annotations

import pytest
from lab import wait_until
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from nicmodel.gvnic.testing.nic import TestNic
from nicmodel.vm import link
from nicmodel.vm.guest import Guest

pytestmark = pytest.mark.guest

GUEST, PEER, PEER_MAC = "192.0.2.1", "192.0.2.2", "02:00:00:00:00:fe"


@pytest.fixture(scope="module")
def nic(guest: Guest, guest_nic: TestNic) -> TestNic:
    """The guest's NIC, its interface up and the peer's address known."""
    guest.run(
        f"""
        set -e
        modprobe gve
        until [ -e /sys/class/net/eth0 ]; do sleep 0.05; done
        sysctl -q net.ipv6.conf.eth0.disable_ipv6=1
        ip addr add {GUEST}/24 dev eth0
        ip neigh add {PEER} lladdr {PEER_MAC} dev eth0
        ip link set eth0 up
        until {link.is_up("eth0")}; do sleep 0.05; done
        """,
        timeout=120,
    )
    return guest_nic


def datagram(payload: bytes, port: int = 7) -> Packet:
    return Ether() / IP(src=PEER, dst=GUEST) / UDP(sport=4000, dport=port) / payload


def test_a_ping_is_answered(nic: TestNic) -> None:
    d = nic.inject(Ether() / IP(src=PEER, dst=GUEST) / ICMP(id=7, seq=1) / b"hello")
    assert d.delivered and d.payload == d.frame and d.payload_buffers[0].memory == "ram"
    reply = nic.expect(IP(src=GUEST, dst=PEER) / ICMP(type="echo-reply", id=7, seq=1), timeout=120)
    assert bytes(reply.packet[ICMP].payload) == b"hello" and reply.packet.src == nic.mac


def test_arp(nic: TestNic) -> None:
    nic.inject(Ether(dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=PEER_MAC, psrc=PEER, pdst=GUEST))
    assert nic.expect(ARP(op=2, psrc=GUEST), timeout=120).packet[ARP].hwsrc == nic.mac


def test_the_guest_hears_what_was_injected(guest: Guest, nic: TestNic) -> None:
    listener = guest.start("timeout 120 socat -u UDP-RECV:7 SYSTEM:'head -c 6'")
    guest.run("until ss -lun | grep -q :7; do sleep 0.05; done")
    deliveries = nic.inject([datagram(b"one"), datagram(b"two")])
    assert deliveries.delivered == 2 and deliveries[0].queue == deliveries[1].queue
    assert listener.wait(120).stdout == "onetwo"


def test_what_the_driver_has_segmented_and_checksummed(guest: Guest, nic: TestNic) -> None:
    """The stack hands UDP over with a partial checksum (CHECKSUM_PARTIAL), for the NIC to complete."""
    guest.run(f"echo -n query | socat -u - UDP:{PEER}:53,sourceport=4053")
    sent = nic.expect(IP(dst=PEER) / UDP(sport=4053), timeout=120)
    assert sent.checksum_filled and sent.mss is None
    again = sent.packet.copy()
    del again[UDP].chksum
    assert bytes(again) == sent.data


def test_a_rule_of_ethtool_is_the_reason(guest: Guest, nic: TestNic) -> None:
    guest.run("ethtool -K eth0 ntuple on; ethtool -N eth0 flow-type udp4 dst-port 5201 action 3 loc 9")
    try:
        d = nic.inject(datagram(b"x", port=5201))
        assert (d.queue, d.rule) == (3, 9)
    finally:
        guest.run("ethtool -N eth0 delete 9")
    d = nic.inject(datagram(b"x", port=5201))
    assert d.rule is None and d.table_entry is not None


def test_header_split_as_the_guest_sets_it(guest: Guest, nic: TestNic) -> None:
    guest.run("ethtool -G eth0 tcp-data-split on")
    wait_until(lambda: nic.inject(datagram(b"y" * 100)).split, 60)
    d = nic.inject(datagram(b"y" * 100))
    assert d.header == d.frame[:42] and d.payload == b"y" * 100
