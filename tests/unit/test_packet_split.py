"""Where frames are cut on a queue with header split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packet_frames import ETHER, Frame, as_array, examples, frames, parsed
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, PadN
from scapy.layers.l2 import ARP, Dot1Q
from scapy.packet import Packet, Raw

from nicmodel.packet.headers import L4
from nicmodel.packet.split import split_point

ALL_TCP_OPTIONS = [("NOP", None)] * 40
MANY_OPTIONS = IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(60))])


@pytest.mark.parametrize(
    ("packet", "point"),
    [
        (ETHER / IP() / TCP(), 54),
        (ETHER / IP() / TCP() / Raw(bytes(1460)), 54),
        (ETHER / IPv6() / TCP(options=ALL_TCP_OPTIONS) / b"x", 114),
        (ETHER / Dot1Q() / IPv6() / TCP(options=ALL_TCP_OPTIONS) / b"x", 118),
        (ETHER / IP() / UDP() / b"x", 42),
        (ETHER / IPv6() / MANY_OPTIONS / TCP() / b"x", -1),
        (ETHER / IPv6() / MANY_OPTIONS / UDP() / b"x", 14 + 40 + 64 + 8),
        (ETHER / ARP(), 42),
        (ETHER / ARP() / Raw(bytes(86)), 128),
        (ETHER / ARP() / Raw(bytes(87)), 14),
        (ETHER / IP() / ICMP() / Raw(bytes(86)), 128),
        (ETHER / IP() / ICMP() / Raw(bytes(87)), 34),
        (ETHER / IP(flags="MF") / TCP() / Raw(bytes(80)), 34),
        (ETHER / IPv6() / MANY_OPTIONS / MANY_OPTIONS / Raw(bytes(80)), 14),
    ],
    ids=repr,
)
def test_split_point_with_128_bytes(packet: Packet, point: int) -> None:
    assert split_point(parsed(as_array(bytes(packet))), 128) == point


@examples
@given(frame=frames(), header_size=st.integers(14, 300))
def test_split_point_of_any_frame(frame: Frame, header_size: int) -> None:
    point = split_point(parsed(as_array(bytes(frame))), header_size)
    found = frame.expected
    if found["l4"] in (L4.TCP, L4.UDP):
        assert point == (found["payload"] if found["payload"] <= header_size else -1)
    elif found["length"] <= header_size:
        assert point == found["length"]
    else:
        assert point == (found["payload"] if found["payload"] <= header_size else 14)
