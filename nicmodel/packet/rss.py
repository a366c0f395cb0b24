"""Receive-side scaling: the Toeplitz hash over a frame's addresses and ports.

The hash and its types are those of Microsoft's "RSS Hashing Types" and "Verifying the RSS Hash Calculation".
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

import numpy as np
import numpy.typing as npt

from nicmodel.jit.compiled import compiled, inlined
from nicmodel.packet.headers import L3, L4
from nicmodel.packet.words import load_byte

KEY_SIZE = 40
#: Longest hash input: two IPv6 addresses and two ports.
INPUT_SIZE = 36


class HashType(IntFlag):
    """What to hash: Microsoft's types."""

    NONE = 0
    IPV4 = 1 << 0
    TCPV4 = 1 << 1
    IPV6 = 1 << 2
    IPV6_EX = 1 << 3
    TCPV6 = 1 << 4
    TCPV6_EX = 1 << 5
    UDPV4 = 1 << 6
    UDPV6 = 1 << 7
    UDPV6_EX = 1 << 8


class HashKind(IntEnum):
    """What a hash was computed over."""

    NONE = 0
    ADDRESSES = 1
    PORTS = 2


_L3_IPV4, _L3_IPV6 = int(L3.IPV4), int(L3.IPV6)
_L4_TCP, _L4_UDP = int(L4.TCP), int(L4.UDP)
_KIND_NONE, _KIND_ADDRESSES, _KIND_PORTS = (int(kind) for kind in HashKind)
_IPV4, _TCPV4, _UDPV4 = int(HashType.IPV4), int(HashType.TCPV4), int(HashType.UDPV4)
_IPV6 = int(HashType.IPV6 | HashType.IPV6_EX)
_TCPV6 = int(HashType.TCPV6 | HashType.TCPV6_EX)
_UDPV6 = int(HashType.UDPV6 | HashType.UDPV6_EX)


def toeplitz_table(key: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """What each value of each input byte contributes to the hash.

    Args:
        key: shape (40,), uint8.

    Returns:
        shape (36, 256), uint32: the hash of an input is the exclusive or of `table[i, input[i]]`.
    """
    bits = np.unpackbits(np.asarray(key, np.uint8))
    # windows[i, j]: the 32 bits of the key that start at bit j of byte i, counted from the most significant.
    every = np.lib.stride_tricks.sliding_window_view(bits, 32)[: 8 * INPUT_SIZE]
    windows = np.packbits(every, axis=1).view(">u4").astype(np.uint32).reshape(INPUT_SIZE, 8)
    value_bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    chosen = windows[:, None, :] * value_bits[None, :, :].astype(np.uint32)
    return np.ascontiguousarray(np.bitwise_xor.reduce(chosen, axis=2))


@compiled
def flow_hash(
    data: npt.NDArray[np.uint8],
    offset: int,
    headers: npt.NDArray[np.void],
    hash_types: int,
    table: npt.NDArray[np.uint32],
) -> tuple[int, int]:
    """The Toeplitz hash of a parsed frame, and what it covers (a `HashKind`).

    TCP and UDP are hashed with their ports if their type is enabled. Everything else, fragments included, is hashed by
    its addresses if the IP type is enabled. The `_EX` types take the addresses of the IPv6 header, as do the others:
    home addresses of Mobile IPv6 are not looked for.

    Args:
        data: bytes, shape (n,), uint8.
        offset: position of the first byte of the frame.
        headers: what `parse` found, shape (1,), `HEADERS`.
        hash_types: `HashType` bits.
        table: `toeplitz_table` of the key.
    """
    h = headers[0]
    l3 = h["l3"]
    if l3 == _L3_IPV4:
        addresses, tcp, udp = hash_types & _IPV4, hash_types & _TCPV4, hash_types & _UDPV4
    elif l3 == _L3_IPV6:
        addresses, tcp, udp = hash_types & _IPV6, hash_types & _TCPV6, hash_types & _UDPV6
    else:
        return 0, _KIND_NONE
    l4 = h["l4"]
    ports = (l4 == _L4_TCP and tcp != 0) or (l4 == _L4_UDP and udp != 0)
    if not ports and addresses == 0:
        return 0, _KIND_NONE
    start = offset + h["source"]
    if l3 == _L3_IPV4:
        size = 8
        result = _hash_bytes(data, start, 0, 8, table)
    else:
        size = 32
        result = _hash_bytes(data, start, 0, 32, table)
    if not ports:
        return result, _KIND_ADDRESSES
    return result ^ _hash_bytes(data, offset + h["l4_offset"], size, 4, table), _KIND_PORTS


@inlined
def _hash_bytes(data: npt.NDArray[np.uint8], at: int, first: int, count: int, table: npt.NDArray[np.uint32]) -> int:
    """What `count` bytes at `at` contribute as input bytes `first` and on."""
    result = 0
    for i in range(count):
        result ^= int(table[first + i, load_byte(data, at + i)])
    return result
