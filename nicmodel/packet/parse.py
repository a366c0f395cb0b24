"""What a frame is: Ethernet, VLAN tags, IPv4 or IPv6 with extension headers, and the L4 header.

The one parser of the packet path. It reads only `data[offset : offset + length]`, takes any bytes, and stops at the
first header that contradicts the length it has.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nicmodel.jit.compiled import compiled, inlined
from nicmodel.packet.headers import L3, L4
from nicmodel.packet.words import load_be16, load_be32, load_byte

ETHERNET_SIZE = 14
VLAN_SIZE = 4
MAX_VLANS = 2

ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_VLAN = 0x8100
ETHERTYPE_IPV6 = 0x86DD
ETHERTYPE_SERVICE_VLAN = 0x88A8

HOP_BY_HOP = 0
ICMP = 1
TCP = 6
UDP = 17
ROUTING = 43
FRAGMENT = 44
ESP = 50
AH = 51
ICMPV6 = 58
DESTINATION_OPTIONS = 60
SCTP = 132

IPV4_SIZE = 20
IPV6_SIZE = 40
TCP_SIZE = 20
UDP_SIZE = 8
SCTP_SIZE = 12
ICMP_SIZE = 4

# Compiled code takes plain numbers.
_UNKNOWN, _OTHER, _IPV4, _IPV6 = (int(kind) for kind in L3)
_L4_UNKNOWN, _L4_OTHER, _TCP, _UDP, _ICMP, _SCTP = (int(kind) for kind in L4)


@compiled
def parse(data: npt.NDArray[np.uint8], offset: int, length: int, headers: npt.NDArray[np.void]) -> None:
    """Describe the frame `data[offset : offset + length]` in `headers[0]`; every field is set.

    A fragment, the first one included, has L4 "unknown" and no ports, as it has for RSS (its checksum spans packets).
    An IP length of zero means "longer than the field can tell" (BIG TCP, RFC 2675): the frame's own length counts.
    `payload` is the end of the TCP or UDP header; for every other L4 protocol it is where L4 starts.

    Args:
        data: bytes, shape (n,), uint8.
        offset: position of the first byte of the frame.
        length: bytes in the frame, Ethernet padding included, FCS not.
        headers: shape (1,), `HEADERS`.
    """
    h = headers[0]
    _clear(h, length)
    if length < ETHERNET_SIZE:
        h["malformed"] = 1
        return
    ethertype = load_be16(data, offset + ETHERNET_SIZE - 2)
    at = ETHERNET_SIZE
    vlans = 0
    while ethertype in (ETHERTYPE_VLAN, ETHERTYPE_SERVICE_VLAN) and vlans < MAX_VLANS:
        if at + VLAN_SIZE > length:
            h["malformed"] = 1
            break
        ethertype = load_be16(data, offset + at + 2)
        at += VLAN_SIZE
        vlans += 1
    h["vlans"] = vlans
    h["l3"] = _OTHER
    _end_headers(h, at)
    h["l3_offset"] = at
    if ethertype == ETHERTYPE_IPV4:
        _parse_ipv4(data, offset, at, h)
    elif ethertype == ETHERTYPE_IPV6:
        _parse_ipv6(data, offset, at, h)


@inlined
def _clear(h: np.void, length: int) -> None:
    h["length"] = length
    h["vlans"] = 0
    h["l3"] = _UNKNOWN
    h["l4"] = _L4_UNKNOWN
    h["protocol"] = -1
    h["l3_offset"] = length
    h["l4_offset"] = length
    h["payload"] = length
    h["source"] = 0
    h["destination"] = 0
    h["final_destination"] = 0
    h["address_size"] = 0
    h["fragment"] = 0
    h["ipv6_extensions"] = 0
    h["ipv6_ex_add"] = 0
    h["ports"] = 0
    h["source_port"] = 0
    h["destination_port"] = 0
    h["has_spi"] = 0
    h["spi"] = 0
    h["tos"] = 0
    h["tcp_flags"] = 0
    h["malformed"] = 0


@inlined
def _end_headers(h: np.void, at: int) -> None:
    """So far `at` is the end of what is recognised."""
    h["l4_offset"] = at
    h["payload"] = at


@inlined
def _parse_ipv4(data: npt.NDArray[np.uint8], offset: int, at: int, h: np.void) -> None:
    room = int(h["length"]) - at
    if room < IPV4_SIZE:
        h["malformed"] = 1
        return
    start = offset + at
    first = load_byte(data, start)
    size = (first & 15) * 4
    if first >> 4 != 4 or size < IPV4_SIZE or size > room:
        h["malformed"] = 1
        return
    h["l3"] = _IPV4
    h["tos"] = load_byte(data, start + 1)
    protocol = load_byte(data, start + 9)
    h["protocol"] = protocol
    h["source"] = at + 12
    h["destination"] = at + 16
    h["final_destination"] = at + 16
    h["address_size"] = 4
    _end_headers(h, at + size)
    total = load_be16(data, start + 2)
    if total == 0:
        total = room
    if total < size or total > room:
        h["malformed"] = 1
        return
    h["length"] = at + total
    if load_be16(data, start + 6) & 0x3FFF:  # more fragments, or an offset
        h["fragment"] = 1
        return
    if protocol == ICMP:
        _parse_icmp(at + size, h)
    else:
        _parse_l4(data, offset, at + size, protocol, h)


@inlined
def _parse_ipv6(data: npt.NDArray[np.uint8], offset: int, at: int, h: np.void) -> None:
    room = int(h["length"]) - at
    if room < IPV6_SIZE:
        h["malformed"] = 1
        return
    start = offset + at
    first = load_be16(data, start)
    if first >> 12 != 6:
        h["malformed"] = 1
        return
    h["l3"] = _IPV6
    h["tos"] = first >> 4 & 0xFF
    protocol = load_byte(data, start + 6)
    h["protocol"] = protocol
    h["source"] = at + 8
    h["destination"] = at + 24
    h["final_destination"] = at + 24
    h["address_size"] = 16
    _end_headers(h, at + IPV6_SIZE)
    total = IPV6_SIZE + load_be16(data, start + 4)
    if total == IPV6_SIZE:
        total = room
    if total > room:
        h["malformed"] = 1
        return
    end = at + total
    h["length"] = end
    at += IPV6_SIZE
    while protocol in (HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS):
        if at + 8 > end:
            h["malformed"] = 1
            return
        size = 8
        if protocol != FRAGMENT:
            size += load_byte(data, offset + at + 1) * 8
        if at + size > end:
            h["malformed"] = 1
            return
        if protocol == ROUTING:
            _note_routing(data, offset, at, size, h)
        h["ipv6_extensions"] += 1
        h["ipv6_ex_add"] |= protocol in (ROUTING, DESTINATION_OPTIONS)
        h["fragment"] = protocol == FRAGMENT
        protocol = load_byte(data, offset + at)
        h["protocol"] = protocol
        at += size
        _end_headers(h, at)
        if h["fragment"]:
            return
    if protocol == ICMPV6:
        _parse_icmp(at, h)
    else:
        _parse_l4(data, offset, at, protocol, h)


@inlined
def _note_routing(data: npt.NDArray[np.uint8], offset: int, at: int, size: int, h: np.void) -> None:
    """The final destination of a packet with segments left: the address in the pseudo-header (RFC 8200, 8.1)."""
    kind = load_byte(data, offset + at + 2)
    if load_byte(data, offset + at + 3) == 0 or size < 24:
        return
    if kind == 4:  # segment routing lists the last segment first (RFC 8754)
        h["final_destination"] = at + 8
    elif kind == 0 or kind == 2:
        h["final_destination"] = at + size - 16


@inlined
def _parse_icmp(at: int, h: np.void) -> None:
    if at + ICMP_SIZE > h["length"]:
        h["malformed"] = 1
    else:
        h["l4"] = _ICMP


@inlined
def _parse_l4(data: npt.NDArray[np.uint8], offset: int, at: int, protocol: int, h: np.void) -> None:
    """The L4 header at `at`; ends with L4 "unknown" and `malformed` when it does not fit."""
    room = int(h["length"]) - at
    start = offset + at
    if protocol == TCP:
        if room >= TCP_SIZE:
            size = (load_byte(data, start + 12) >> 4) * 4
            if TCP_SIZE <= size <= room:
                h["l4"] = _TCP
                h["tcp_flags"] = load_byte(data, start + 13)
                h["payload"] = at + size
                _note_ports(data, start, h)
                return
        h["malformed"] = 1
    elif protocol == UDP:
        if room >= UDP_SIZE:
            size = load_be16(data, start + 4)
            if size == 0 or UDP_SIZE <= size <= room:
                h["l4"] = _UDP
                h["payload"] = at + UDP_SIZE
                _note_ports(data, start, h)
                return
        h["malformed"] = 1
    elif protocol == SCTP:
        if room >= SCTP_SIZE:
            h["l4"] = _SCTP
            _note_ports(data, start, h)
            return
        h["malformed"] = 1
    else:
        spi = 4 if protocol == AH else 0
        if protocol in (AH, ESP):
            if room < spi + 8:
                h["malformed"] = 1
                return
            h["has_spi"] = 1
            h["spi"] = load_be32(data, start + spi)
        h["l4"] = _L4_OTHER


@inlined
def _note_ports(data: npt.NDArray[np.uint8], start: int, h: np.void) -> None:
    h["ports"] = 1
    h["source_port"] = load_be16(data, start)
    h["destination_port"] = load_be16(data, start + 2)
