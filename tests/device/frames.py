"""Frames that the tests send, built by scapy, and an RSS hash of their own."""

from __future__ import annotations

import ipaddress
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

NIC_MAC = "02:00:00:00:00:01"
PEER_MAC = "02:00:00:00:00:02"

ETHERNET = Ether(src=PEER_MAC, dst=NIC_MAC)


def pattern(length: int, seed: int = 0) -> bytes:
    """Bytes that differ from place to place."""
    return bytes((seed + index * 7 + index // 251) & 0xFF for index in range(length))


def tcp(payload: bytes | int = 64, *, v: int = 4, src: str = "", dst: str = "", **fields: Any) -> bytes:
    """A TCP segment to the NIC; an integer asks for that many bytes of pattern."""
    return bytes(ETHERNET / ip(v, src, dst) / TCP(**_ports(fields)) / _payload(payload))


def udp(payload: bytes | int = 64, *, v: int = 4, src: str = "", dst: str = "", **fields: Any) -> bytes:
    """A UDP datagram to the NIC."""
    return bytes(ETHERNET / ip(v, src, dst) / UDP(**_ports(fields)) / _payload(payload))


def icmp(payload: bytes | int = 64) -> bytes:
    """A ping."""
    return bytes(ETHERNET / IP(src="192.0.2.2", dst="192.0.2.1") / ICMP() / _payload(payload))


def arp() -> bytes:
    """An ARP request, broadcast and without padding."""
    return bytes(Ether(src=PEER_MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(psrc="192.0.2.2", pdst="192.0.2.1"))


def ip(v: int, src: str = "", dst: str = "") -> Packet:
    """The IP layer, without one of the documentation's addresses if another is given."""
    if v == 4:
        return IP(src=src or "192.0.2.2", dst=dst or "192.0.2.1")
    return IPv6(src=src or "2001:db8::2", dst=dst or "2001:db8::1")


def toeplitz(key: bytes, frame: bytes) -> int:
    """The RSS hash over addresses and ports by the definition, bit by bit."""
    packet = Ether(frame)
    layer = packet.getlayer(IP) or packet.getlayer(IPv6)
    ports = packet.getlayer(TCP) or packet.getlayer(UDP)
    data = b"".join(ipaddress.ip_address(address).packed for address in (layer.src, layer.dst))
    data += int(ports.sport).to_bytes(2, "big") + int(ports.dport).to_bytes(2, "big")
    window, width = int.from_bytes(key, "big"), 8 * len(key)
    result = 0
    for bit in range(8 * len(data)):
        if data[bit // 8] & 0x80 >> bit % 8:
            result ^= window >> width - 32 - bit & 0xFFFF_FFFF
    return result


def _ports(fields: dict[str, Any]) -> dict[str, Any]:
    return {"sport": 4000, "dport": 5000} | fields


def _payload(payload: bytes | int) -> Packet:
    return Raw(pattern(payload) if isinstance(payload, int) else payload)
