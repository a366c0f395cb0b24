"""Which queue a frame goes to: RSS by key and table, flow rules before that."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import AH, ESP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Raw

from nicmodel.gvnic.commands import FlowOperation, OsType, RssHashType
from nicmodel.gvnic.testing.driver import DEFAULT_KEY, Driver
from nicmodel.gvnic.testing.flows import (
    AHv4,
    AHv6,
    ESPv4,
    ESPv6,
    FlowSpec,
    SCTPv4,
    SCTPv6,
    TCPv4,
    TCPv6,
    UDPv4,
    UDPv6,
)
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.nic.state import Drop

from .conftest import ENTRIES
from .frames import ETHERNET, NIC_MAC, PEER_MAC, arp, icmp, ip, tcp, toeplitz, udp

V4: dict[str, Any] = {"src": "198.51.100.7", "dst": "192.0.2.1"}
V6: dict[str, Any] = {"src": "2001:db8:5::7", "dst": "2001:db8::1"}


@pytest.fixture
def driver(lab: Loopback) -> Driver:
    """Eight receive queues, everything hashed goes to queue 0."""
    lab.driver.probe()
    lab.driver.open(rx_queues=8, tx_queues=1, ring_entries=ENTRIES)
    lab.driver.set_rss(DEFAULT_KEY, [0] * 128)
    return lab.driver


def queue_of(lab: Loopback, frame: bytes) -> int | None:
    """The queue that a frame arrives on; None when it is dropped."""
    lab.receive(frame)
    packets = lab.driver.poll_all()
    return packets[0].queue if packets else None


# RSS


@pytest.mark.parametrize("v", [4, 6])
@pytest.mark.parametrize("build", [tcp, udp])
def test_hash_and_queue(lab: Loopback, driver: Driver, v: int, build: Callable[..., bytes]) -> None:
    """Hash and queue of many flows are exactly those that key and table say."""
    choice = random.Random(v)
    for _ in range(3):
        key = choice.randbytes(40)
        table = [choice.randrange(8) for _ in range(128)]
        driver.set_rss(key, table)
        frames = [
            build(
                10,
                v=v,
                src=f"2001:db8::{choice.randrange(65536):x}" if v == 6 else f"192.0.2.{choice.randrange(1, 255)}",
                sport=choice.randrange(65536),
                dport=choice.randrange(1, 65536),
            )
            for _ in range(30)
        ]
        lab.receive(*frames)
        packets = driver.poll_all()
        assert len(packets) == len(frames)
        for packet in packets:
            assert packet.hash == toeplitz(key, packet.frame)
            assert packet.queue == table[packet.hash % 128]


def test_published_hash(lab: Loopback, driver: Driver) -> None:
    """A vector of Microsoft's "Verifying the RSS Hash Calculation"."""
    lab.receive(tcp(1, src="66.9.149.187", dst="161.142.100.80", sport=2794, dport=1766))
    (packet,) = driver.poll_all()
    assert packet.hash == 0x51CCC178


def test_hash_of_a_tagged_frame(lab: Loopback, driver: Driver) -> None:
    frame = bytes(Ether(src=PEER_MAC, dst=NIC_MAC) / Dot1Q(vlan=9) / Ether(tcp(10)).payload)
    lab.receive(frame)
    (packet,) = driver.poll_all()
    assert packet.hash == toeplitz(DEFAULT_KEY, tcp(10))


@pytest.mark.parametrize("frame", [arp(), icmp(), bytes(ETHERNET / Raw(b"\x12" * 60))], ids=["arp", "icmp", "unknown"])
def test_frames_without_hash(lab: Loopback, driver: Driver, frame: bytes) -> None:
    """With Linux's hash types these go to the table's first entry."""
    driver.set_rss(table=[5, *[1] * 127])
    assert queue_of(lab, frame) == 5


@pytest.mark.parametrize(
    ("types", "frame", "hashed"),
    [
        (RssHashType.TCPV4, tcp(), True),
        (RssHashType.TCPV4, udp(), False),
        (RssHashType.UDPV4, udp(), True),
        (RssHashType.UDPV4, tcp(), False),
        (RssHashType.TCPV6, tcp(v=6), True),
        (RssHashType.TCPV6, tcp(), False),
        (RssHashType.UDPV6, udp(v=6), True),
        (RssHashType.UDPV6, udp(), False),
        (RssHashType.IPV4, icmp(), True),
        (RssHashType.IPV6, icmp(), False),
    ],
)
def test_hash_types(lab: Loopback, driver: Driver, types: RssHashType, frame: bytes, hashed: bool) -> None:
    driver.set_rss(DEFAULT_KEY, hash_types=types)
    lab.receive(frame)
    (packet,) = driver.poll_all()
    assert (packet.hash != 0) == hashed


def test_table_names_a_missing_queue(lab: Loopback) -> None:
    """The driver sets the table before it makes the queues: until then such frames are dropped and counted."""
    driver = lab.driver
    driver.probe()
    driver.open(rx_queues=2, ring_entries=ENTRIES)
    driver.set_rss(table=[7] * 128)
    assert queue_of(lab, tcp()) is None
    assert lab.nic.state.drops[7, Drop.NO_QUEUE] == 1
    driver.close()
    driver.open(rx_queues=8, ring_entries=ENTRIES)
    assert queue_of(lab, tcp()) == 7


def test_default_spread(make_lab: Callable[..., Loopback]) -> None:
    """A driver that never sets RSS (FreeBSD, Linux 6.12) gets all its queues used."""
    lab = make_lab(rss_option=True)
    lab.driver.probe()
    lab.driver.open(rx_queues=3, ring_entries=ENTRIES)
    queues = {queue_of(lab, tcp(1, sport=port)) for port in range(1000, 1060)}
    assert queues == {0, 1, 2}


def test_restart_keeps_the_spread(make_lab: Callable[..., Loopback]) -> None:
    """The last queue's restart must not move other queues' flows."""
    lab = make_lab(rss_option=True)
    lab.driver.probe()
    lab.driver.open(rx_queues=3, ring_entries=ENTRIES)
    before = lab.driver.query_rss().table
    lab.driver.restart_rx(2)
    assert lab.driver.query_rss().table == before


def test_table_survives_reopening(lab: Loopback, driver: Driver) -> None:
    driver.set_rss(table=[4] * 128)
    driver.close()
    driver.open(rx_queues=8, ring_entries=ENTRIES)
    assert queue_of(lab, tcp()) == 4


# Flow rules


def build(spec: Any, src: str, dst: str, sport: int = 1000, dport: int = 2000, spi: int = 77) -> bytes:
    """A frame of the kind that a type of rule is for."""
    v = 4 if spec.__name__.endswith("4") else 6
    base = ip(v, src, dst)
    kind = spec.__name__[:-2]
    packets = {
        "TCP": base / TCP(sport=sport, dport=dport),
        "UDP": base / UDP(sport=sport, dport=dport),
        "SCTP": base / SCTP(sport=sport, dport=dport),
        "AH": base / AH(spi=spi, icv=b"\0" * 12, nh=6) / TCP(sport=sport, dport=dport),
        "ESP": base / ESP(spi=spi, data=b"\x99" * 40),
    }
    return bytes(ETHERNET / packets[kind] / Raw(b"x" * 20))


WITH_PORTS: list[type[FlowSpec]] = [TCPv4, UDPv4, SCTPv4, TCPv6, UDPv6, SCTPv6]
WITH_SPI: list[type[FlowSpec]] = [AHv4, ESPv4, AHv6, ESPv6]


def addresses(spec: type[FlowSpec]) -> dict[str, Any]:
    return V4 if spec.__name__.endswith("4") else V6


@pytest.mark.parametrize("spec", WITH_PORTS)
def test_rule_with_ports(lab: Loopback, driver: Driver, spec: Any) -> None:
    """All four parts of the tuple must match."""
    pair = addresses(spec)
    driver.add_flow_rule(spec(**pair, src_port=1000, dst_port=2000), 3)
    assert queue_of(lab, build(spec, **pair)) == 3
    assert queue_of(lab, build(spec, **pair, sport=1001)) == 0
    assert queue_of(lab, build(spec, **pair, dport=2001)) == 0
    for name, other in pair.items():
        assert queue_of(lab, build(spec, **pair | {name: other[:-1] + "9"})) == 0


@pytest.mark.parametrize("spec", WITH_SPI)
def test_rule_with_spi(lab: Loopback, driver: Driver, spec: Any) -> None:
    pair = addresses(spec)
    driver.add_flow_rule(spec(**pair, spi=77), 3)
    assert queue_of(lab, build(spec, **pair)) == 3
    assert queue_of(lab, build(spec, **pair, spi=78)) == 0
    for name, other in pair.items():
        assert queue_of(lab, build(spec, **pair | {name: other[:-1] + "9"})) == 0


@pytest.mark.parametrize("spec", WITH_PORTS + WITH_SPI)
def test_rule_is_for_its_protocol(lab: Loopback, driver: Driver, spec: Any) -> None:
    """A rule without any field takes all frames of its type and none of the other nine."""
    driver.add_flow_rule(spec(), 6)
    for other in WITH_PORTS + WITH_SPI:
        assert queue_of(lab, build(other, **addresses(other))) == (6 if other is spec else 0), other


@pytest.mark.parametrize("spec", [TCPv4, TCPv6])
def test_masks(lab: Loopback, driver: Driver, spec: Any) -> None:
    """Only the bits that a mask names are compared."""
    source = {TCPv4: "198.51.0.0/16", TCPv6: "2001:db8:5::/48"}[spec]
    pair = addresses(spec)
    driver.add_flow_rule(spec(src=source, dst_port=(0x0700, 0xFF00)), 2)
    assert queue_of(lab, build(spec, **pair, dport=0x07FE)) == 2
    assert queue_of(lab, build(spec, **pair, dport=0x08FE)) == 0
    outside = {TCPv4: "198.52.100.7", TCPv6: "2001:db8:6::7"}[spec]
    assert queue_of(lab, build(spec, **pair | {"src": outside}, dport=0x07FE)) == 0


def test_address_bits(lab: Loopback, driver: Driver) -> None:
    """Each of an IPv6 address's 16 bytes counts, in network order."""
    for byte in range(16):
        raw = bytearray(16)
        raw[byte] = 0xFF
        mask = ":".join(raw[place : place + 2].hex() for place in range(0, 16, 2))
        rule = TCPv6(dst=V6["dst"]).encode(4)
        wanted = bytes(rule["key"]["destination"])
        rule["mask"]["destination"] = list(raw)
        driver.reset_flow_rules()
        driver.configure_flow_rule(FlowOperation.ADD, 0, rule)
        assert queue_of(lab, build(TCPv6, **V6)) == 4, mask
        other = bytearray(wanted)
        other[byte] ^= 0x10
        text = ":".join(other[place : place + 2].hex() for place in range(0, 16, 2))
        assert queue_of(lab, build(TCPv6, V6["src"], text)) == 0, mask


def test_the_words_of_dpdks_ipv6_addresses(lab: Loopback, driver: Driver) -> None:
    """DPDK writes the least significant word first, in keys and masks, and IPv4 addresses as everybody does."""

    def turned(address: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return np.concatenate([address[12:], address[8:12], address[4:8], address[:4]])

    plain = TCPv6(src=V6["src"], dst="2001:db8::ff00/120").encode(4)
    reversed_words = plain.copy()
    for half in ("key", "mask"):
        for name in ("source", "destination"):
            reversed_words[half][name] = turned(plain[half][name])
    inside, outside = (build(TCPv6, V6["src"], target) for target in ("2001:db8::ff42", "2001:db8::fe42"))
    for system, rule, other in ((OsType.DPDK, reversed_words, plain), (OsType.LINUX, plain, reversed_words)):
        driver.verify_compatibility(system)
        driver.configure_flow_rule(FlowOperation.ADD, 0, rule)
        assert [queue_of(lab, frame) for frame in (inside, outside)] == [4, 0]
        assert driver.flow_rules()[0].tobytes() == rule.tobytes(), "a query returns what was given"
        driver.configure_flow_rule(FlowOperation.ADD, 0, other)
        assert queue_of(lab, inside) == 0
        driver.configure_flow_rule(FlowOperation.ADD, 0, TCPv4(dst=V4["dst"]).encode(5))
        assert queue_of(lab, build(TCPv4, **V4)) == 5


@pytest.mark.parametrize(("spec", "v"), [(TCPv4, 4), (TCPv6, 6)])
def test_tos(lab: Loopback, driver: Driver, spec: Any, v: int) -> None:
    driver.add_flow_rule(spec(tos=(0x20, 0xFC)), 5)
    for value, queue in ((0x20, 5), (0x23, 5), (0x24, 0)):
        layer = IP(**V4, tos=value) if v == 4 else IPv6(**V6, tc=value)
        assert queue_of(lab, bytes(ETHERNET / layer / TCP() / Raw(b"x" * 10))) == queue


def test_lowest_location_wins(lab: Loopback, driver: Driver) -> None:
    driver.add_flow_rule(TCPv4(), 1, location=500)
    driver.add_flow_rule(TCPv4(dst_port=5000), 2, location=20)
    driver.add_flow_rule(TCPv4(src_port=4000), 3, location=30)
    assert queue_of(lab, tcp()) == 2
    driver.delete_flow_rule(20)
    assert queue_of(lab, tcp()) == 3
    driver.delete_flow_rule(30)
    assert queue_of(lab, tcp()) == 1
    driver.reset_flow_rules()
    assert queue_of(lab, tcp()) == 0


def test_fragments_have_no_ports(lab: Loopback, driver: Driver) -> None:
    """Ports are not known of a fragment: only rules that do not ask for them apply."""
    fragment = bytes(ETHERNET / IP(**V4, flags="MF") / UDP(sport=1000, dport=2000) / Raw(b"x" * 32))
    driver.add_flow_rule(UDPv4(dst_port=2000), 3, location=0)
    assert queue_of(lab, fragment) == 0
    driver.add_flow_rule(UDPv4(**V4), 4, location=1)
    assert queue_of(lab, fragment) in (0, 4)


def test_rule_in_a_tagged_frame(lab: Loopback, driver: Driver) -> None:
    driver.add_flow_rule(TCPv4(dst_port=5000), 3)
    frame = bytes(Ether(src=PEER_MAC, dst=NIC_MAC) / Dot1Q(vlan=9) / Ether(tcp(10)).payload)
    assert queue_of(lab, frame) == 3


def test_rule_to_a_missing_queue(lab: Loopback) -> None:
    """The rule stays, its frames are dropped and counted, and they arrive once the queue is there."""
    driver = lab.driver
    driver.probe()
    driver.open(rx_queues=2, ring_entries=ENTRIES)
    driver.add_flow_rule(TCPv4(dst_port=5000), 6)
    assert queue_of(lab, tcp()) is None
    assert lab.nic.state.drops[6, Drop.NO_QUEUE] == 1
    assert queue_of(lab, tcp(1, dport=1)) is not None
    driver.close()
    driver.open(rx_queues=8, ring_entries=ENTRIES)
    assert queue_of(lab, tcp()) == 6


def test_hits_are_counted(lab: Loopback, driver: Driver) -> None:
    driver.add_flow_rule(TCPv4(dst_port=5000), 3, location=9)
    lab.receive(tcp(), tcp(), udp())
    driver.poll_all()
    assert lab.nic.state.rules[9]["hits"] == 2


def test_rules_survive_a_queue_restart(lab: Loopback, driver: Driver) -> None:
    driver.add_flow_rule(TCPv4(dst_port=5000), 3)
    driver.restart_rx(3)
    assert queue_of(lab, tcp()) == 3


def test_rules_end_with_a_reset(lab: Loopback, driver: Driver) -> None:
    """The driver does not put rules back after a reset, so none may be left."""
    driver.add_flow_rule(TCPv4(dst_port=5000), 3)
    driver.reset()
    driver.open(rx_queues=8, ring_entries=ENTRIES)
    driver.set_rss(table=[0] * 128)
    assert driver.flow_rule_ids() == []
    assert queue_of(lab, tcp()) == 0
