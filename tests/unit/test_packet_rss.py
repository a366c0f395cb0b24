"""The Toeplitz hash: Microsoft's verification suite, and the definition bit by bit."""

from __future__ import annotations

import socket

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packet_frames import ETHER, Bytes, Frame, as_array, examples, frames, parsed
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet

from nicmodel.packet.headers import L3, L4
from nicmodel.packet.rss import KEY_SIZE, HashKind, HashType, flow_hash, toeplitz_table

#: Key and vectors of "Verifying the RSS Hash Calculation" (Windows driver documentation).
KEY = bytes.fromhex(
    "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"
)  # fmt: skip
TABLE = toeplitz_table(as_array(KEY))

IPV4_VECTORS = [
    ("66.9.149.187", 2794, "161.142.100.80", 1766, 0x51CCC178, 0x323E8FC2),
    ("199.92.111.2", 14230, "65.69.140.83", 4739, 0xC626B0EA, 0xD718262A),
    ("24.19.198.95", 12898, "12.22.207.184", 38024, 0x5C2B394A, 0xD2D0A5DE),
    ("38.27.205.30", 48228, "209.142.163.6", 2217, 0xAFC7327F, 0x82989176),
    ("153.39.163.191", 44251, "202.188.127.2", 1303, 0x10E828A2, 0x5D1809C5),
]
IPV6_VECTORS = [
    ("3ffe:2501:200:1fff::7", 2794, "3ffe:2501:200:3::1", 1766, 0x40207D3D, 0x2CC18CD5),
    ("3ffe:501:8::260:97ff:fe40:efab", 14230, "ff02::1", 4739, 0xDDE51BBF, 0x0F0C461C),
    ("3ffe:1900:4545:3:200:f8ff:fe21:67cf", 44251, "fe80::200:f8ff:fe21:67cf", 38024, 0x02D1FEEF, 0x4B61E985),
]
VECTORS = [(IP, *vector) for vector in IPV4_VECTORS] + [(IPv6, *vector) for vector in IPV6_VECTORS]


def toeplitz(key: bytes, message: bytes) -> int:
    """The definition: for every set bit of the input, the 32 bits of the key that start there."""
    window = int.from_bytes(key, "big")
    result = 0
    for position in range(8 * len(message)):
        if message[position // 8] & 0x80 >> position % 8:
            result ^= window >> (8 * len(key) - 32 - position) & 0xFFFFFFFF
    return result


def hashed(frame: Bytes, types: int, key: bytes = KEY) -> tuple[int, int]:
    table = TABLE if key == KEY else toeplitz_table(as_array(key))
    return flow_hash(frame, 0, parsed(frame), types, table)


@pytest.mark.parametrize(("ip", "source", "sport", "destination", "dport", "with_ports", "addresses"), VECTORS)
@pytest.mark.parametrize("l4", [TCP, UDP])
def test_microsofts_vectors(
    ip: type[Packet], l4: type[Packet], source: str, sport: int, destination: str, dport: int, with_ports: int,
    addresses: int,
) -> None:  # fmt: skip
    frame = as_array(bytes(ETHER / ip(src=source, dst=destination) / l4(sport=sport, dport=dport)))
    both = HashType.TCPV4 | HashType.UDPV4 | HashType.TCPV6 | HashType.UDPV6
    assert hashed(frame, both) == (with_ports, HashKind.PORTS)
    assert hashed(frame, HashType.IPV4 | HashType.IPV6) == (addresses, HashKind.ADDRESSES)


@examples
@given(frame=frames(), types=st.integers(0, 0x1FF), key=st.binary(min_size=KEY_SIZE, max_size=KEY_SIZE))
def test_any_frame_against_the_definition(frame: Frame, types: int, key: bytes) -> None:
    expected = frame.expected
    whole = bytes(frame)
    start, size = expected["source"], expected["address_size"]
    message, kind = whole[start : start + 2 * size], HashKind.NONE
    family = {L3.IPV4: "V4", L3.IPV6: "V6"}.get(L3(expected["l3"]))
    if family:
        wanted = {member.name for member in HashType if member & types}
        layer = {L4.TCP: "TCP", L4.UDP: "UDP"}.get(L4(expected["l4"]))
        if layer and wanted & {f"{layer}{family}", f"{layer}{family}_EX"}:
            kind = HashKind.PORTS
            message += expected["source_port"].to_bytes(2, "big") + expected["destination_port"].to_bytes(2, "big")
        elif wanted & {f"IP{family}", f"IP{family}_EX"}:
            kind = HashKind.ADDRESSES
    result = toeplitz(key, message) if kind else 0
    assert hashed(as_array(whole), types, key) == (result, kind)


def test_table_takes_one_byte_at_a_time() -> None:
    assert TABLE.shape == (36, 256)
    assert TABLE.dtype == np.uint32
    message = socket.inet_aton("66.9.149.187") + socket.inet_aton("161.142.100.80")
    assert np.bitwise_xor.reduce([TABLE[i, byte] for i, byte in enumerate(message)]) == 0x323E8FC2
