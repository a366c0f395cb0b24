"""TCP segments as Ethernet frames, read and written without scapy: a stream of them has thousands a second."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from nicmodel.testing.tcp import Header

_IPV4, _IPV6, _VLANS = 0x0800, 0x86DD, (0x8100, 0x88A8)
_TCP = 6
_ETHERNET = 14
_IP = struct.Struct(">BBHHHBBH4s4s")
_HOPS, _DO_NOT_FRAGMENT = 64, 0x4000


@dataclass(frozen=True)
class TcpFrame:
    """A TCP segment in a frame.

    Attributes:
        source: address of the sender, 4 or 16 bytes.
        destination: address of the receiver.
        header: TCP's.
        start: offset of the payload in the frame.
        length: bytes of payload, by IP's header: a driver's packet may have fewer.
    """

    source: bytes
    destination: bytes
    header: Header
    start: int
    length: int

    @classmethod
    def parse(cls, frame: bytes) -> TcpFrame | None:
        """A frame of IPv4 or IPv6 without extension headers, maybe with VLAN tags; None if it is something else."""
        place = _ETHERNET
        kind = int.from_bytes(frame[place - 2 : place], "big")
        while kind in _VLANS:
            place += 4
            kind = int.from_bytes(frame[place - 2 : place], "big")
        if kind == _IPV4 and len(frame) >= place + 20:
            if frame[place + 9] != _TCP or int.from_bytes(frame[place + 6 : place + 8], "big") & ~_DO_NOT_FRAGMENT:
                return None
            addresses, size = place + 12, 4
            end = place + int.from_bytes(frame[place + 2 : place + 4], "big")
            place += (frame[place] & 15) * 4
        elif kind == _IPV6 and len(frame) >= place + 40:
            if frame[place + 6] != _TCP:
                return None
            addresses, size = place + 8, 16
            end = place + 40 + int.from_bytes(frame[place + 4 : place + 6], "big")
            place += 40
        else:
            return None
        try:
            header, length = Header.parse(frame[place : place + 60])
        except ValueError:
            return None
        start = place + length
        if start > end:
            return None
        source = frame[addresses : addresses + size]
        return cls(source, frame[addresses + size : addresses + 2 * size], header, start, end - start)


def tcp_frame(ethernet: bytes, source: bytes, destination: bytes, header: Header, payload: bytes) -> bytes:
    """A frame of IPv4, its IP checksum complete and TCP's 0.

    Args:
        ethernet: destination and source address of the frame, 12 bytes.
        source: IPv4 address of the sender, 4 bytes.
        destination: of the receiver.
        header: TCP's.
        payload: the segment's bytes.
    """
    segment = header.encode() + payload
    fields = [0x45, 0, _IP.size + len(segment), 0, _DO_NOT_FRAGMENT, _HOPS, _TCP, 0, source, destination]
    total = sum(struct.unpack(">10H", _IP.pack(*fields)))
    total = (total & 0xFFFF) + (total >> 16)
    fields[7] = 0xFFFF ^ (total & 0xFFFF) + (total >> 16)
    return ethernet + _IPV4.to_bytes(2, "big") + _IP.pack(*fields) + segment
