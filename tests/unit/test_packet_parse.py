"""`parse` against frames of scapy, described by what they were built from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packet_frames import ETHER, Frame, as_array, as_dict, examples, frames, parsed
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    IPv6ExtHdrSegmentRouting,
)
from scapy.layers.l2 import Dot1Q
from scapy.packet import Packet, Raw

from nicmodel.packet.headers import L3, L4


@examples
@given(frame=frames(), headroom=st.integers(0, 9))
def test_valid_frames(frame: Frame, headroom: int) -> None:
    data = as_array(bytes(headroom) + bytes(frame))
    assert as_dict(parsed(data, headroom)) == frame.expected


@examples
@given(frame=frames(), cut=st.integers(0, 2000))
def test_a_truncated_frame_is_classified_no_further_than_its_last_sound_header(frame: Frame, cut: int) -> None:
    whole = bytes(frame.packet)
    cut %= len(whole)
    found = as_dict(parsed(as_array(whole[:cut])))
    at = frame.expected
    assert found["length"] == cut
    assert found["l4"] == L4.UNKNOWN
    if cut < 14:
        assert (found["l3"], found["malformed"]) == (L3.UNKNOWN, 1)
    elif at["l3"] in (L3.IPV4, L3.IPV6):
        size = 40 if at["l3"] == L3.IPV6 else at["l4_offset"] - at["l3_offset"]
        assert found["malformed"] == 1
        assert found["l3"] == (at["l3"] if cut >= at["l3_offset"] + size else L3.OTHER)


@pytest.mark.parametrize(
    "packet",
    [
        ETHER / IP(version=5) / TCP(),
        ETHER / IP(ihl=4) / TCP(),
        ETHER / IPv6(version=4) / TCP(),
    ],
    ids=["version 5", "header of 16 bytes", "IPv6 that says 4"],
)
def test_a_bad_ip_header_is_no_ip(packet: Packet) -> None:
    found = as_dict(parsed(as_array(bytes(packet))))
    assert (found["l3"], found["l4"], found["malformed"], found["payload"]) == (L3.OTHER, L4.UNKNOWN, 1, 14)


@pytest.mark.parametrize(
    "packet",
    [
        ETHER / IP(len=19) / TCP(),
        ETHER / IP(len=41) / TCP(),
        ETHER / IP() / TCP(dataofs=4),
        ETHER / IP() / TCP(dataofs=6),
        ETHER / IP(len=39) / TCP(),
        ETHER / IP() / UDP(len=7),
        ETHER / IP() / UDP(len=9),
        ETHER / IP(proto=132) / Raw(bytes(11)),
        ETHER / IP(proto=51) / Raw(bytes(11)),
        ETHER / IP(proto=50) / Raw(bytes(7)),
        ETHER / IP(proto=1) / Raw(bytes(3)),
    ],
    ids=repr,
)
def test_a_length_that_contradicts_ends_at_the_ip_header(packet: Packet) -> None:
    found = as_dict(parsed(as_array(bytes(packet))))
    assert (found["l3"], found["l4"], found["malformed"]) == (L3.IPV4, L4.UNKNOWN, 1)
    assert (found["payload"], found["ports"], found["has_spi"]) == (34, 0, 0)
    assert found["length"] >= 34


@pytest.mark.parametrize(
    ("packet", "ends"),
    [
        (ETHER / Dot1Q() / IP(len=0, options=[IPOption_NOP()] * 4) / TCP(options=[("NOP", None)] * 4), (18, 42, 66)),
        (ETHER / IPv6(plen=0) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / UDP(), (14, 54, 62, 70, 78)),
        (ETHER / IPv6(plen=0) / IPv6ExtHdrRouting(addresses=["::1"]) / TCP(), (14, 54, 78, 98)),
    ],
    ids=["IPv4", "IPv6 options", "IPv6 route"],
)
def test_every_length_ends_at_the_last_whole_header(packet: Packet, ends: tuple[int, ...]) -> None:
    """An IP length of zero makes the frame's length count, so only the headers' own ends are left."""
    whole = bytes(packet)
    assert len(whole) == ends[-1]
    for length in range(ends[0], len(whole)):
        found = as_dict(parsed(as_array(whole[:length])))
        assert found["payload"] == found["l4_offset"] == max(end for end in ends if end <= length)
        assert (found["l4"], found["malformed"]) == (L4.UNKNOWN, 1)
    found = as_dict(parsed(as_array(whole)))
    assert (found["l4_offset"], found["payload"], found["malformed"]) == (*ends[-2:], 0)


@pytest.mark.parametrize(
    ("header", "final"),
    [
        (IPv6ExtHdrRouting(type=0, addresses=["::1", "::2", "::3"], segleft=2), 54 + 40),
        (IPv6ExtHdrRouting(type=2, addresses=["::1"], segleft=1), 54 + 8),
        (IPv6ExtHdrSegmentRouting(addresses=["::1", "::2", "::3"], segleft=2), 54 + 8),
        (IPv6ExtHdrRouting(type=0, addresses=["::1", "::2", "::3"], segleft=0), 14 + 24),
        (IPv6ExtHdrRouting(type=0, addresses=[], segleft=1), 14 + 24),
    ],
    ids=["type 0", "type 2", "segment routing", "arrived", "no address"],
)
def test_final_destination_is_the_end_of_the_route(header: Packet, final: int) -> None:
    found = as_dict(parsed(as_array(bytes(ETHER / IPv6() / header / TCP()))))
    assert (found["destination"], found["final_destination"]) == (14 + 24, final)
    assert (found["l4"], found["ipv6_ex_add"]) == (L4.TCP, 1)


def test_a_third_vlan_tag_is_not_looked_behind() -> None:
    found = as_dict(parsed(as_array(bytes(ETHER / Dot1Q() / Dot1Q() / Dot1Q() / IP() / TCP()))))
    assert (found["vlans"], found["l3"], found["l3_offset"]) == (2, L3.OTHER, 22)


@pytest.mark.parametrize(
    "packet",
    [ETHER / IP(len=0) / TCP() / Raw(bytes(100_001)), ETHER / IPv6(plen=0) / TCP() / Raw(bytes(200_001))],
    ids=["IPv4", "IPv6"],
)
def test_big_tcp_takes_the_length_of_the_frame(packet: Packet) -> None:
    frame = bytes(packet)
    found = as_dict(parsed(as_array(frame)))
    assert (found["length"], found["l4"], found["malformed"]) == (len(frame), L4.TCP, 0)


def test_udp_that_cannot_tell_its_length() -> None:
    found = as_dict(parsed(as_array(bytes(ETHER / IPv6() / UDP(len=0) / Raw(b"abc")))))
    assert (found["l4"], found["payload"], found["malformed"]) == (L4.UDP, 62, 0)
