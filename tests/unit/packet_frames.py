"""Frames for the tests of `nicmodel.packet`: built by scapy layer by layer, described from what was put in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    IPv6ExtHdrSegmentRouting,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

from nicmodel.jit.compiled import JIT_DISABLED
from nicmodel.packet.headers import HEADERS, L3, L4
from nicmodel.packet.parse import parse

#: Compiling takes the first example longer than any deadline, interpreted code the others.
examples = settings(max_examples=20 if JIT_DISABLED else 60, deadline=None)

#: With both addresses given, scapy asks no network for them.
ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")

Bytes = npt.NDArray[np.uint8]
Headers = npt.NDArray[np.void]

_ADDRESSES4 = ("10.0.0.1", "10.0.0.2", "192.168.7.255", "66.9.149.187")
_ADDRESSES6 = ("fd00::1", "fd00::2", "fe80::ff:fe00:1234", "2001:db8:1:2:3:4:5:6")
#: None that scapy dissects further.
_PORTS = (0, 2794, 5201, 40000, 65535)
_SPIS = (0, 1, 0xFFFFFFFF)
_PAYLOADS = st.sampled_from([0, 1, 40, 600]).flatmap(lambda size: st.binary(max_size=size))


@dataclass
class Frame:
    """A frame and what `parse` must find in it."""

    packet: Packet
    padding: bytes = b""
    expected: dict[str, int] = field(default_factory=dict)

    def __bytes__(self) -> bytes:
        return bytes(self.packet) + self.padding


def as_array(frame: bytes) -> Bytes:
    """An array of exactly these bytes, writable."""
    return np.frombuffer(frame, np.uint8).copy()


def parsed(data: Bytes, offset: int = 0, length: int | None = None) -> Headers:
    """What `parse` finds; starts from a record full of rubbish, since every field must be set."""
    headers = np.frombuffer(b"\xa5" * HEADERS.itemsize, HEADERS).copy()
    parse(data, offset, len(data) - offset if length is None else length, headers)
    return headers


def as_dict(headers: Headers) -> dict[str, int]:
    return dict(zip(headers.dtype.names or (), headers[0].tolist(), strict=True))


@st.composite
def frames(
    draw: st.DrawFn,
    l4: tuple[str, ...] = (),
    fragments: bool = True,
    padded: bool = True,
    payload: st.SearchStrategy[bytes] = _PAYLOADS,
) -> Frame:
    """Valid frames: VLAN tags, options, extension headers, fragments, every L4 protocol known, and padding."""
    vlans = draw(st.integers(0, 2))
    packet: Packet = ETHER.copy()
    for tag in (Dot1AD, Dot1Q)[2 - vlans :]:
        packet /= tag(vlan=draw(st.integers(1, 4094)))
    expected = dict.fromkeys(HEADERS.names or (), 0)
    at = 14 + 4 * vlans
    expected |= {"vlans": vlans, "l3_offset": at, "l4_offset": at, "payload": at, "protocol": -1}
    family = draw(st.sampled_from((4, 4, 6, 6) if l4 else (4, 4, 6, 6, 0)))
    if family == 0:
        packet /= draw(st.sampled_from([ARP(), Raw(b""), Raw(b"\x45" * 30)]))
        expected |= {"l3": L3.OTHER, "length": len(packet)}
        return Frame(packet, b"", expected)

    tos = draw(st.integers(0, 255))
    expected["tos"] = tos
    fragment = fragments and draw(st.integers(0, 4)) == 0
    if family == 4:
        words = draw(st.integers(0, 10))
        packet /= IP(
            src=draw(st.sampled_from(_ADDRESSES4)), dst=draw(st.sampled_from(_ADDRESSES4)), tos=tos,
            id=draw(st.integers(0, 65535)), options=[IPOption_NOP() for _ in range(4 * words)],
        )  # fmt: skip
        if fragment:
            packet[IP].flags = draw(st.sampled_from(["MF", ""]))
            packet[IP].frag = draw(st.integers(0 if packet[IP].flags else 1, 100))
        expected |= {"l3": L3.IPV4, "source": at + 12, "destination": at + 16, "final_destination": at + 16}
        expected["address_size"] = 4
        at += 20 + 4 * words
    else:
        packet /= IPv6(src=draw(st.sampled_from(_ADDRESSES6)), dst=draw(st.sampled_from(_ADDRESSES6)), tc=tos)
        expected |= {"l3": L3.IPV6, "source": at + 8, "destination": at + 24, "final_destination": at + 24}
        expected["address_size"] = 16
        at += 40
        kinds = draw(st.lists(st.sampled_from(["options", "route", "segments"]), max_size=2, unique=True))
        if draw(st.booleans()):
            kinds.insert(0, "hop-by-hop")
        if "route" in kinds and "segments" in kinds:
            kinds.remove("route")
        if fragment:
            kinds.append("fragment")
        for kind in kinds:
            layer, final = _extension(draw, kind)
            packet /= layer
            if final:
                expected["final_destination"] = at + final
            expected["ipv6_ex_add"] |= kind in ("options", "route", "segments")
            expected["ipv6_extensions"] += 1
            at += len(layer)
    expected |= {"l4_offset": at, "payload": at, "fragment": int(fragment)}

    choices = l4 or ("tcp", "tcp", "udp", "udp", "icmp", "sctp", "ah", "esp", "other")
    kind = draw(st.sampled_from(choices))
    packet, found = _add_l4(draw, packet, kind, family, at)
    if fragment:
        found = {"protocol": found["protocol"]}
    expected |= found
    packet /= Raw(draw(payload))
    # From here on lengths and checksums are bytes, and `packet` a view of them.
    packet = Ether(bytes(packet))
    expected["length"] = len(packet)
    # A length field of zero would mean "as long as the frame is".
    padded = padded and not (family == 6 and len(packet) == expected["l3_offset"] + 40)
    padding = draw(st.binary(max_size=46)) if padded else b""
    return Frame(packet, padding, expected)


def _extension(draw: st.DrawFn, kind: str) -> tuple[Packet, int]:
    """An extension header, and where in it the final destination is (0: not in it)."""
    if kind == "hop-by-hop":
        return IPv6ExtHdrHopByHop(), 0
    if kind == "options":
        return IPv6ExtHdrDestOpt(), 0
    if kind == "fragment":
        return IPv6ExtHdrFragment(offset=draw(st.integers(0, 100)), m=draw(st.integers(0, 1)), id=7), 0
    addresses = draw(st.lists(st.sampled_from(_ADDRESSES6), min_size=1, max_size=3))
    left = draw(st.integers(0, len(addresses)))
    if kind == "segments":
        return IPv6ExtHdrSegmentRouting(addresses=addresses, segleft=left), 8 if left else 0
    layer = IPv6ExtHdrRouting(type=draw(st.sampled_from([0, 2])), addresses=addresses, segleft=left)
    return layer, len(layer) - 16 if left else 0


def _add_l4(draw: st.DrawFn, packet: Packet, kind: str, family: int, at: int) -> tuple[Packet, dict[str, int]]:
    ports = (draw(st.sampled_from(_PORTS)), draw(st.sampled_from(_PORTS)))
    described = {"ports": 1, "source_port": ports[0], "destination_port": ports[1]}
    if kind == "tcp":
        flags = draw(st.integers(0, 255))
        words = draw(st.integers(0, 10))
        layer = TCP(
            sport=ports[0], dport=ports[1], seq=draw(st.integers(0, 2**32 - 1)), flags=flags,
            options=[("NOP", None)] * (4 * words),
        )  # fmt: skip
        described |= {"l4": L4.TCP, "protocol": 6, "tcp_flags": flags, "payload": at + 20 + 4 * words}
        return packet / layer, described
    if kind == "udp":
        described |= {"l4": L4.UDP, "protocol": 17, "payload": at + 8}
        return packet / UDP(sport=ports[0], dport=ports[1]), described
    if kind == "sctp":
        described |= {"l4": L4.SCTP, "protocol": 132}
        return packet / SCTP(sport=ports[0], dport=ports[1]), described
    if kind == "icmp" and family == 4:
        return packet / ICMP(), {"l4": L4.ICMP, "protocol": 1}
    if kind == "icmp":
        return packet / ICMPv6EchoRequest(), {"l4": L4.ICMP, "protocol": 58}
    spi = draw(st.sampled_from(_SPIS))
    last: Any = packet.lastlayer()
    number = {"ah": 51, "esp": 50}.get(kind, 253)
    setattr(last, "proto" if family == 4 and isinstance(last, IP) else "nh", number)
    if kind == "ah":
        packet /= Raw(bytes([59, 4, 0, 0]) + spi.to_bytes(4, "big") + bytes(16))
    elif kind == "esp":
        packet /= Raw(spi.to_bytes(4, "big") + bytes(16))
    else:
        return packet, {"l4": L4.OTHER, "protocol": number}
    return packet, {"l4": L4.OTHER, "protocol": number, "has_spi": 1, "spi": spi}
