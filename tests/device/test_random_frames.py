"""Random valid frames: what the device makes of each equals what scapy and numpy make of its bytes.

scapy's `fuzz` fills in the fields, hypothesis chooses the layers, the lengths and what is corrupted. The expectation
knows nothing of how a frame was made: it is dissected by scapy, hashed and summed by numpy.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import (
    ICMP,
    IP,
    TCP,
    UDP,
    IPOption_EOL,
    IPOption_NOP,
    IPOption_Router_Alert,
    IPOption_RR,
    IPOption_Timestamp,
    in4_chksum,
)
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    IPv6ExtHdrSegmentRouting,
    PadN,
    _IPv6ExtHdr,
    in6_chksum,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw, fuzz

from nicmodel.gvnic.commands import RssHashType
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.testing.driver import DEFAULT_KEY
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.jit.compiled import JIT_DISABLED
from nicmodel.nic.mac import parse_mac
from nicmodel.observe.delivery import Delivery
from nicmodel.packet.headers import L3, L4

from .frames import NIC_MAC, PEER_MAC

HEADER_SIZE = 128
QUEUES = 4
#: Extension headers by their number in "next header" (RFC 8200); all but the fragment header say their length.
EXTENSIONS = {0, 43, 44, 60}
#: Ports on which scapy knows no protocol that it would dissect, and so might change.
PORTS = st.sampled_from([0, 2794, 5201, 40000, 65535])


@dataclass
class Expected:
    """What the device has to say of a frame."""

    l3: L3
    l4: L4
    hash: int
    header: int
    overflow: bool
    processed: bool
    bad_ip: bool
    bad_l4: bool


@pytest.fixture(scope="module")
def bench() -> Iterator[Loopback]:
    """A NIC with four queues and header split."""
    with Loopback(Profile(mac=parse_mac(NIC_MAC), header_buffer_size=HEADER_SIZE)) as bench:
        bench.driver.probe()
        bench.driver.open(rx_queues=QUEUES, tx_queues=1, header_split=True)
        yield bench


# Making frames.


@dataclass
class Frame:
    """A frame to be: layers whose open fields a seed decides, payload, a byte to change, and Ethernet padding."""

    packet: Packet
    seed: int
    payload: int = 0
    change: tuple[str, int] | None = None
    padding: int = 0

    def __bytes__(self) -> bytes:
        state = random.getstate()
        random.seed(self.seed)  # scapy's fuzz asks this generator
        frame = bytearray(bytes(self.packet / Raw(random.randbytes(self.payload))))
        random.setstate(state)
        if self.change is not None:
            where, bits = self.change
            packet = Ether(bytes(frame))
            at = frame.index(packet[IP].original) + 10 if where == "ip" and IP in packet else len(frame) - 1
            frame[at] ^= bits
        return bytes(frame) + bytes(self.padding)


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    """A frame to the NIC. Where a byte is changed, that changes a checksum and not the frame's form."""
    seed = draw(st.integers(0, 2**32))
    packet = Ether(src=PEER_MAC, dst=NIC_MAC)
    for tag in draw(st.sampled_from([(), (), (Dot1Q,), (Dot1AD, Dot1Q)])):
        packet /= fuzz(tag())
    kind = draw(st.sampled_from(["v4", "v4", "v6", "v6", "other"]))
    if kind == "other":
        return Frame(packet / draw(st.sampled_from([ARP(), Raw(b"\x45" * 60)])), seed)
    if kind == "v4":
        packet /= draw(ipv4())
        fragment = bool(packet[IP].frag or packet[IP].flags.MF)
    else:
        packet, fragment = draw(ipv6(packet))
    size = draw(st.sampled_from([0, 1, 2, 17, 64, 100, 1000, 1460, 4000]))
    change = st.tuples(st.sampled_from(["ip", "last"]), st.integers(1, 255))
    return Frame(
        packet / draw(upper(kind)),
        seed,
        size,
        None if fragment else draw(st.one_of(st.none(), st.none(), change)),
        draw(st.sampled_from([0, 0, 1, 6])),
    )


@st.composite
def ipv4(draw: st.DrawFn) -> Packet:
    """A header with any options that fit, and perhaps of a fragment."""
    options: list[Any] = []
    for option in draw(st.lists(st.sampled_from(["nop", "alert", "route", "time", "end"]), max_size=3)):
        if option == "end":
            options.append(IPOption_EOL())
            break
        made = {"nop": IPOption_NOP, "alert": IPOption_Router_Alert, "route": IPOption_RR, "time": IPOption_Timestamp}
        options.append(made[option](routers=["192.0.2.9"] * 2) if option == "route" else made[option]())
    fragment = draw(st.sampled_from([(0, 0), (0, 0), (0, 0), (1, 0), (1, 5), (0, 5)]))
    flags = "MF" if fragment[0] else draw(st.sampled_from(["", "DF"]))
    source, destination = draw(st.sampled_from([("192.0.2.2", "198.51.100.7"), ("10.0.0.1", "10.0.0.255")]))
    header = fuzz(IP(version=4, src=source, dst=destination, flags=flags, frag=fragment[1]))
    header.options = options  # after fuzz, which would make source routes of them: those scapy sums up differently
    return header


@st.composite
def ipv6(draw: st.DrawFn, packet: Packet) -> tuple[Packet, bool]:
    """`packet` with a header and extension headers, and whether it is a fragment."""
    packet /= fuzz(IPv6(version=6, src="2001:db8::2", dst="2001:db8::1"))
    via = ["2001:db8:1::1", "2001:db8:2::2"][: draw(st.integers(1, 2))]
    left = draw(st.integers(0, len(via)))
    kinds = draw(st.lists(st.sampled_from(["hop", "options", "route", "segments"]), max_size=3, unique=True))
    if {"route", "segments"} <= set(kinds):
        kinds.remove("route")
    kinds.sort(key=lambda kind: kind != "hop")  # where there is one, it is the first
    for kind in kinds:
        if kind in ("hop", "options"):
            made = IPv6ExtHdrHopByHop if kind == "hop" else IPv6ExtHdrDestOpt
            packet /= made(options=[PadN(optdata=bytes(draw(st.sampled_from([0, 4, 12, 60]))))])
        elif kind == "route":
            packet /= IPv6ExtHdrRouting(type=draw(st.sampled_from([0, 2])), addresses=via, segleft=left)
        else:
            packet /= IPv6ExtHdrSegmentRouting(addresses=via, segleft=left)
    fragment = draw(st.integers(0, 4)) == 0
    if fragment:
        packet /= IPv6ExtHdrFragment(offset=draw(st.sampled_from([0, 5])), m=draw(st.integers(0, 1)), id=7)
    return packet, fragment


@st.composite
def upper(draw: st.DrawFn, kind: str) -> Packet:
    """The header of L4, or something that is none."""
    chosen = draw(st.sampled_from(["tcp", "tcp", "udp", "udp", "icmp", "sctp"]))
    if chosen == "tcp":
        options = [("NOP", None)] * draw(st.sampled_from([0, 1, 12, 40]))
        return fuzz(TCP(sport=draw(PORTS), dport=draw(PORTS), dataofs=None, urgptr=0, options=options))
    if chosen == "udp":
        zero = {"chksum": 0} if draw(st.integers(0, 3)) == 0 else {}
        return UDP(sport=draw(PORTS), dport=draw(PORTS), **zero)
    if chosen == "sctp":
        return SCTP(sport=draw(PORTS), dport=draw(PORTS))
    number = draw(st.integers(0, 65535))
    return ICMP(id=number) if kind == "v4" else ICMPv6EchoRequest(id=number)


# What to expect of them.


def expected(frame: bytes, hash_types: RssHashType) -> Expected:
    """All that the device should say, from the bytes alone."""
    at, ethertype = 12, int.from_bytes(frame[12:14], "big")
    while ethertype in (0x8100, 0x88A8):
        at += 4
        ethertype = int.from_bytes(frame[at : at + 2], "big")
    at += 2
    if ethertype == 0x0800:
        ip = IP(frame[at:])
        end, after = at + ip.len, at + ip.ihl * 4
        protocol, fragment = ip.proto, bool(ip.frag or ip.flags.MF)
        version = 4
    elif ethertype == 0x86DD:
        ip = IPv6(frame[at:])
        end, after = at + 40 + ip.plen, at + 40
        protocol, after, fragment = past_extensions(frame, ip.nh, after)
        version = 6
    else:
        return Expected(L3.OTHER, L4.UNKNOWN, 0, len(frame) if len(frame) <= HEADER_SIZE else at, False, *[False] * 3)
    l4, payload = classify(frame, protocol, after, version, fragment)
    ports = frame[after : after + 4]
    split = payload if l4 in (L4.TCP, L4.UDP) or end > HEADER_SIZE else end
    if split > HEADER_SIZE:
        split = 0 if l4 in (L4.TCP, L4.UDP) else 14
    processed = l4 in (L4.TCP, L4.UDP, L4.ICMP)
    return Expected(
        l3=L3.IPV4 if version == 4 else L3.IPV6,
        l4=l4,
        hash=rss(hash_types, version, l4, ip, ports),
        header=split,
        overflow=split == 0,
        processed=processed,
        bad_ip=processed and version == 4 and ones_sum(frame[at:after]) != 0xFFFF,
        bad_l4=processed and not l4_sum_holds(ip, protocol, l4, frame[after:end]),
    )


def past_extensions(frame: bytes, number: int, at: int) -> tuple[int, int, bool]:
    """The number of what comes after the extension headers, its place, and whether it is a fragment."""
    while number in EXTENSIONS:
        following, length = frame[at], frame[at + 1]
        if number == 44:
            return following, at + 8, True
        number, at = following, at + 8 + 8 * length
    return number, at, False


def classify(frame: bytes, protocol: int, at: int, version: int, fragment: bool) -> tuple[L4, int]:
    """L4 by the device's numbers, and where its payload starts: for others than TCP and UDP, where it starts."""
    if fragment:
        return L4.UNKNOWN, at
    if protocol == 6:
        return L4.TCP, at + TCP(frame[at:]).dataofs * 4
    if protocol == 17:
        return L4.UDP, at + 8
    if protocol == (1 if version == 4 else 58):
        return L4.ICMP, at
    return L4.OTHER, at


def rss(hash_types: RssHashType, version: int, l4: L4, ip: Packet, ports: bytes) -> int:
    """The Toeplitz hash by its definition, a bit at a time."""
    with_ports = {
        (4, L4.TCP): RssHashType.TCPV4, (4, L4.UDP): RssHashType.UDPV4,
        (6, L4.TCP): RssHashType.TCPV6, (6, L4.UDP): RssHashType.UDPV6,
    }.get((version, l4), RssHashType.NONE)  # fmt: skip
    data = ipaddress.ip_address(ip.src).packed + ipaddress.ip_address(ip.dst).packed
    if with_ports & hash_types:
        data += ports
    elif not hash_types & (RssHashType.IPV4 if version == 4 else RssHashType.IPV6):
        return 0
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    key = np.unpackbits(np.frombuffer(DEFAULT_KEY, np.uint8))
    windows = np.lib.stride_tricks.sliding_window_view(key, 32)[: len(bits)]
    total = np.bitwise_xor.reduce(windows[bits == 1], axis=0, initial=0)
    return int.from_bytes(np.packbits(total.astype(np.uint8)).tobytes(), "big")


def ones_sum(data: bytes) -> int:
    """RFC 1071."""
    total = int(np.frombuffer(data + bytes(len(data) % 2), ">u2").astype(np.int64).sum())
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return total


def l4_sum_holds(ip: Packet, protocol: int, l4: L4, segment: bytes) -> bool:
    """Whether the checksum of a whole segment is right, by scapy; UDP may have none."""
    if l4 == L4.UDP and segment[6:8] == b"\0\0":
        return True
    if l4 == L4.ICMP and ip.version == 4:
        return ones_sum(segment) == 0xFFFF
    field = {L4.TCP: 16, L4.UDP: 6, L4.ICMP: 2}[l4]
    zeroed = segment[:field] + b"\0\0" + segment[field + 2 :]
    lower = ip
    while isinstance(lower.payload, (_IPv6ExtHdr, IPv6ExtHdrSegmentRouting)):  # a route may change the destination
        lower = lower.payload
    right: int = in4_chksum(protocol, ip, zeroed) if ip.version == 4 else in6_chksum(protocol, lower, zeroed)
    # Zero and all ones are the same number.
    return right % 0xFFFF == int.from_bytes(segment[field : field + 2], "big") % 0xFFFF


def said(bench: Loopback, delivery: Delivery) -> Expected:
    """What the device has said, from completions and buffers."""
    last = delivery.completions[-1]
    first = delivery.completions[0]
    kind = bench.driver.ptypes[last["packet_type"]]
    return Expected(
        l3=L3(int(kind["l3"])),
        l4=L4(int(kind["l4"])),
        hash=last["hash"],
        header=len(delivery.header),
        overflow=bool(first["header_buffer_overflow"]),
        processed=bool(last["l3_l4_processed"]),
        bad_ip=bool(last["ip_checksum_error"]),
        bad_l4=bool(last["l4_checksum_error"]),
    )


LINUX = RssHashType.TCPV4 | RssHashType.TCPV6 | RssHashType.UDPV4 | RssHashType.UDPV6
HASH_TYPES = st.sampled_from([LINUX, LINUX | RssHashType.IPV4 | RssHashType.IPV6, RssHashType.IPV4, RssHashType.TCPV6])


@settings(
    max_examples=15 if JIT_DISABLED else 60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(batch=st.lists(frames(), min_size=1, max_size=8), hash_types=HASH_TYPES)
def test_random_frames(bench: Loopback, batch: list[Frame], hash_types: RssHashType) -> None:
    bench.driver.set_rss(hash_types=hash_types)
    built = [bytes(frame) for frame in batch]
    deliveries = bench.inject(built)
    packets = {packet.frame: packet for packet in bench.driver.poll_all()}
    for frame, delivery in zip(built, deliveries, strict=True):
        wanted = expected(frame, hash_types)
        assert said(bench, delivery) == wanted
        assert delivery.table_entry == wanted.hash % 128 and delivery.queue == delivery.table_entry % QUEUES
        whole = delivery.header + delivery.payload
        assert frame.startswith(whole) and not any(frame[len(whole) :])  # but for Ethernet's padding
        assert packets[whole].checksum_unnecessary <= (not wanted.bad_ip and not wanted.bad_l4)
