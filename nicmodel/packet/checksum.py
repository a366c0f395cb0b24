"""The Internet checksum: sums, verification on receive, completion on transmit (RFC 1071, RFC 768, RFC 8200)."""

from __future__ import annotations

from enum import IntFlag

import numpy as np
import numpy.typing as npt

from nicmodel.jit.compiled import compiled, inlined
from nicmodel.packet.headers import L3, L4
from nicmodel.packet.words import load_be16, load_byte, load_le32, store_be16


class ChecksumError(IntFlag):
    """Which checksums of a frame are wrong."""

    NONE = 0
    IP = 1
    L4 = 2


_ERROR_IP, _ERROR_L4 = int(ChecksumError.IP), int(ChecksumError.L4)
_L3_IPV4, _L3_IPV6 = int(L3.IPV4), int(L3.IPV6)
_L4_TCP, _L4_UDP, _L4_ICMP = int(L4.TCP), int(L4.UDP), int(L4.ICMP)

_IP_FIELD = 10
_TCP_FIELD = 16
_UDP_FIELD = 6
_UDP_LENGTH = 4


@compiled
def fold(total: int) -> int:
    """A sum of 16-bit words, 0 or more, folded to 16 bits with its carries added back in."""
    total = (total & 0xFFFF) + (total >> 16 & 0xFFFF) + (total >> 32 & 0xFFFF) + (total >> 48)
    total = (total & 0xFFFF) + (total >> 16)
    return (total & 0xFFFF) + (total >> 16)


@compiled
def ones_sum(data: npt.NDArray[np.uint8], offset: int, count: int, initial: int) -> int:
    """`initial` plus the sum of `count` bytes taken as big-endian 16-bit words, an odd last byte padded with zero.

    Not inverted, and not folded: `fold` does that. Any `count` up to 2**31 is summed without loss.

    Args:
        data: bytes, shape (n,), uint8.
        offset: position of the first byte.
        count: number of bytes.
        initial: a sum to continue, below 2**62.
    """
    # The sum is the same in either byte order, except for the order of its own bytes (RFC 1071, section 2 (B)), so the
    # loop adds 32-bit words as they lie in memory.
    words = count >> 2
    little = 0
    for i in range(words):
        little += load_le32(data, offset + 4 * i)
    little = fold(little)
    total = initial + ((little & 0xFF) << 8 | little >> 8)
    at = offset + 4 * words
    if count & 2:
        total += load_be16(data, at)
        at += 2
    if count & 1:
        total += load_byte(data, at) << 8
    return total


@compiled
def verifiable(headers: npt.NDArray[np.void]) -> bool:
    """Whether `verify` checks the L4 checksum of such a frame: TCP, UDP and ICMP, not fragments, not SCTP's CRC32c.

    Args:
        headers: what `parse` found, shape (1,), `HEADERS`.
    """
    l4 = headers[0]["l4"]
    return l4 in (_L4_TCP, _L4_UDP, _L4_ICMP)


@compiled
def verify(data: npt.NDArray[np.uint8], offset: int, headers: npt.NDArray[np.void]) -> int:
    """Which checksums of a parsed frame are wrong (`ChecksumError` bits).

    A UDP checksum of zero means "none", also over IPv6, where tunnels do without (RFC 6935): whether a socket may get
    such a datagram is the host's decision, for which a NIC says "no error" (Linux include/linux/skbuff.h,
    CHECKSUM_UNNECESSARY).

    Args:
        data: bytes, shape (n,), uint8.
        offset: position of the first byte of the frame.
        headers: what `parse` found, shape (1,), `HEADERS`.
    """
    h = headers[0]
    l3 = h["l3"]
    l4 = h["l4"]
    errors = 0
    if l3 == _L3_IPV4:
        start = h["l3_offset"]
        if fold(ones_sum(data, offset + start, h["l4_offset"] - start, 0)) != 0xFFFF:
            errors |= _ERROR_IP
    if not verifiable(headers):
        return errors
    start = offset + h["l4_offset"]
    if l4 == _L4_UDP and load_be16(data, start + _UDP_FIELD) == 0:
        return errors
    count = _l4_length(data, offset, h)
    initial = 0 if l4 == _L4_ICMP and l3 == _L3_IPV4 else _pseudo_sum(data, offset, h, count)
    if fold(ones_sum(data, start, count, initial)) != 0xFFFF:
        errors |= _ERROR_L4
    return errors


@compiled
def complete(data: npt.NDArray[np.uint8], offset: int, headers: npt.NDArray[np.void], ip_header: bool) -> None:
    """Write the TCP or UDP checksum of a parsed frame, whatever its field holds, and with `ip_header` the IPv4 one.

    Args:
        data: bytes, shape (n,), uint8.
        offset: position of the first byte of the frame.
        headers: what `parse` found, shape (1,), `HEADERS`; a frame that is neither TCP nor UDP keeps its L4 checksum.
        ip_header: whether to write the IPv4 header checksum too.
    """
    h = headers[0]
    if ip_header and h["l3"] == _L3_IPV4:
        complete_ipv4(data, offset, h)
    field = _checksum_field(h)
    if field < 0:
        return
    store_be16(data, offset + field, 0)
    count = _l4_length(data, offset, h)
    result = 0xFFFF ^ fold(ones_sum(data, offset + h["l4_offset"], count, _pseudo_sum(data, offset, h, count)))
    if result == 0 and h["l4"] == _L4_UDP:
        result = 0xFFFF  # zero would say "no checksum"
    store_be16(data, offset + field, result)


@compiled
def pseudo(data: npt.NDArray[np.uint8], offset: int, headers: npt.NDArray[np.void]) -> None:
    """Write the sum of the pseudo-header, L4 length included and not inverted, into the TCP or UDP checksum field.

    That is what a frame holds there whose checksum somebody else completes (VIRTIO_NET_HDR_F_NEEDS_CSUM).

    Args:
        data: bytes, shape (n,), uint8.
        offset: position of the first byte of the frame.
        headers: what `parse` found, shape (1,), `HEADERS`; a frame that is neither TCP nor UDP is left as it is.
    """
    h = headers[0]
    field = _checksum_field(h)
    if field >= 0:
        store_be16(data, offset + field, fold(_pseudo_sum(data, offset, h, _l4_length(data, offset, h))))


@inlined
def complete_ipv4(data: npt.NDArray[np.uint8], offset: int, h: np.void) -> None:
    """Write the IPv4 header checksum; `h` is one `HEADERS` record of an IPv4 frame."""
    start = offset + h["l3_offset"]
    store_be16(data, start + _IP_FIELD, 0)
    store_be16(data, start + _IP_FIELD, 0xFFFF ^ fold(ones_sum(data, start, h["l4_offset"] - h["l3_offset"], 0)))


@inlined
def _checksum_field(h: np.void) -> int:
    """Offset of the TCP or UDP checksum in the frame, -1 if it has none."""
    if h["l4"] == _L4_TCP:
        return int(h["l4_offset"]) + _TCP_FIELD
    if h["l4"] == _L4_UDP:
        return int(h["l4_offset"]) + _UDP_FIELD
    return -1


@inlined
def _l4_length(data: npt.NDArray[np.uint8], offset: int, h: np.void) -> int:
    """Bytes that the L4 checksum covers: what UDP says, which may be less than IP carries, otherwise what IP carries.

    UDP's own field is zero where it cannot tell (RFC 2675, section 4).
    """
    if h["l4"] == _L4_UDP:
        count = load_be16(data, offset + h["l4_offset"] + _UDP_LENGTH)
        if count != 0:
            return count
    return int(h["length"]) - int(h["l4_offset"])


@inlined
def _pseudo_sum(data: npt.NDArray[np.uint8], offset: int, h: np.void, l4_length: int) -> int:
    """Sum over the pseudo-header; `l4_length` may exceed 16 bits, which adds up to the same as two words."""
    size = h["address_size"]
    total = ones_sum(data, offset + h["source"], size, l4_length + h["protocol"])
    return ones_sum(data, offset + h["final_destination"], size, total)
